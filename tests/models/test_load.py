"""From a folder to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from behold.checkpoint.files import CheckpointFiles
from behold.errors import OptionError, UnsupportedModelError, WeightsError
from behold.models.base import VisionLanguageModel
from behold.models.load import checkpoint_dtype, load_model
from behold.types import ImageInput
from tests import toys

CPU = torch.device("cpu")


def load(folder: Path, **options: Any) -> VisionLanguageModel:
    settings: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "progress": False} | options
    return load_model(CheckpointFiles.read(folder), **settings)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", toys.TOYS)
def test_a_loaded_model_is_ready_to_answer(name: str) -> None:
    model = load(toys.checkpoint(name))
    assert not model.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert (model.device, model.dtype) == (CPU, torch.float32)


def test_dtype_is_honoured() -> None:
    model = load(toys.checkpoint("llava-siglip-qwen2"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_nothing_is_initialised_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that filled itself first would draw from the global generator."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    load(toys.checkpoint("idefics2"))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("style", ["saved", "published"])
def test_a_tied_head_may_be_stored_too(tmp_path: Path, style: toys.Style) -> None:
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2", style=style), tmp_path / "toy")
    weights = toys.read_weights(folder)
    embeddings = weights["language_model.model.embed_tokens.weight"]
    toys.write_weights(folder, weights | {"language_model.lm_head.weight": embeddings.clone()})
    assert load(folder).decoder.lm_head is None


def test_a_tied_head_that_differs_is_kept(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path / "toy")
    weights = toys.read_weights(folder)
    head = weights["language_model.model.embed_tokens.weight"] * 2
    toys.write_weights(folder, weights | {"language_model.lm_head.weight": head})
    model = load(folder)
    assert model.decoder.lm_head is not None
    assert torch.equal(model.decoder.lm_head.weight, head)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "toy")
    weights = toys.read_weights(folder)
    del weights["language_model.lm_head.weight"]
    toys.write_weights(folder, weights)
    with pytest.raises(WeightsError, match=r"missing \(1\): language_model\.lm_head\.weight"):
        load(folder)


def test_another_size_in_the_config_is_one_report(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "toy")
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, text_config=config["text_config"] | {"intermediate_size": 90, "num_hidden_layers": 4})
    with pytest.raises(WeightsError) as caught:
        load(folder)
    text = str(caught.value)
    assert "missing (9): language_model.layers.3.input_layernorm.weight" in text
    assert "wrong shape (9)" in text and "the file has [96, 64], the config asks for [90, 64]" in text


def test_computed_buffers_in_old_files_are_ignored(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama", style="published"), tmp_path / "toy")
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    toys.write_weights(folder, toys.read_weights(folder) | extra)
    load(folder)


def test_an_unknown_model_type_is_refused_and_its_code_is_not_run(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "toy")
    (folder / "modeling.py").write_text("raise SystemExit")
    edit_config(folder, model_type="strange", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(UnsupportedModelError, match=r"'strange'.*llava, idefics2.*never run"):
        load(folder)


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa", "flash_attention_2"])
def test_every_attention_name_loads(attention: str) -> None:
    load(toys.checkpoint("llava-siglip-qwen2"), attention=attention)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"attention": "flex"}, r"attention='flex'.*sdpa"), ({"quantize": "int3"}, r"quantize='int3'.*int8")],
)
def test_unknown_options_are_refused(options: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        load(toys.checkpoint("llava-siglip-qwen2"), **options)


def test_checkpoint_dtype_is_the_configs_or_that_of_the_weights(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2", dtype="bfloat16"), tmp_path / "toy")
    assert checkpoint_dtype(CheckpointFiles.read(folder)) is torch.bfloat16
    edit_config(folder, dtype="float16")
    assert checkpoint_dtype(CheckpointFiles.read(folder)) is torch.float16
    edit_config(folder, dtype=None)
    assert checkpoint_dtype(CheckpointFiles.read(folder)) is torch.bfloat16


def test_pictures_the_tower_cannot_take_are_refused() -> None:
    llava, idefics2 = load(toys.checkpoint("llava-clip-llama")), load(toys.checkpoint("idefics2"))

    def image(height: int, width: int) -> ImageInput:
        return ImageInput(np.zeros((3, height, width), np.float32), 5, "digest")

    with pytest.raises(UnsupportedModelError, match=r"\(30, 30\).*\(24, 24\)"):
        llava.encode_images([image(30, 30)])
    with pytest.raises(UnsupportedModelError, match="no whole patch"):
        idefics2.encode_images([image(6, 30)])
    with pytest.raises(UnsupportedModelError, match="larger than 56"):
        idefics2.encode_images([image(63, 30)])
    assert llava.encode_images([]) == idefics2.encode_images([]) == []
