"""The keyword arguments of `from_pretrained`, as one record; what cannot be honoured is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from behold.api.hf.quantization_config import BitsAndBytesConfig, scheme_of
from behold.errors import OptionError

if TYPE_CHECKING:
    import torch

ATTENTION = ("eager", "sdpa", "flash_attention_2")

_HUB = ("revision", "cache_dir", "token", "local_files_only")

# Options that ask for what behold always does, or permit what it never does.
_ALWAYS_SO: Mapping[str, tuple[object, ...]] = {
    "low_cpu_mem_usage": (True, False),  # weights are always streamed
    "use_safetensors": (True,),  # nothing else is ever read
    "weights_only": (True,),
    "trust_remote_code": (True, False),  # a permission; no checkpoint's code is ever run
    "_fast_init": (True, False),
    "use_fast": (True, False),
    "force_download": (False,),
    "output_loading_info": (False,),
    "ignore_mismatched_sizes": (False,),
    "offload_state_dict": (False,),
    "offload_buffers": (False,),
    "subfolder": ("",),
    "_from_auto": (True, False),
}


@dataclass(frozen=True)
class HubOptions:
    """Which version of a checkpoint, from where."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class LoadOptions:
    """What `AutoModelForImageTextToText.from_pretrained` was asked for.

    dtype: "auto" is the checkpoint's, or what this CPU computes fast. device: where every weight goes. attention:
    "auto" or one of ATTENTION, each a path of our own.
    """

    hub: HubOptions = HubOptions()
    dtype: str | torch.dtype | None = "auto"
    device: str | torch.device = "cpu"
    attention: str = "auto"
    quantize: str | None = None


def read_load_options(options: Mapping[str, object]) -> LoadOptions:
    """The keyword arguments of a model's `from_pretrained`.

    Raises:
        OptionError: an unknown name, a value that cannot be honoured, or two spellings that disagree.
    """
    rest = dict(options)
    hub = _hub_options(rest)
    dtype = _either(rest, "dtype", "torch_dtype", "auto")
    attention = _either(rest, "attn_implementation", "_attn_implementation", "auto")
    if attention not in ("auto", *ATTENTION):
        raise OptionError(f"attn_implementation={attention!r} is not one of {', '.join(map(repr, ATTENTION))}.")
    device = _device(rest.pop("device_map", None))
    quantize = _quantize(rest)
    refuse_rest(rest, "device_map, dtype, attn_implementation, quantization_config")
    return LoadOptions(
        hub=hub,
        dtype=cast("str | torch.dtype | None", dtype),
        device=device,
        attention=attention,
        quantize=quantize,
    )


def read_hub_options(options: Mapping[str, object]) -> tuple[HubOptions, dict[str, object]]:
    """(version and place, everything else) of a processor's `from_pretrained`."""
    rest = dict(options)
    return _hub_options(rest), rest


def refuse_rest(rest: Mapping[str, object], known: str) -> None:
    """Refuse options that nothing here honours; None, and values that ask for what is done anyway, are let through."""
    for name, value in rest.items():
        if value is None or value in _ALWAYS_SO.get(name, ()):
            continue
        allowed = f"; {name}={_ALWAYS_SO[name][0]!r} is" if name in _ALWAYS_SO else ""
        raise OptionError(
            f"from_pretrained({name}={value!r}) is not supported{allowed}. Supported: {known}, {', '.join(_HUB)}."
        )


def _hub_options(rest: dict[str, object]) -> HubOptions:
    if rest.get("use_auth_token") is not None:
        rest.setdefault("token", rest["use_auth_token"])
    rest.pop("use_auth_token", None)
    given = {name: rest.pop(name, None) for name in _HUB}
    return HubOptions(
        revision=cast("str | None", given["revision"]),
        cache_dir=cast("str | Path | None", given["cache_dir"]),
        token=cast("str | bool | None", given["token"]),
        local_files_only=bool(given["local_files_only"]),
    )


def _either(rest: dict[str, object], name: str, older: str, default: object) -> object:
    """The value of an option that has an older spelling."""
    new, old = rest.pop(name, None), rest.pop(older, None)
    if new is not None and old is not None and new != old:
        raise OptionError(f"{name}={new!r} and its older spelling {older}={old!r} disagree; give one.")
    value = old if new is None else new
    return default if value is None else value


def _device(device_map: object) -> str | torch.device:
    """One device for the whole model; None is the CPU, "auto" the best there is."""
    if device_map is None:
        return "cpu"
    if isinstance(device_map, Mapping):
        places = set(device_map.values())
        if len(places) != 1:
            raise OptionError(f"device_map={dict(device_map)!r}: a model goes to one device; give one, or 'auto'.")
        (device_map,) = places
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "auto"
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        return f"cuda:{device_map}"
    return cast("str | torch.device", device_map)


def _quantize(rest: dict[str, object]) -> str | None:
    bits = {name: bool(rest.pop(name, False)) for name in ("load_in_8bit", "load_in_4bit")}
    config = rest.pop("quantization_config", None)
    if any(bits.values()):
        if config is not None:
            raise OptionError("quantization_config and load_in_8bit/load_in_4bit are both given; give the first.")
        config = BitsAndBytesConfig(load_in_8bit=bits["load_in_8bit"], load_in_4bit=bits["load_in_4bit"])
    return scheme_of(config)
