"""Whole models in int8: what is replaced, what stays, and how close the answers are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from behold.checkpoint.files import CheckpointFiles
from behold.errors import OptionError
from behold.models.base import VisionLanguageModel
from behold.models.load import load_model
from behold.nn.attention import AttentionPlan, PlainCache
from behold.quant.apply import quantize_
from behold.quant.linear import Int8Linear
from behold.quant.schemes import SCHEMES, find_scheme
from tests import toys

TOYS = ("llava-clip-llama", "llava-siglip-qwen2", "idefics2")


def load(name: str, quantize: str | None = None, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    files = CheckpointFiles.read(toys.checkpoint(name))
    return load_model(files, device=torch.device("cpu"), dtype=dtype, quantize=quantize, progress=False)


@torch.inference_mode()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    ids = torch.arange(20) % 100 + 3
    view = PlainCache(AttentionPlan((20,), (0,), (0,)))
    return model.logits(model.hidden(model.embed(ids), torch.arange(20), view))


@pytest.mark.parametrize("name", TOYS)
def test_every_linear_layer_but_the_head_is_replaced(name: str) -> None:
    full, small = dict(load(name).named_modules()), dict(load(name, "int8").named_modules())
    linears = {key for key, module in full.items() if isinstance(module, nn.Linear)}
    replaced = {key for key, module in small.items() if isinstance(module, Int8Linear)}
    assert linears - replaced == {key for key in linears if key.endswith("lm_head")}
    assert replaced <= linears
    parts = {key.split(".")[0] for key in replaced}
    assert len(parts) == 3, "tower, connector and decoder"


@pytest.mark.parametrize("name", TOYS)
def test_answers_stay_close(name: str) -> None:
    full, small = logits(load(name)), logits(load(name, "int8"))
    assert float(torch.cosine_similarity(full, small, dim=-1).min()) > 0.995
    assert float(torch.cosine_similarity(full.flatten(), small.flatten(), dim=0)) > 0.999
    assert not torch.equal(full, small)


@pytest.mark.parametrize("name", TOYS)
def test_quantising_while_loading_is_quantising_afterwards(name: str) -> None:
    model = load(name)
    assert quantize_(model, "int8") is model
    assert torch.equal(logits(model), logits(load(name, "int8")))


def test_a_quantised_model_reports_its_type_and_runs_in_it() -> None:
    model = load("llava-siglip-qwen2", "int8", torch.bfloat16)
    assert model.dtype is torch.bfloat16
    assert logits(model).dtype is torch.bfloat16


def test_layers_can_be_left_out() -> None:
    model = load("llava-clip-llama")
    quantize_(model, "int8", skip=("down_proj",))
    kept = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kept == {"down_proj", "lm_head"}


@pytest.mark.parametrize("name", ["int4", "float8", "", "INT8"])
def test_other_schemes_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=rf"quantize='{name}'.*{', '.join(SCHEMES)}"):
        find_scheme(name)
    with pytest.raises(OptionError, match="int8"):
        quantize_(nn.Linear(2, 2), name)
