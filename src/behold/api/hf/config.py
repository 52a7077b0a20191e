"""`model.config`: the checkpoint's settings with attribute access, as code written for transformers reads them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from behold.errors import OptionError


class ConfigView:
    """config.json by attribute, sections as views of their own: `config.text_config.hidden_size`.

    What the file leaves out is taken from the record behold read it into, which knows the family's defaults; the two
    spellings of the image token's name both work.
    """

    _ALIASES: ClassVar[Mapping[str, str]] = {
        "image_token_id": "image_token_index",
        "image_token_index": "image_token_id",
        "torch_dtype": "dtype",
    }
    _SECTIONS: ClassVar[Mapping[str, str]] = {"text_config": "text", "vision_config": "vision"}

    def __init__(self, values: Mapping[str, Any], record: object = None) -> None:
        stated = dict(copy.deepcopy(dict(values)))
        for item in fields(record) if is_dataclass(record) else ():
            stated.setdefault(item.name, getattr(record, item.name))
        for name, short in self._SECTIONS.items():
            section = getattr(record, short, None)
            if section is not None:
                stated.pop(short, None)
                stated[name] = ConfigView(stated.get(name) or {}, section)
        for name, value in stated.items():
            self.__dict__[name] = ConfigView(value) if isinstance(value, Mapping) else value

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the file states
        alias = self._ALIASES.get(name)
        if alias is not None and alias in self.__dict__:
            return self.__dict__[alias]
        raise AttributeError(f"The checkpoint's config has no {name!r}; it has {', '.join(sorted(self.__dict__))}.")

    def __setattr__(self, name: str, value: object) -> None:
        if name != "use_cache":  # training code sets it; here it changes nothing either way
            raise OptionError(f"config.{name} cannot be set: the model is built. See model.generation_config.")
        self.__dict__[name] = value

    def get_text_config(self, decoder: bool = True) -> ConfigView:
        """The text decoder's settings."""
        section: ConfigView = self.__dict__.get("text_config", self)
        return section

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts."""
        return {name: value.to_dict() if isinstance(value, ConfigView) else value for name, value in vars(self).items()}

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"ConfigView({self.to_dict()!r})"
