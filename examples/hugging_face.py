"""Code written for transformers: only the import line and the model's name differ."""

from pathlib import Path
from threading import Thread

from PIL import Image

from behold import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

processor = AutoProcessor.from_pretrained("demo")
model = AutoModelForImageTextToText.from_pretrained("demo")

image = Image.open(Path(__file__).parent / "scene.png")
messages = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do we see in this image?"}]},
]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=[image], return_tensors="pt").to(model.device)

generated = model.generate(**inputs, max_new_tokens=48)
print(processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])

streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
thread = Thread(target=model.generate, kwargs={**inputs, "max_new_tokens": 48, "streamer": streamer})
thread.start()
for piece in streamer:
    print(piece, end="", flush=True)
thread.join()
print()
