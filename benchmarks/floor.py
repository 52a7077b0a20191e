"""What the work costs at least: its arithmetic over the machine's rate, its bytes over the machine's bandwidth.

The counts come from the shapes of the weights. A multiplication with its addition counts as two operations. Norms,
activations and preprocessing are left out, so that the floor cannot quite be reached.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rows import Formats

# Bytes of a number, and the arithmetic it is multiplied in: a key of what benchmarks.probe measures. Quanto's weights
# are widened before they are multiplied. The blocks of Q8_0 and Q4_0 carry a 16-bit scale for 32 numbers.
FORMATS: Mapping[str, tuple[float, str]] = {
    "float32": (4.0, "float_gop_s"),
    "bfloat16": (2.0, "bfloat16_gop_s"),
    "float16": (2.0, "float_gop_s"),
    "quanto int8": (1.0, "float_gop_s"),
    "int8": (1.0, "int8_gop_s"),
    "int4": (0.5, "int4_gop_s"),
    "q8_0": (34 / 32, "int8_gop_s"),
    "q4_0": (18 / 32, "int4_gop_s"),
}
TEXT = ("language_model.model.layers.", "text_model.layers.")
VISION = ("vision_tower.", "vision_model.")
EMBEDDINGS = "embed_tokens.weight"


@dataclass(frozen=True)
class Work:
    """One request. Operations up to the first token, by part; numbers that each later token reads.

    kv_numbers: of keys and values, at the middle of the answer.
    """

    vision_linear: float
    vision_attention: float
    text_linear: float
    text_attention: float
    text_weights: int
    head_weights: int
    kv_numbers: float

    @property
    def operations(self) -> float:
        return self.vision_linear + self.vision_attention + self.text_linear + self.text_attention

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, tuple[int, ...]],
        *,
        patches: Sequence[int],
        prompt_tokens: int,
        decode_tokens: int,
    ) -> Work:
        """Of a checkpoint's tensors. patches: of each picture (or crop) that the tower is shown."""
        matrices = {name: shape for name, shape in tensors.items() if name.endswith("weight") and len(shape) > 1}
        text = {name: shape for name, shape in matrices.items() if any(part in name for part in TEXT)}
        head = next(
            (
                math.prod(s)
                for ending in ("lm_head.weight", EMBEDDINGS)
                for n, s in matrices.items()
                if n.endswith(ending)
            ),
            0,
        )
        queries = sum(shape[0] for name, shape in text.items() if name.endswith("q_proj.weight"))
        keys_values = sum(shape[0] for name, shape in text.items() if name.endswith(("k_proj.weight", "v_proj.weight")))
        text_weights = sum(map(math.prod, text.values()))
        tower = [(name, shape) for name, shape in matrices.items() if any(part in name for part in VISION)]
        seen = sum(shape[0] for name, shape in tower if name.endswith("q_proj.weight"))
        latents = next((shape[0] for name, shape in tensors.items() if name.endswith("resampler.latents")), 0)
        return cls(
            vision_linear=sum(
                2.0 * math.prod(shape) * _rows(name, n, latents)
                for n in patches
                for name, shape in matrices.items()
                if name not in text
            ),
            vision_attention=sum(4.0 * n * n * seen for n in patches),
            text_linear=2.0 * (text_weights * prompt_tokens + head),
            text_attention=2.0 * prompt_tokens**2 * queries,  # each token meets those before it: half of all pairs
            text_weights=text_weights,
            head_weights=head,
            kv_numbers=keys_values * (prompt_tokens + decode_tokens / 2),
        )

    def first_token_s(self, formats: Formats, rates: Mapping[str, float]) -> float | None:
        """Seconds at least, attention in floats; None where the machine's rate for a format is not known."""
        parts = ((self.vision_linear, formats.vision), (self.text_linear, formats.text))
        if any(FORMATS[held][1] not in rates for _, held in parts):
            return None
        linear = sum(operations / rates[FORMATS[held][1]] for operations, held in parts)
        return (linear + (self.vision_attention + self.text_attention) / rates["float_gop_s"]) / 1e9

    def token_bytes(self, formats: Formats) -> float:
        """What is read for each later token."""
        parts = ((self.text_weights, formats.text), (self.head_weights, formats.head), (self.kv_numbers, formats.kv))
        return sum(numbers * FORMATS[held][0] for numbers, held in parts)

    def decode_tokens_per_s(self, formats: Formats, rates: Mapping[str, float]) -> float:
        """At most."""
        return 1e9 * rates["read_gb_s"] / self.token_bytes(formats)


def _rows(name: str, patches: int, latents: int) -> int:
    """Rows that a matrix outside the decoder is multiplied with, for one picture."""
    if name.endswith(("lm_head.weight", EMBEDDINGS)) or "position_embedding" in name:
        return 0
    if "resampler.layers" not in name:
        return patches
    return patches + latents if re.search(r"\.[kv]_proj\.", name) else latents
