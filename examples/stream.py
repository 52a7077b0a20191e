"""Print an answer while it is written; leaving the loop early would stop the work."""

from pathlib import Path

import behold

vlm = behold.load("demo")
for piece in vlm.stream(Path(__file__).parent / "scene.png", "What do we see in this image?"):
    print(piece, end="", flush=True)
print()
