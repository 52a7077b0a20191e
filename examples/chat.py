"""A conversation that keeps its history: each picture is encoded once, later turns only read the new words."""

from pathlib import Path

import behold

here = Path(__file__).parent
chat = behold.load("demo").chat()
print(chat.say(here / "scene.png", "What do we see in this image?"))
print(chat.say("How many shapes are there?"))
