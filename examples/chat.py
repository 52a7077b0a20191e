"""A conversation that keeps its history: each picture is encoded once, later turns may bring further ones."""

from pathlib import Path

import behold

here = Path(__file__).parent
vlm = behold.load("demo")

chat = vlm.chat()
print(chat.say(here / "scene.png", "What do we see in this image?"))
print(chat.say("How many shapes are there?"))

chat.reset()
print(chat.say([here / "two_a.png", here / "two_b.png"], "What changed?"))
