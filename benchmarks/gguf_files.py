"""A made checkpoint as llama.cpp reads it: the decoder in one GGUF file, tower and projector in another.

    q8_0    every matrix in 8-bit blocks, the projector's file too
    q4_0    the decoder in 4-bit blocks, its embeddings (and so the head) in 8-bit ones, the projector's file in 16 bits
    f16     16 bits, to see that llama.cpp computes what the others do

Matrices whose rows are no whole number of blocks stay in 16 bits, vectors in 32. Only llava with a Qwen2 decoder and a
SigLIP tower can be written. Needs the package gguf, whose writer and blocks these are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT, EYE = "text.gguf", "eye.gguf"
BLOCK = 32
# What each kind stores the decoder's matrices, its embeddings, and the other file's matrices in.
KINDS = {"q8_0": ("Q8_0", "Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q8_0", "F16"), "f16": ("F16", "F16", "F16")}

LAYER = r"language_model\.model\.layers\.(\d+)\."
BLK = r"vision_tower\.vision_model\.encoder\.layers\.(\d+)\."
TEXT_NAMES = {
    r"language_model\.model\.embed_tokens\.": "token_embd.",
    r"language_model\.model\.norm\.": "output_norm.",
    r"language_model\.lm_head\.": "output.",
    LAYER + r"input_layernorm\.": r"blk.\1.attn_norm.",
    LAYER + r"post_attention_layernorm\.": r"blk.\1.ffn_norm.",
    LAYER + r"self_attn\.([qkv])_proj\.": r"blk.\1.attn_\2.",
    LAYER + r"self_attn\.o_proj\.": r"blk.\1.attn_output.",
    LAYER + r"mlp\.(gate|up|down)_proj\.": r"blk.\1.ffn_\2.",
}
EYE_NAMES = {
    r"vision_tower\.vision_model\.embeddings\.patch_embedding\.": "v.patch_embd.",
    r"vision_tower\.vision_model\.embeddings\.position_embedding\.": "v.position_embd.",
    BLK + r"layer_norm([12])\.": r"v.blk.\1.ln\2.",
    BLK + r"self_attn\.([qkv])_proj\.": r"v.blk.\1.attn_\2.",
    BLK + r"self_attn\.out_proj\.": r"v.blk.\1.attn_out.",
    BLK + r"mlp\.fc1\.": r"v.blk.\1.ffn_up.",
    BLK + r"mlp\.fc2\.": r"v.blk.\1.ffn_down.",
    r"multi_modal_projector\.linear_1\.": "mm.0.",
    r"multi_modal_projector\.linear_2\.": "mm.2.",
}
UNUSED = "vision_tower.vision_model.post_layernorm."  # comes after the layer that llava reads


class UnwritableError(ValueError):
    """A checkpoint that llama.cpp has no such file for."""


@dataclass(frozen=True)
class Source:
    """A folder of benchmarks.checkpoint."""

    folder: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Raises UnwritableError where the families are others."""
        source = cls(folder, json.loads((folder / "config.json").read_text("utf-8")))
        found = tuple(part.get("model_type") for part in (source.config, source.text, source.vision))
        wanted = ("llava", "qwen2", "siglip_vision_model")
        if found != wanted:
            raise UnwritableError(f"GGUF files are written for {' + '.join(wanted)}; {folder.name} is {found}")
        return source

    @property
    def text(self) -> dict[str, Any]:
        part: dict[str, Any] = self.config.get("text_config", {})
        return part

    @property
    def vision(self) -> dict[str, Any]:
        part: dict[str, Any] = self.config.get("vision_config", {})
        return part

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Names and float32 arrays, one at a time."""
        from safetensors import safe_open

        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (it is no dict)
                    yield name, file.get_tensor(name).float().numpy()


def make(folder: Path, kind: str) -> Path:
    """The folder of a checkpoint's GGUF files, made beside it if it is not there yet.

    Raises:
        UnwritableError: not a family that can be written.
    """
    made = folder.with_name(f"{folder.name}-gguf-{kind}")
    if made.exists():
        return made
    source = Source.read(folder)
    unfinished = made.with_name(made.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    matrices, embeddings, eye_matrices = KINDS[kind]
    text, eye = _text_writer(source, unfinished / TEXT), _eye_writer(source, unfinished / EYE)
    for name, array in source.tensors():
        if (new := renamed(name, TEXT_NAMES)) is not None:
            _add(text, new, array, embeddings if new.startswith(("token_embd", "output.")) else matrices)
        elif (new := renamed(name, EYE_NAMES)) is not None:
            _add(
                eye, new, array, {"v.patch_embd.weight": "F16", "v.position_embd.weight": "F32"}.get(new, eye_matrices)
            )
        elif not name.startswith(UNUSED):
            raise UnwritableError(f"no place is known for {name}")
    for writer in (text, eye):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    unfinished.rename(made)
    return made


def renamed(name: str, rules: dict[str, str]) -> str | None:
    """What a tensor is called in one of the files, or None where it is in the other."""
    for pattern, replacement in rules.items():
        new, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            return new
    return None


def _add(writer: Any, name: str, array: Any, kind: str) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if array.ndim == 1:
        kind = "F32"
    elif kind not in ("F16", "F32") and array.shape[-1] % BLOCK:
        kind = "F16"
    form = GGMLQuantizationType[kind]
    if kind in ("F16", "F32"):
        data = array.astype(np.float16 if kind == "F16" else np.float32)
    else:
        data = quants.quantize(array, form)
    writer.add_tensor(name, data, raw_dtype=form)


def _text_writer(source: Source, path: Path) -> Any:
    import gguf

    text, writer = source.text, gguf.GGUFWriter(path, "qwen2")
    writer.add_name(source.folder.name)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    tokenizer = json.loads((source.folder / "tokenizer.json").read_text("utf-8"))
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    plain = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    known = plain | special
    ids = range(text["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([known.get(index, f"[unused {index}]") for index in ids])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if index in special else kinds.NORMAL if index in plain else kinds.UNUSED for index in ids]
    )
    writer.add_token_merges(["Ā Ā"])  # two zero bytes: llama.cpp wants at least one, and no text has this
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_add_bos_token(False)
    return writer


def _eye_writer(source: Source, path: Path) -> Any:
    import gguf

    vision, writer = source.vision, gguf.GGUFWriter(path, "clip")
    settings = json.loads((source.folder / "preprocessor_config.json").read_text("utf-8"))
    layers, layer = vision["num_hidden_layers"], source.config.get("vision_feature_layer", -2)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", vision["hidden_act"] == "gelu_pytorch_tanh")
    for key, value in {
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": layers,
        "projection_dim": source.text["hidden_size"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "attention.head_count": vision["num_attention_heads"],
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", settings["image_mean"])
    writer.add_array("clip.vision.image_std", settings["image_std"])
    # Without it llama.cpp reads the last layer but one, as llava-1.5 does.
    writer.add_array("clip.vision.feature_layer", [layers + 1 + layer if layer < 0 else layer])
    return writer
