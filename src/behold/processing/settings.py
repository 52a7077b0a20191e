"""An image processor's settings, read once from its JSON into a frozen record.

Absent values take transformers' default for the image processor's class; the table below is those defaults. A null
takes the default too, except for do_… switches: transformers reads null as "do not", and published files rely on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from behold.errors import OptionError, UnsupportedModelError
from behold.processing.grids import Size, SizeRule, size_rule

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_BICUBIC, _BILINEAR = 3, 2
_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "do_image_splitting": False,
    "default_to_square": False,
}
_CLIP: dict[str, Any] = {
    **_COMMON,
    "size": {"shortest_edge": 224},
    "resample": _BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_HALVES: dict[str, Any] = {**_COMMON, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,  # do_pad, off by default, puts the picture on a square first
    "SiglipImageProcessor": {**_HALVES, "size": {"height": 224, "width": 224}, "resample": _BICUBIC},
    "Idefics2ImageProcessor": {
        **_HALVES,
        "size": {"shortest_edge": 378, "longest_edge": 980},
        "resample": _BILINEAR,
        "do_pad": True,
    },
}


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """What is done to a picture, in this order: split or square, resize, crop, rescale, normalise, pad.

    kind: the image processor's class in transformers. size: a rule of processing.grids. crop_size: (height, width).
    """

    kind: str
    do_resize: bool
    size: SizeRule
    resample: int
    do_center_crop: bool
    crop_size: Size | None
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    do_pad: bool
    do_image_splitting: bool

    def changed(self, **changes: object) -> ImageSettings:
        """The same with some settings changed, for one call (`do_image_splitting=False`).

        Raises:
            OptionError: there is no such setting.
        """
        known = [name for name in get_type_hints(ImageSettings) if name != "kind"]
        for name in changes:
            if name not in known:
                raise OptionError(f"{name!r} is no setting of {self.kind}; there are {', '.join(known)}.")
        kept = {key: value for key, value in changes.items() if value is not None}
        return replace(self, **_typed(self.kind, kept))


def read_settings(preprocessor: Mapping[str, Any], *, default_kind: str, supported: tuple[str, ...]) -> ImageSettings:
    """Settings from preprocessor_config.json (or the image_processor part of processor_config.json).

    Raises:
        UnsupportedModelError: another image processor, or a value that is not supported.
    """
    kind = preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type") or default_kind
    kind = str(kind).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in supported:
        raise UnsupportedModelError(
            f"the image processor is {kind!r}; for this model {', '.join(supported)} are supported."
        )
    given = {key: value for key, value in preprocessor.items() if value is not None or key.startswith("do_")}
    if given.get("pad_size"):
        raise UnsupportedModelError(f"pad_size is {given['pad_size']!r}; padding to a fixed size is not supported.")
    return ImageSettings(kind=kind, **_typed(kind, {**DEFAULTS[kind], **given}))


def _typed(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings, checked and in the types of ImageSettings; anything else is left out."""
    typed: dict[str, Any] = {}
    square = bool(values.get("default_to_square", DEFAULTS[kind]["default_to_square"]))
    for name, value in values.items():
        if name.startswith("do_"):
            typed[name] = bool(value)
        elif name == "size":
            typed[name] = size_rule(value, "size", square=square)
        elif name == "crop_size":
            rule = None if value is None else size_rule(value, "crop_size", square=True)
            if rule is not None and "height" not in rule:
                raise UnsupportedModelError(f"crop_size is {value!r}; a crop has a height and a width.")
            typed[name] = None if rule is None else (rule["height"], rule["width"])
        elif name in ("image_mean", "image_std"):
            channels = (value,) * 3 if isinstance(value, int | float) else tuple(value)
            if len(channels) != 3:
                raise UnsupportedModelError(f"{name} is {value!r}; three values are needed, for red, green and blue.")
            typed[name] = tuple(float(channel) for channel in channels)
        elif name == "resample":
            if value not in range(6):
                raise UnsupportedModelError(f"resample is {value!r}; Pillow's filters are 0 to 5.")
            typed[name] = int(value)
        elif name == "rescale_factor":
            typed[name] = float(value)
    return {name: value for name, value in typed.items() if name in ImageSettings.__dataclass_fields__}
