"""The pipeline, with an answer that is already begun: the model goes on from there."""

from pathlib import Path

from behold import pipeline

ask = pipeline("image-text-to-text", model="demo")
picture = str(Path(__file__).parent / "scene.png")
messages = [
    {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What do we see in this image?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "An"}]},
]
result = ask(text=messages, max_new_tokens=48, return_full_text=False)
print("An" + result[0]["generated_text"])
