"""The Hugging Face surface under one roof: existing code runs with its import line changed to `behold`."""

from behold.api.hf_model import AutoModelForImageTextToText
from behold.api.hf_processor import AutoProcessor
from behold.api.pipeline import pipeline
from behold.api.quantization_config import BitsAndBytesConfig, QuantoConfig
from behold.api.streamers import TextIteratorStreamer, TextStreamer

__all__ = [
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "BitsAndBytesConfig",
    "QuantoConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "pipeline",
]
