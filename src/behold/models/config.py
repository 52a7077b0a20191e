"""Frozen records of what config.json says about a model; after this, nobody asks a dict with a default.

A value that is absent takes the default transformers gives it for that model_type; so does null, except where null has
a meaning of its own there (no sliding window, as many key heads as query heads). Values we cannot honour are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from behold.errors import UnsupportedModelError
from behold.nn.mlp import activation
from behold.nn.rotary import RopeConfig

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextConfig:
    """One text decoder. `windows[i]` is how far back layer i sees, None for everything."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """One vision transformer. The two flags tell CLIP (both) from SigLIP (none)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    class_token: bool = False
    pre_norm: bool = False

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.patches_per_side**2 + int(self.class_token)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What every family has; a family's own record derives from it and adds its connector's settings."""

    model_type: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int


# --- text --------------------------------------------------------------------------------------------------------

_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
}
_COMMON_TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "head_dim": None,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "layer_types": None,
    "sliding_window": None,
}
_NULL_HAS_MEANING = {"num_key_value_heads", "sliding_window"}


def read_text_config(config: Json | None, *, default_type: str, tied: bool) -> TextConfig:
    """The text_config of a model; `default_type` is its model_type where it names none.

    Raises:
        UnsupportedModelError: another architecture, activation, rope kind or layer type than those known here.
    """
    given = dict(config or {})
    model_type = given.get("model_type") or default_type
    if model_type not in _TEXT_DEFAULTS:
        raise UnsupportedModelError(_unsupported("text_config.model_type", model_type, _TEXT_DEFAULTS))
    values = _filled(given, _COMMON_TEXT_DEFAULTS | _TEXT_DEFAULTS[model_type])
    heads, width = values["num_attention_heads"], values["hidden_size"]
    kv_heads = values["num_key_value_heads"] or heads
    # Qwen2 has no head_dim in its configuration class, but honours one that is given
    head_dim = values["head_dim"] or width // heads
    if heads % kv_heads or head_dim % 2:
        raise UnsupportedModelError(
            f"text_config has {heads} attention heads, {kv_heads} key heads and head_dim={head_dim}: the first must be "
            "a multiple of the second, and head_dim even."
        )
    activation(values["hidden_act"])  # refuse now, not when the module is built
    llama, qwen2 = model_type == "llama", model_type == "qwen2"
    return TextConfig(
        vocab_size=values["vocab_size"],
        hidden_size=width,
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        hidden_act=values["hidden_act"],
        rms_norm_eps=values["rms_norm_eps"],
        rope=_read_rope(given, values["max_position_embeddings"]),
        max_position_embeddings=values["max_position_embeddings"],
        windows=_windows(model_type, values),
        qkv_bias=qwen2 or (llama and values["attention_bias"]),
        output_bias=llama and values["attention_bias"],
        mlp_bias=llama and values["mlp_bias"],
        tied=tied,
    )


def _windows(model_type: str, values: Json) -> tuple[int | None, ...]:
    """Sliding windows per layer. Llama has none, Mistral has it everywhere, Qwen2 from `max_window_layers` on."""
    n_layers: int = values["num_hidden_layers"]
    window: int | None = values["sliding_window"]
    if model_type == "llama":
        return (None,) * n_layers
    if model_type == "mistral":
        return (window,) * n_layers
    if not values["use_sliding_window"] or window is None:
        return (None,) * n_layers
    kinds = values["layer_types"] or [
        "sliding_attention" if layer >= values["max_window_layers"] else "full_attention" for layer in range(n_layers)
    ]
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != n_layers or not set(kinds) <= set(known):
        raise UnsupportedModelError(
            f"text_config.layer_types={kinds!r} must name one of {', '.join(known)} for each of {n_layers} layers."
        )
    return tuple(known[kind] for kind in kinds)


def _read_rope(given: Json, max_positions: int) -> RopeConfig:
    """rope_parameters (new), or rope_theta and rope_scaling (old)."""
    rope: dict[str, Any] = {**(given.get("rope_parameters") or {}), **(given.get("rope_scaling") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or given.get("rope_theta") or 10000.0
    partial = rope.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "linear", "llama3"):
        raise UnsupportedModelError(_unsupported("rope_type", kind, ("default", "linear", "llama3")))
    if partial != 1.0:
        raise UnsupportedModelError(f"partial_rotary_factor={partial} is not supported, only 1.0 is.")
    if kind == "default":
        return RopeConfig(theta=float(theta))
    needed = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor")
    missing = [key for key in needed if rope.get(key) is None]
    if missing:
        raise UnsupportedModelError(f"rope_type={kind!r} needs {', '.join(missing)} in rope_parameters.")
    if kind == "linear":
        return RopeConfig(theta=float(theta), kind="linear", factor=float(rope["factor"]))
    return RopeConfig(
        theta=float(theta),
        kind="llama3",
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=rope.get("original_max_position_embeddings") or max_positions,
    )


# --- vision ------------------------------------------------------------------------------------------------------

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "idefics2_vision": {
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
_COMMON_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
}


def read_vision_config(config: Json | None, *, model_type: str) -> VisionConfig:
    """The vision_config of a model whose tower is of the given type.

    Raises:
        UnsupportedModelError: another tower, activation or a picture that is not square.
    """
    given = dict(config or {})
    if model_type not in _VISION_DEFAULTS:
        raise UnsupportedModelError(_unsupported("vision_config.model_type", model_type, _VISION_DEFAULTS))
    values = _filled(given, _COMMON_VISION_DEFAULTS | _VISION_DEFAULTS[model_type])
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UnsupportedModelError(
            f"vision_config.hidden_size={values['hidden_size']} is no multiple of its "
            f"{values['num_attention_heads']} attention heads."
        )
    activation(values["hidden_act"])
    clip = model_type == "clip_vision_model"
    return VisionConfig(
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_channels=values["num_channels"],
        image_size=_side("image_size", values["image_size"]),
        patch_size=_side("patch_size", values["patch_size"]),
        hidden_act=values["hidden_act"],
        layer_norm_eps=values["layer_norm_eps"],
        class_token=clip,
        pre_norm=clip,
    )


def _side(key: str, value: Any) -> int:  # noqa: ANN401 - whatever a JSON file holds
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise UnsupportedModelError(f"vision_config.{key}={value!r} is not square, which is not supported.")
    return int(sides.pop())


# --- shared ------------------------------------------------------------------------------------------------------


def _filled(given: Json, defaults: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        values[key] = default if value is None and key not in _NULL_HAS_MEANING else value
    return values


def _unsupported(key: str, value: object, known: object) -> str:
    return f"{key}={value!r} is not supported. Known: {', '.join(map(str, known))}."  # type: ignore[call-overload]
