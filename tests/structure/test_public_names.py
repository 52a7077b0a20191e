"""The public surface is a list, and this is it: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import behold
from behold import errors

PUBLIC = {
    # the short surface
    "load",
    "VLM",
    "Chat",
    "AnswerStream",
    "Answer",
    "Choice",
    "Usage",
    # the Hugging Face surface
    "AutoProcessor",
    "AutoModelForImageTextToText",
    "pipeline",
    "TextStreamer",
    "TextIteratorStreamer",
    "QuantoConfig",
    "BitsAndBytesConfig",
    # errors
    "BeholdError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "UnsupportedModelError",
    "WeightsError",
    "MediaError",
    "ChatError",
    "OptionError",
    "DeviceError",
    "CapacityError",
    "BusyError",
    "StructuredOutputError",
    "MissingDependencyError",
    "__version__",
}
HEAVY = ("torch", "numpy", "PIL", "transformers", "tokenizers", "huggingface_hub", "jinja2", "rich", "typer")


def test_the_public_names_are_these() -> None:
    assert set(behold.__all__) == PUBLIC
    assert len(behold.__all__) == len(PUBLIC)
    assert set(dir(behold)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(behold, name)
    assert inspect.getdoc(value)
    assert value.__module__.startswith("behold.")


def test_a_star_import_brings_them_all() -> None:
    namespace: dict[str, object] = {}
    exec("from behold import *", namespace)
    assert namespace.keys() >= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = behold.no_such_name


def test_every_error_is_public_and_in_the_tree() -> None:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert set(classes) <= PUBLIC
    assert all(issubclass(value, behold.BeholdError) for value in classes.values())
    assert all(name in (errors.__doc__ or "") for name in classes)


def test_import_behold_loads_nothing_heavy() -> None:
    """What keeps `import behold` under 0.3 s on any machine."""
    code = f"import sys, behold; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []


def test_the_version_is_one() -> None:
    from importlib.metadata import version

    assert behold.__version__ == version("behold-vlm")
