"""behold: ask questions about images with open vision-language models.

    import behold

    vlm = behold.load("demo")
    print(vlm.ask("photo.jpg", "What do we see in this image?"))

Every public name is listed here and imported on first use, so that `import behold` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from behold._version import __version__
from behold.collector import PAUSED

if TYPE_CHECKING:
    from behold.api.chat import Chat
    from behold.api.choose import Choice
    from behold.api.hf.model import AutoModelForImageTextToText
    from behold.api.hf.pipeline import pipeline
    from behold.api.hf.processor import AutoProcessor
    from behold.api.hf.quantization_config import BitsAndBytesConfig, QuantoConfig
    from behold.api.hf.streamers import TextIteratorStreamer, TextStreamer
    from behold.api.stream import AnswerStream
    from behold.api.vlm import VLM, load
    from behold.errors import (
        BeholdError,
        BusyError,
        CapacityError,
        ChatError,
        CheckpointError,
        CheckpointNotFoundError,
        DeviceError,
        MediaError,
        MissingDependencyError,
        OptionError,
        StructuredOutputError,
        UnsupportedModelError,
        WeightsError,
    )
    from behold.types import Answer, Usage

_HOMES = {
    "behold.api.chat": ("Chat",),
    "behold.api.choose": ("Choice",),
    "behold.api.hf.model": ("AutoModelForImageTextToText",),
    "behold.api.hf.processor": ("AutoProcessor",),
    "behold.api.hf.pipeline": ("pipeline",),
    "behold.api.hf.quantization_config": ("BitsAndBytesConfig", "QuantoConfig"),
    "behold.api.stream": ("AnswerStream",),
    "behold.api.hf.streamers": ("TextIteratorStreamer", "TextStreamer"),
    "behold.api.vlm": ("VLM", "load"),
    "behold.errors": (
        "BeholdError",
        "BusyError",
        "CapacityError",
        "ChatError",
        "CheckpointError",
        "CheckpointNotFoundError",
        "DeviceError",
        "MediaError",
        "MissingDependencyError",
        "OptionError",
        "StructuredOutputError",
        "UnsupportedModelError",
        "WeightsError",
    ),
    "behold.types": ("Answer", "Usage"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "VLM",
    "Answer",
    "AnswerStream",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "BeholdError",
    "BitsAndBytesConfig",
    "BusyError",
    "CapacityError",
    "Chat",
    "ChatError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Choice",
    "DeviceError",
    "MediaError",
    "MissingDependencyError",
    "OptionError",
    "QuantoConfig",
    "StructuredOutputError",
    "TextIteratorStreamer",
    "TextStreamer",
    "UnsupportedModelError",
    "Usage",
    "WeightsError",
    "__version__",
    "load",
    "pipeline",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'behold' has no attribute {name!r}")
    with PAUSED:
        value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
