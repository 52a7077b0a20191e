"""Whole models in int8 and int4: how layers are replaced, and the gate that each has to pass."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from behold.checkpoint.files import CheckpointFiles
from behold.errors import OptionError
from behold.models.base import VisionLanguageModel
from behold.models.config import read_text_config
from behold.models.decoder import Decoder
from behold.models.load import load_model
from behold.nn.attention import AttentionPlan, PlainCache
from behold.quant import apply
from behold.quant.apply import full_product, probe_error, quantize_, relative_error, round_layer
from behold.quant.linear import Int8Linear, QuantizedLinear
from behold.quant.schemes import FULL, SCHEMES, find_scheme
from tests import toys

TOYS = ("llava-clip-llama", "llava-siglip-qwen2", "idefics2")
BOTH = ("int8", "int4")


def load(name: str, quantize: str | None = None, dtype: torch.dtype = torch.float32) -> VisionLanguageModel:
    files = CheckpointFiles.read(toys.checkpoint(name))
    return load_model(files, device=torch.device("cpu"), dtype=dtype, quantize=quantize, progress=False)


loaded = functools.cache(load)


@torch.inference_mode()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    ids = torch.arange(20) % 100 + 3
    view = PlainCache(AttentionPlan((20,), (0,), (0,)))
    return model.logits(model.hidden(model.embed(ids), torch.arange(20), view))


def twin_and_answer(tied: bool) -> tuple[Decoder, Callable[[], torch.Tensor]]:
    """A decoder of four layers, 256 wide, with the weights that torch gives to new layers, and its logits of 64."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = read_text_config({**sizes, "vocab_size": 500}, default_type="llama", tied=tied)
    torch.manual_seed(0)
    twin = Decoder(config).requires_grad_(False)
    for name, parameter in twin.named_parameters():
        wide = 1.0 if "embed" in name else (3 * parameter.shape[-1]) ** -0.5
        parameter.fill_(1.0) if "norm" in name else parameter.normal_(0, wide)
    ids, plan = torch.arange(64) * 7 % 500, AttentionPlan((64,), (0,), (0,))
    return twin, lambda: twin.logits(twin(twin.embed_tokens(ids), torch.arange(64), PlainCache(plan)))


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize("name", TOYS)
def test_quantising_while_loading_is_quantising_afterwards(name: str, scheme: str) -> None:
    model = load(name)
    layers = quantize_(model, scheme, decoder=model.decoder)
    assert torch.equal(logits(model), logits(loaded(name, scheme)))
    assert not torch.equal(logits(model), logits(loaded(name)))
    assert {layer.name: layer for layer in layers} == {
        layer.name: layer for layer in loaded(name, scheme).quantized_layers
    }


def test_a_quantised_model_reports_its_type_and_runs_in_it() -> None:
    model = load("llava-siglip-qwen2", "int8", torch.bfloat16)
    assert model.dtype is torch.bfloat16
    assert model.embed(torch.tensor([3, 4])).dtype is torch.bfloat16
    assert logits(model).dtype is torch.bfloat16


def test_layers_can_be_left_out() -> None:
    model = load("llava-clip-llama")
    quantize_(model, "int8", decoder=model.decoder, skip=("down_proj",))
    kept = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert kept == {"down_proj"}


@pytest.mark.parametrize("name", ["int3", "float16", "", "INT8"])
def test_other_schemes_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=rf"quantize='{name}'.*{', '.join(SCHEMES)}"):
        find_scheme(name)
    with pytest.raises(OptionError, match="int8"):
        quantize_(nn.Linear(2, 2), name)


# --- the gate ----------------------------------------------------------------------------------------------------


def linear(*, spread: float = 0.0, bias: bool = True) -> nn.Linear:
    """(256 to 64) gaussian weights; one column in 32 of them e^`spread` times as large."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 64, bias=bias).requires_grad_(False)
    layer.weight.normal_()
    layer.weight[:, ::32] *= float(torch.tensor(spread).exp())
    return layer


@pytest.mark.parametrize("scheme", BOTH)
def test_the_probe_sees_the_rounding_of_the_weights_alone(scheme: str) -> None:
    full = linear()
    small, layer = round_layer("a.b", full, scheme)
    assert isinstance(small, QuantizedLinear)
    off = float((small.dequantized() - full.weight).norm() / full.weight.norm())
    assert layer.error == pytest.approx(off, rel=0.15)
    assert (layer.asked, layer.scheme, layer.refused) == (scheme, scheme, {})
    assert layer.bytes_after == small.n_bytes < layer.bytes_before == full.weight.nbytes + 256


def test_a_layer_over_its_gate_is_stored_more_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    full = linear()
    monkeypatch.setitem(apply.GATES, "int4", 0.01)
    small, layer = round_layer("a.b", full, "int4")
    assert type(small) is Int8Linear
    assert (layer.asked, layer.scheme) == ("int4", "int8") and layer.refused["int4"] > 0.01 > layer.error
    monkeypatch.setitem(apply.GATES, "int8", 0.0)
    small, layer = round_layer("a.b", full, "int4")
    assert small is None
    assert (layer.scheme, layer.error, set(layer.refused)) == (FULL, 0.0, {"int4", "int8"})
    assert layer.bytes_after == layer.bytes_before


def test_a_few_huge_weights_in_every_row_are_over_the_gate() -> None:
    full = linear()
    full.weight[:, 0] = 1000.0
    assert probe_error(Int8Linear.of(full), full.weight, full.bias) < 0.02, "they are all there is to its output"
    full.weight.normal_()
    full.weight[torch.arange(64), torch.arange(64)] = 30.0
    assert round_layer("a", full, "int8")[1].scheme == FULL


@pytest.mark.parametrize("scheme", [*BOTH, "float8"])
@pytest.mark.parametrize("times", [50, 1, 1 / 50])
def test_a_layer_whose_norm_makes_channels_loud_is_tried_with_such(scheme: str, times: float) -> None:
    """The model computes the same, but weights far smaller or larger than their row's others meet those channels."""
    model = load("llava-siglip-qwen2")
    block = model.decoder.layers[1]
    patches = model.get_submodule("vision_tower.encoder.layers.0")
    pairs = [
        (block.input_layernorm, [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]),
        (block.post_attention_layernorm, [block.mlp.gate_proj, block.mlp.up_proj]),
        (patches.get_submodule("layer_norm2"), [patches.get_submodule("mlp.fc1")]),
    ]
    for norm, layers in pairs:
        norm.weight[:3] *= times
        for layer in layers:
            layer.weight[:, :3] /= times
    changed = {layer for _, layers in pairs for layer in layers}
    wanted = {name for name, module in model.named_modules() if module in changed}
    fallen = {layer.name for layer in quantize_(model, scheme, decoder=model.decoder) if layer.scheme != layer.asked}
    assert fallen == (wanted if times != 1 and scheme != "float8" else set()) and len(wanted) == 6


def test_a_norm_is_filled_before_the_layers_that_it_feeds() -> None:
    names = [name for name, _ in loaded("llava-siglip-qwen2").named_parameters() if ".layers.0." in name]
    for inside, norm, layer in (
        ("language_model", "input_layernorm", "q_proj"),
        ("language_model", "post_attention_layernorm", "gate_proj"),
        ("vision_tower", "layer_norm1", "q_proj"),
        ("vision_tower", "layer_norm2", "fc1"),
    ):
        at, after = (
            next(number for number, name in enumerate(names) if inside in name and f"{part}.weight" in name)
            for part in (norm, layer)
        )
        assert at < after


def test_a_model_with_layers_over_the_gate_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(apply.GATES, "int8", 0.0)
    model = load("llava-siglip-qwen2", "int8", torch.bfloat16)
    assert {layer.scheme for layer in model.quantized_layers} == {FULL}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(load("llava-siglip-qwen2", dtype=torch.bfloat16)))


def test_products_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "_PIECE", 40)
    x, weight = torch.randn(3, 16), torch.randn(7, 16).bfloat16()
    torch.testing.assert_close(full_product(x, weight), x @ weight.float().T)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
