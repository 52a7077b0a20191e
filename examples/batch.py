"""Many questions at once: they run together in one engine, and the answers come back in order."""

from pathlib import Path

import behold

pictures = sorted(Path(__file__).parent.glob("*.png"))
vlm = behold.load("demo")
answers = vlm.batch([(picture, "What do we see in this image?") for picture in pictures], max_new_tokens=48)
for picture, answer in zip(pictures, answers, strict=True):
    print(f"{picture.name}: {answer}")
