"""float8 weights: the layer, its product in float8 beside the widened one, and whole models, all on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import behold
from behold.checkpoint.files import CheckpointFiles
from behold.errors import OptionError
from behold.models import load as loading
from behold.models.load import load_model
from behold.quant import apply, cache, float8
from behold.quant.apply import quantize_, round_layer
from behold.quant.float8 import Float8Linear, multiplies_float8, round_float8
from behold.quant.schemes import FULL
from tests import toys
from tests.quant.test_apply import load, logits, twin_and_answer

NAME = "llava-siglip-qwen2"


def linear(k: int, n: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(k + n)
    layer = nn.Linear(k, n, bias=bias).requires_grad_(False)
    layer.weight.normal_()
    return layer


def off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm())


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 5, 64), (64,), (0, 64)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    full, x = linear(64, 48), torch.randn(shape)
    found = Float8Linear.of(full)(x)
    assert (found.shape, found.dtype) == ((*shape[:-1], 48), torch.float32)
    if x.numel():
        assert off(found, full(x)) < 0.04


def test_gaussian_weights() -> None:
    full = linear(512, 256)
    assert 0.025 < off(Float8Linear.of(full).dequantized(), full.weight) < 0.028


def test_a_few_large_weights_cost_the_others_nothing() -> None:
    full = linear(256, 64)
    full.weight[torch.arange(64), torch.arange(64)] = 100.0
    others = full.weight < 100
    assert off(Float8Linear.of(full).dequantized()[others], full.weight[others]) < 0.03


@pytest.mark.parametrize(("k", "n"), [(64, 48), (33, 17), (16, 1), (1, 40), (200, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_product_in_float8_is_that_of_its_rounded_inputs(k: int, n: int, dtype: torch.dtype, rows: int) -> None:
    """Odd sides included: the matrices have sides of 16."""
    layer, x = Float8Linear.of(linear(k, n)), torch.randn(rows, k).to(dtype)
    codes, scale = round_float8(x)
    exact = (codes.double() * scale.double()[:, None]) @ layer.dequantized().double().T
    found = layer.scaled_product(x)
    assert (found.shape, found.dtype) == ((rows, n), dtype) and found.is_contiguous()
    assert layer.bias is not None
    torch.testing.assert_close(found.double(), exact + layer.bias, rtol=2**-7, atol=2**-6)
    torch.testing.assert_close(found, layer.scaled_product(torch.cat([x, x * 1000]))[:rows])


def test_the_product_in_float8_is_close_to_the_full_one() -> None:
    full, x = linear(512, 64), torch.randn(9, 512)
    layer = Float8Linear.of(full)
    assert 0.02 < off(layer.scaled_product(x), full(x)) < 0.05
    assert off(layer(x), full(x)) < 0.03, "widened, inputs are not rounded"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    layer, x = Float8Linear.of(linear(64, 16)), torch.randn(3, 64)
    for product in (layer, layer.scaled_product):
        spoilt = x.clone()
        spoilt[1, 5] = value
        found = product(spoilt)
        assert torch.equal(found[[0, 2]], product(x)[[0, 2]]) and not found[1].isfinite().any()


def test_zeros_stay_zero() -> None:
    full = linear(64, 16, bias=False)
    full.weight[3] = 0
    layer = Float8Linear.of(full)
    for product in (layer, layer.scaled_product):
        assert not product(torch.zeros(2, 64)).any() and not product(torch.randn(2, 64))[:, 3].any()


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    full, x = linear(48, 70), torch.randn(3, 48)
    whole = Float8Linear.of(full)
    expected = whole(x)
    monkeypatch.setattr(float8, "_PIECE", 48 * 32)
    parts = Float8Linear.of(full)
    assert all(torch.equal(parts.state()[name].float(), whole.state()[name].float()) for name in whole.state())
    torch.testing.assert_close(parts(x), expected)


def test_half_types_go_in_and_come_out() -> None:
    full = linear(96, 40)
    layer, x = Float8Linear.of(full), torch.randn(3, 96)
    for dtype in (torch.bfloat16, torch.float16):
        found = layer.to(dtype)(x.to(dtype))
        assert found.dtype is dtype and off(found, full(x)) < 0.04
    assert {tensor.dtype for tensor in layer.state().values()} == {torch.float8_e4m3fn, torch.float32}


def test_what_is_added_and_what_it_takes() -> None:
    layer, x, plus = Float8Linear.of(linear(64, 48)), torch.randn(3, 64), torch.randn(3, 48)
    torch.testing.assert_close(layer(x, plus), layer(x) + plus)
    assert layer.n_bytes == 64 * 48 + 4 * 48 * 2
    again = Float8Linear.from_state(layer.state(), in_features=64, out_features=48)
    assert torch.equal(again(x), layer(x)) and not layer.has_kernel


def test_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    small, layer = round_layer("a.b", linear(256, 64), "float8")
    assert isinstance(small, Float8Linear)
    assert layer.scheme == "float8" and 0.02 < layer.error < 0.03 and not layer.refused
    monkeypatch.setitem(apply.GATES, "float8", 0.0)
    small, layer = round_layer("a.b", linear(256, 64), "float8")
    assert small is None and (layer.asked, layer.scheme) == ("float8", FULL)


def test_a_cpu_has_no_units_for_it() -> None:
    assert not multiplies_float8(torch.device("cpu"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rounded_inputs", [False, True])
@torch.inference_mode()
def test_answers_of_a_random_twin_stay_close(tied: bool, rounded_inputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, answer = twin_and_answer(tied)
    full = answer()
    layers = quantize_(twin, "float8")
    assert {layer.scheme for layer in layers} == {"float8"} and isinstance(twin.lm_head, Float8Linear) != tied
    assert isinstance(twin.embed_tokens, nn.Embedding)
    if rounded_inputs:  # as on a GPU
        monkeypatch.setattr(float8, "multiplies_float8", lambda device: True)
    cosine = float(torch.cosine_similarity(full, answer(), dim=-1).min())
    assert 0.99 <= cosine < 0.9999


@pytest.mark.parametrize("name", ["llava-clip-llama", NAME, "idefics2"])
def test_whole_models(name: str) -> None:
    model = load(name, "float8")
    left = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert not left and not [key for key, _ in model.named_parameters() if key.endswith("proj.weight")]
    assert {layer.scheme for layer in model.quantized_layers} == {"float8"}
    full, small = logits(load(name)), logits(model)
    assert float(torch.cosine_similarity(full.flatten(), small.flatten(), dim=0)) > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_load_maps_what_the_first_one_kept(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path))
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "1 GB")
    first = load(NAME, "float8", dtype)
    assert [entry.scheme for entry in cache.entries()] == ["float8"]
    monkeypatch.delattr(loading, "load_weights")
    second = load(NAME, "float8", dtype)
    assert torch.equal(logits(first), logits(second)) and second.dtype is dtype
    assert second.quantized_layers == first.quantized_layers


def test_doors_and_the_report() -> None:
    assert behold.QuantoConfig(weights="float8").scheme == "float8"
    report = behold.load(toys.checkpoint(NAME), quantize="float8").quantization_report()
    assert not report.fallbacks and report.bytes_after < 0.6 * report.bytes_before
    assert all(layer.output_error is None or 0 < layer.output_error < 0.06 for layer in report.layers)


def test_devices_without_the_type_are_refused() -> None:
    files = CheckpointFiles.read(toys.checkpoint(NAME))
    with pytest.raises(OptionError, match=r"'float8' needs a CUDA device; use int8 or int4 on 'mps'"):
        load_model(files, device=torch.device("mps"), dtype=torch.float32, quantize="float8", progress=False)
