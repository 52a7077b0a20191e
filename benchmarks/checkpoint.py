"""Full-size checkpoints with random weights, in the published layout, for timing: speed does not depend on training.

A `Blueprint` says the names and shapes of the tensors and the JSON files beside them. It comes from benchmarks/shapes
(`llava-interleave-qwen-0.5b`, `tiny`) or from a folder that has config.json, the processor's files, special_tokens.json
(text to id) and weight_shapes.json ({"dtype": …, "tensors": {name: shape}}). The weights are seeded, so every peer
and every machine reads the same ones; they are made once and kept outside the repository.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).parent / "shapes"
SHARD_BYTES = 2 * 1024**3
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)


@dataclass(frozen=True)
class Blueprint:
    """What a checkpoint is made of, without its weights."""

    name: str
    dtype: str
    special_tokens: Mapping[str, int]
    eos_token: str | None
    pad_token: str | None
    files: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())


def names() -> list[str]:
    """The blueprints that come with the repository."""
    return sorted(path.stem for path in SHAPES.glob("*.json"))


def blueprint(name_or_folder: str) -> Blueprint:
    """A blueprint of ours by name, or one read from a folder."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return _from_folder(folder)
    if name_or_folder not in names():
        raise SystemExit(
            f"no shapes for {name_or_folder!r}: give a folder with weight_shapes.json, or one of {names()}"
        )
    record = json.loads((SHAPES / f"{name_or_folder}.json").read_text("utf-8"))
    record["tensors"] = dict(_expand(record["tensors"]))
    return Blueprint(**record)


def _expand(patterns: Mapping[str, list[int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`layers.{24}.norm` stands for layers.0.norm … layers.23.norm."""
    for pattern, shape in patterns.items():
        repeat = re.search(r"\{(\d+)\}", pattern)
        if repeat is None:
            yield pattern, tuple(shape)
            continue
        for index in range(int(repeat[1])):
            yield pattern.replace(repeat[0], str(index)), tuple(shape)


def _from_folder(folder: Path) -> Blueprint:
    def read(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    weights, tokenizer = read("weight_shapes.json"), read("tokenizer_config.json") or {}
    special = read("special_tokens.json")
    if weights is None or special is None:
        raise SystemExit(f"{folder} has no weight_shapes.json or no special_tokens.json")
    files = {name: content for name in JSON_FILES if (content := read(name)) is not None}
    if "chat_template.json" not in files and tokenizer.get("chat_template"):
        files["chat_template.json"] = {"chat_template": tokenizer["chat_template"]}
    return Blueprint(
        name=folder.name,
        dtype=weights["dtype"],
        special_tokens=special,
        eos_token=_text(tokenizer.get("eos_token")),
        pad_token=_text(tokenizer.get("pad_token")),
        files=files,
        tensors={name: tuple(shape) for name, shape in weights["tensors"].items()},
    )


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def default_cache() -> Path:
    """Where made checkpoints are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "behold-bench"


def make(plan: Blueprint, cache: Path, *, seed: int = 0) -> Path:
    """The folder of a blueprint's checkpoint, made if it is not there yet."""
    folder = cache / f"{plan.name}-{plan.dtype}-{seed}"
    if folder.exists():
        return folder
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for name, content in plan.files.items():
        (unfinished / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")
    _write_tokenizer(plan, unfinished)
    _write_weights(plan, unfinished, seed)
    unfinished.rename(folder)
    return folder


def _write_tokenizer(plan: Blueprint, folder: Path) -> None:
    """One token a byte, fillers up to the special tokens' places: any text encodes, any id decodes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    taken = set(plan.special_tokens.values())
    free = (index for index in range(max(taken) + 1 + len(alphabet)) if index not in taken)
    vocabulary = {text: next(free) for text in alphabet}
    vocabulary |= {f"t{index}": index for index in free if index < max(taken)}
    vocabulary |= dict(plan.special_tokens)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plan.special_tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": plan.eos_token, "pad_token": plan.pad_token or plan.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), "utf-8")


def _shards(plan: Blueprint, itemsize: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in plan.tensors.items():
        n_bytes = math.prod(shape) * itemsize
        if shards[-1] and size + n_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += n_bytes
    return shards


def _write_weights(plan: Blueprint, folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, plan.dtype)
    generator = torch.Generator().manual_seed(seed)
    shards = _shards(plan, dtype.itemsize)
    where: dict[str, str] = {}
    for number, tensor_names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _random(name, plan.tensors[name], generator).to(dtype) for name in tensor_names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensor_names, file)
    if len(shards) > 1:
        size = plan.n_parameters * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def _random(name: str, shape: tuple[int, ...], generator: Any) -> Any:
    import torch

    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:  # the weights of norms
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.02
