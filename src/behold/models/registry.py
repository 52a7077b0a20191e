"""Which family reads which model_type. Families are named by string and imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from behold.errors import UnsupportedModelError

if TYPE_CHECKING:
    from behold.models.base import Family

FAMILIES: dict[str, str] = {
    "llava": "behold.models.families.llava",
    "idefics2": "behold.models.families.idefics2",
}


def supported_model_types() -> tuple[str, ...]:
    """Every model_type that can be loaded, in the registry's order."""
    return tuple(FAMILIES)


def find_family(config: Mapping[str, Any] | str) -> Family:
    """The family of a config.json, or of a model_type.

    Raises:
        UnsupportedModelError: no family reads it; the message lists those that are supported.
    """
    model_type = config if isinstance(config, str) else config.get("model_type")
    module = FAMILIES.get(str(model_type))
    if module is None:
        raise UnsupportedModelError(
            f"model_type={model_type!r} is not supported. Supported: {', '.join(FAMILIES)}. "
            "Code that a checkpoint brings along is never run."
        )
    family: Family = import_module(module).FAMILY
    return family
