"""A conversation that keeps its history: each picture is encoded once, later turns may bring further ones."""

from pathlib import Path

import behold

chat = behold.load("demo").chat()
print(chat.say(Path(__file__).parent / "scene.png", "What do we see in this image?"))
print(chat.say("What colour is the ring?"))
print(chat.say("Where is it?"))
