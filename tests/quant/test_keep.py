"""Loading twice: the second time maps what the first one wrote, and answers the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from behold.checkpoint.files import CheckpointFiles
from behold.models import load as loading
from behold.models.base import VisionLanguageModel
from behold.models.load import load_model
from behold.quant import cache
from behold.quant.weights_file import Pages
from behold.types import ImageInput
from tests import toys
from tests.quant.test_apply import logits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "1 GB")
    return tmp_path / "kept" / "quantized"


def load(checkpoint: Path, scheme: str = "int8", dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    files = CheckpointFiles.read(checkpoint)
    return load_model(files, device=CPU, dtype=dtype, quantize=scheme, progress=False)


def reading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the checkpoint is read again")

    monkeypatch.setattr(loading, "load_weights", refuse)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llava-clip-llama", "llava-siglip-qwen2", "idefics2"])
def test_the_second_load_reads_what_the_first_one_kept(name: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(toys.checkpoint(name), scheme)
    reading_is_refused(monkeypatch)
    second = load(toys.checkpoint(name), scheme)
    assert torch.equal(logits(first), logits(second))
    assert second.quantized_layers == first.quantized_layers
    assert not second.training and not any(p.requires_grad or p.is_meta for p in second.parameters())
    (entry,) = cache.entries()
    assert (entry.name, entry.scheme, entry.dtype) == (str(toys.checkpoint(name)), scheme, "float32")


def test_a_tower_gives_its_memory_back_after_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = toys.checkpoint("llava-siglip-qwen2")
    first, second = load(checkpoint), load(checkpoint)
    through: list[Pages] = []

    def note(pages: Pages) -> None:
        through.append(pages)

    monkeypatch.setattr(Pages, "__call__", note)
    side = second.config.vision.image_size
    picture = ImageInput(np.random.default_rng(0).random((3, side, side), np.float32), 1, "digest")
    (seen,) = first.encode_images([picture])
    assert not through, "its weights are in no file"
    assert torch.equal(second.encode_images([picture])[0], seen)
    assert len(through) == len(set(map(id, through))) > 0
    through.clear()
    assert torch.equal(copy.deepcopy(second).encode_images([picture])[0], seen) and not through


def test_what_is_kept_is_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = toys.checkpoint("llava-siglip-qwen2")
    first = load(checkpoint, dtype=torch.bfloat16)
    load(checkpoint)
    assert {entry.dtype for entry in cache.entries()} == {"float32", "bfloat16"}
    reading_is_refused(monkeypatch)
    second = load(checkpoint, dtype=torch.bfloat16)
    assert second.dtype is torch.bfloat16 and torch.equal(logits(first), logits(second))


def test_another_checkpoint_is_quantized_anew(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path / "toy")
    before = logits(load(folder))
    weights = toys.read_weights(folder)
    toys.write_weights(folder, {name: weight * 1.25 for name, weight in weights.items()})
    assert not torch.equal(logits(load(folder)), before)
    assert len(cache.entries()) == 2


def test_an_untied_head_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config says that the head is the table; the file's own head differs."""
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path / "toy")
    weights = toys.read_weights(folder)
    head = weights["language_model.model.embed_tokens.weight"].flip(0)
    toys.write_weights(folder, weights | {"language_model.lm_head.weight": head})
    first = load(folder)
    reading_is_refused(monkeypatch)
    second = load(folder)
    assert first.decoder.lm_head is not None and second.decoder.lm_head is not None
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("spoil", ["cut", "layers", "tensor"])
def test_a_spoilt_file_is_written_again(spoil: str) -> None:
    checkpoint = toys.checkpoint("llava-siglip-qwen2")
    first = load(checkpoint)
    (entry,) = cache.entries()
    data = entry.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if spoil == "cut":
        entry.path.write_bytes(data[: len(data) // 2])
    else:
        about = json.loads(header["__metadata__"]["behold"])
        if spoil == "layers":
            about["layers"][0]["name"] = "nowhere"
        else:
            header.pop(next(name for name in header if name.endswith("norm.weight")))
        header["__metadata__"]["behold"] = json.dumps(about)
        entry.path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length) + data[8 + length :])
    assert torch.equal(logits(load(checkpoint)), logits(first))
    (mended,) = cache.entries()
    assert mended.path.stat().st_size == len(data)


def test_nothing_is_kept_where_nothing_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "0")
    load(toys.checkpoint("llava-siglip-qwen2"))
    assert not folder.exists()


def test_an_interrupted_load_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("behold.quant.keep.Keeper.finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(toys.checkpoint("llava-siglip-qwen2"))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("folder", "name"),
    [("models--org--some--model/snapshots/abc", "org/some--model"), ("plain", "plain"), ("a/snapshots/b", "b")],
)
def test_checkpoints_are_called_what_people_call_them(tmp_path: Path, folder: str, name: str) -> None:
    assert loading._name(tmp_path / folder).endswith(name)
    assert Path(loading._name(tmp_path / folder)).is_absolute() is not folder.startswith("models--")
