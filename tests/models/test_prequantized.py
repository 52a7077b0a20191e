"""Checkpoints that arrive quantized answer as the float checkpoint of the same values does."""

from __future__ import annotations

import functools
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import behold
from behold.checkpoint.files import CheckpointFiles
from behold.checkpoint.prequantized.formats import read_prequantized
from behold.checkpoint.rename import RenameRules
from behold.checkpoint.weights import load_weights, stored_tensors
from behold.errors import UnsupportedModelError, WeightsError
from behold.models.base import VisionLanguageModel
from behold.models.load import load_model
from behold.quant.linear import Int8Linear
from tests import toys
from tests.checkpoint.prequantized import packing

TEXT = r"(text_model|language_model).*layers.*proj\.weight"
LINEAR = r"(layers\.\d+\.(mlp|self_attn)\.|multi_modal_projector|connector\.modality).*\.weight"
LAYER = "language_model.model.layers.1.mlp.up_proj"
part = functools.partial
FORMATS: dict[str, tuple[Callable[..., packing.Packed], str]] = {
    "gptq": (packing.gptq, TEXT),
    "gptq-order": (part(packing.gptq, bits=8, order=True), TEXT),
    "awq": (packing.awq, TEXT),
    "bnb8": (packing.bnb8, LINEAR),
    "bnb4": (part(packing.bnb4, nested=True), LINEAR),
    "packed": (packing.compressed, TEXT),
    "packed-8": (part(packing.compressed, bits=8, group=None, symmetric=False), LINEAR),
    "int": (packing.compressed_int, TEXT),
    "fp8": (packing.fp8, LINEAR),
}


def quantized(
    source: Path, folder: Path, pack: Callable[..., packing.Packed], which: str, **config: Any
) -> tuple[Path, Path]:
    """(the toy with its weights named `which` packed, the same values as floats)."""
    packed, plain = toys.copy(source, folder / "packed"), toys.copy(source, folder / "plain")
    stored, floats = {}, {}
    for name, weight in toys.read_weights(source).items():
        layer = name.removesuffix(".weight")
        if not re.search(which, name):
            stored[name] = floats[name] = weight
            continue
        result = pack(weight.numpy())
        stored |= {f"{layer}.{ending}": tensor for ending, tensor in result.parts.items()}
        floats[name] = result.expected
        announced = result.config
    toys.write_weights(packed, stored)
    toys.write_weights(plain, floats)
    edit_config(packed, quantization_config=announced | config)
    return packed, plain


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def load(folder: Path, **options: Any) -> VisionLanguageModel:
    settings: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "progress": False}
    settings |= {"quantize": "full"} | options
    return load_model(CheckpointFiles.read(folder), **settings)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=3e-7, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", FORMATS)
def test_answers_are_those_of_the_float_checkpoint(tmp_path: Path, name: str) -> None:
    packed, plain = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS[name])
    model = load(packed)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, load(plain))
    answers = [
        behold.load(folder, quantize="full").ask(toys.picture(), "What is this?", max_new_tokens=12)
        for folder in (packed, plain)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("name", "toy", "style"),
    [("awq", "idefics2", "saved"), ("bnb4", "idefics2", "published"), ("packed-8", "llava-clip-llama", "published")],
)
def test_other_families_and_spellings(tmp_path: Path, name: str, toy: str, style: toys.Style) -> None:
    packed, plain = quantized(toys.checkpoint(toy, style=style), tmp_path, *FORMATS[name])
    toys.shard(packed, 3)  # the parts of one weight need not lie in one file
    assert_same(load(packed), load(plain))


@pytest.mark.parametrize("name", FORMATS)
def test_what_arrives_small_stays_small(tmp_path: Path, name: str) -> None:
    """On a CPU, without a word about it: the layers that came packed, and no others, as int8."""
    packed, plain = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS[name])
    vlm, full = behold.load(packed), load(plain)
    small = {layer for layer, module in vlm.model.named_modules() if isinstance(module, Int8Linear)}
    linears = {layer for layer, module in full.named_modules() if isinstance(module, nn.Linear)}
    assert small == {layer for layer in linears if re.search(FORMATS[name][1], f"{layer}.weight")}
    report = vlm.quantization_report()
    assert {layer.name for layer in report.layers} == small and not report.fallbacks
    assert all(layer.bytes_before < full.get_submodule(layer.name).weight.nbytes / 2 for layer in report.layers)
    most = 1e-6 if name == "bnb8" else 0.012  # those integers are ours
    assert max(layer.error for layer in report.layers) < most
    assert len(vlm.ask(toys.picture(), "What is this?", max_new_tokens=4)) > 0


def test_what_arrived_small_is_kept_for_the_next_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path / "kept"))
    packed, _ = quantized(toys.checkpoint("idefics2"), tmp_path, *FORMATS["awq"])
    first, second = (load(packed, quantize=None, cache_limit="1 GB") for _ in range(2))
    assert first.quantized_layers == second.quantized_layers
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert len(list((tmp_path / "kept" / "quantized").iterdir())) == 1
    assert not any(isinstance(module, Int8Linear) for module in load(packed).modules()), "full"


@pytest.mark.parametrize("name", ["gptq", "bnb8"])
def test_our_own_quantization_takes_them_as_any_weight(tmp_path: Path, name: str) -> None:
    packed, plain = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS[name])
    ours, theirs = load(packed, quantize="int8"), load(plain, quantize="int8")
    assert any(isinstance(module, Int8Linear) for module in ours.modules())
    for module, other in zip(ours.modules(), theirs.modules(), strict=True):
        if isinstance(module, Int8Linear):
            # a float that differs in its last bit may round to the neighbouring integer
            step = module.scale[:, None] * 1.001
            assert bool(((module.dequantized() - other.dequantized()).abs() <= step).all())


def test_the_type_asked_for_is_the_type_they_have(tmp_path: Path) -> None:
    packed, _ = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS["gptq"])
    assert {parameter.dtype for parameter in load(packed, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_one_weight_is_in_memory_at_a_time(tmp_path: Path) -> None:
    """What a hook replaced is gone before the next one is decoded."""
    packed = packing.bnb8(torch.ones(8, 8).numpy())
    parts = {f"{i}.{ending}": tensor.clone() for i in range(4) for ending, tensor in packed.parts.items()}
    toys.write_weights(tmp_path, parts)
    arrived = read_prequantized({"quantization_config": packed.config})
    assert arrived is not None
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    decoded: list[weakref.ref[torch.Tensor]] = []

    class Finished:
        def takes(self, name: str) -> bool:
            return True

        def __call__(self, name: str, layer: nn.Module, weight: object) -> None:
            assert [ref() for ref in decoded] == [None] * len(decoded)
            decoded.append(weakref.ref(layer.weight))
            module[int(name)] = nn.Identity()

    stored = arrived.gather(stored_tensors(tmp_path))
    rules = RenameRules()
    load_weights(
        module, tmp_path, rules, device=torch.device("cpu"), dtype=torch.float32, finished=Finished(), stored=stored
    )
    assert len(decoded) == 4


# --- the head ----------------------------------------------------------------------------------------------------


def test_a_packed_head_of_its_own_is_kept(tmp_path: Path) -> None:
    """A tied toy: a head that is packed cannot be the embeddings, so it is used."""
    source = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path / "toy")
    weights = toys.read_weights(source)
    head = weights["language_model.model.embed_tokens.weight"] * 2
    toys.write_weights(source, weights | {"language_model.lm_head.weight": head})
    packed, plain = quantized(source, tmp_path, packing.bnb8, r"lm_head\.weight")
    model = load(packed)
    assert model.decoder.lm_head is not None
    assert_same(model, load(plain))


# --- strictness --------------------------------------------------------------------------------------------------


def test_zeros_in_place_of_biases_that_the_model_does_not_have(tmp_path: Path) -> None:
    def with_bias(value: float, weight: Any) -> packing.Packed:
        result = packing.gptq(weight)
        result.parts["bias"] = torch.full((len(weight),), value).half()
        return result

    source = toys.checkpoint("llava-clip-llama")
    packed, plain = quantized(source, tmp_path, part(with_bias, 0.0), TEXT)
    assert_same(load(packed), load(plain))
    packed, _ = quantized(source, tmp_path / "other", part(with_bias, 0.5), TEXT)
    with pytest.raises(WeightsError, match=r"unexpected \(21\): language_model.model.layers.0.mlp.down_proj.bias"):
        load(packed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop(f"{LAYER}.scales"), rf"{LAYER}.weight: its scales is missing"),
        (lambda weights: weights.update({"extra.scales": torch.ones(2)}), r"unexpected \(1\): extra.scales"),
        (lambda weights: [weights.pop(f"{LAYER}.{p}") for p in ("qweight", "qzeros", "scales", "g_idx")],
         r"missing \(1\): language_model.layers.1.mlp.up_proj.weight"),
        (lambda weights: weights.update({f"{LAYER}.weight": torch.ones(2, 2)}), r"both plain and packed"),
    ],
)  # fmt: skip
def test_the_report_is_as_strict_as_ever(tmp_path: Path, change: Callable[[Any], Any], says: str) -> None:
    packed, _ = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS["gptq"])
    weights = toys.read_weights(packed)
    change(weights)
    toys.write_weights(packed, weights)
    with pytest.raises(WeightsError, match=says):
        load(packed)


def test_a_layer_of_another_size(tmp_path: Path) -> None:
    packed, _ = quantized(toys.checkpoint("llava-siglip-qwen2"), tmp_path, *FORMATS["bnb4"])
    weights = toys.read_weights(packed)
    wrong = packing.bnb4(torch.ones(64, 64).numpy(), nested=True)
    weights |= {f"{LAYER}.{ending}": tensor for ending, tensor in wrong.parts.items()}
    toys.write_weights(packed, weights)
    with pytest.raises(WeightsError, match=rf"{LAYER}.weight: the file has \[64, 64\], the config asks for \[96, 64\]"):
        load(packed)


def test_what_is_not_supported_says_what_to_do(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-siglip-qwen2"), tmp_path / "toy")
    edit_config(folder, quantization_config={"quant_method": "hqq"})
    with pytest.raises(UnsupportedModelError, match=r"quant_method='hqq'.*quantize=\"int8\""):
        behold.load(folder)
