"""From the `quantization_config` of a config.json to the format that reads the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized import awq, bitsandbytes, compressed_tensors, fp8, gptq
from behold.checkpoint.prequantized.layout import PreQuantized
from behold.checkpoint.prequantized.options import refused

FORMATS: Mapping[str, Callable[[Json], PreQuantized]] = {
    "bitsandbytes": bitsandbytes.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "fbgemm_fp8": fp8.read,
}


def read_prequantized(config: Json) -> PreQuantized | None:
    """How the weights of a checkpoint were stored smaller; None where they were not.

    Raises:
        UnsupportedModelError: a method or setting that is not supported; the message says what to do.
    """
    text = config.get("text_config")
    stored = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not stored:
        return None
    known = ", ".join(FORMATS)
    if not isinstance(stored, dict):
        raise refused(f"quantization_config={stored!r}", f"an object with quant_method one of {known}")
    method = stored.get("quant_method")
    if method is None and ("load_in_8bit" in stored or "load_in_4bit" in stored):
        method = "bitsandbytes"  # as it was written before the method had a name
    reader = FORMATS.get(str(method).lower().replace("compressed_tensors", "compressed-tensors"))
    if reader is None:
        raise refused(f"quant_method={method!r}", known)
    return reader(stored)
