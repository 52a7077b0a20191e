"""`QuantoConfig` and `BitsAndBytesConfig`: what existing code says about quantization, as a behold scheme name.

Neither optimum-quanto nor bitsandbytes is needed: the weights are quantized by behold.quant while they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from behold.errors import OptionError
from behold.quant.schemes import SCHEMES


@dataclass(frozen=True)
class QuantoConfig:
    """`QuantoConfig(weights="int8")`, `"int4"` or `"float8"`: weights stored in 8 or 4 bits.

    Raises:
        OptionError: `weights`, `activations` or `modules_to_not_convert` ask for what behold does not have.
    """

    weights: str = "int8"
    activations: str | None = None
    modules_to_not_convert: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("float8", "int8", "int4", "int2"):
            raise OptionError(f"weights={self.weights!r} is not one of 'float8', 'int8', 'int4', 'int2'.")
        if self.activations is not None:
            raise OptionError(f"activations={self.activations!r} is not supported: weights only; leave it out.")
        _refuse_exceptions("modules_to_not_convert", self.modules_to_not_convert)

    @property
    def scheme(self) -> str:
        """The name `behold.quant` knows this by."""
        return _known(self.weights, f"QuantoConfig(weights={self.weights!r})")


@dataclass(frozen=True)
class BitsAndBytesConfig:
    """`BitsAndBytesConfig(load_in_8bit=True)`, or `load_in_4bit=True` with the `bnb_4bit_*` options.

    Either is behold's own scheme of that many bits. The `bnb_4bit_*` options choose among bitsandbytes' codes, and the
    type that it computes and stores in: here there is one code, in groups with scales of their own, so that they are
    checked and change nothing.

    Raises:
        OptionError: both or neither of the two are asked for, or an option behold does not have.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: Sequence[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __post_init__(self) -> None:
        for name in ("load_in_8bit", "load_in_4bit"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is neither True nor False.")
        if self.load_in_8bit and self.load_in_4bit:
            raise OptionError("load_in_8bit and load_in_4bit are both True; choose one.")
        if self.bnb_4bit_quant_type not in ("fp4", "nf4"):
            raise OptionError(f"bnb_4bit_quant_type={self.bnb_4bit_quant_type!r} is not one of 'fp4', 'nf4'.")
        if self.llm_int8_threshold != 6.0:
            raise OptionError(f"llm_int8_threshold={self.llm_int8_threshold!r} is not supported; leave it out.")
        _refuse_exceptions("llm_int8_skip_modules", self.llm_int8_skip_modules)
        for name in ("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"):
            if getattr(self, name):
                raise OptionError(f"{name}=True is not supported; leave it out.")

    @property
    def scheme(self) -> str | None:
        """The name `behold.quant` knows this by; None where neither 8 nor 4 bits are asked for, as in bitsandbytes."""
        if self.load_in_8bit:
            return _known("int8", "BitsAndBytesConfig(load_in_8bit=True)")
        if self.load_in_4bit:
            return _known("int4", "BitsAndBytesConfig(load_in_4bit=True)")
        return None


def scheme_of(config: object) -> str | None:
    """The behold scheme of a `quantization_config=`: one of the two classes here, a namesake from transformers, or a
    dict with their fields.

    Raises:
        OptionError: another kind of configuration, or one that behold does not have.
    """
    if config is None:
        return None
    if isinstance(config, QuantoConfig | BitsAndBytesConfig):
        return config.scheme
    if not isinstance(config, Mapping):
        as_dict = getattr(config, "to_dict", None)
        config = as_dict() if callable(as_dict) else config
    if isinstance(config, Mapping):
        method = str(config.get("quant_method", "")).rpartition(".")[2].lower()
        if method == "quanto" or (not method and "weights" in config):
            return QuantoConfig(**_fields_of(QuantoConfig, config)).scheme
        if method == "bitsandbytes" or "load_in_8bit" in config or "load_in_4bit" in config:
            return BitsAndBytesConfig(**_fields_of(BitsAndBytesConfig, config)).scheme
    raise OptionError(
        f"quantization_config={config!r} is not supported; give behold.QuantoConfig(weights='int8') or "
        "behold.BitsAndBytesConfig(load_in_8bit=True)."
    )


def _fields_of(kind: type, config: Mapping[Any, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    return {name: value for name, value in config.items() if name in known}


def _known(scheme: str, given: str) -> str:
    if scheme not in SCHEMES:
        raise OptionError(f"{given} is not supported. Supported weights: {', '.join(SCHEMES)}.")
    return scheme


def _refuse_exceptions(name: str, modules: Sequence[str] | None) -> None:
    if modules:
        raise OptionError(f"{name}={modules!r} is not supported: the layers are fixed; leave it out.")
