"""The head that finds the largest of its outputs: always the one that all of them would give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import behold
from behold.engine.engine import Engine
from behold.engine.options import EngineOptions
from behold.engine.runner import Runner
from behold.kernels import native
from behold.models.base import UNKNOWN
from behold.quant import apply, head
from behold.quant.head import MOST_ROWS, Int8Head
from behold.quant.linear import Int4Linear, Int8Linear, QuantizedEmbedding
from behold.types import Prompt, SamplingParams
from tests import toys

needs_kernels = pytest.mark.skipif(native.LIBRARY is None, reason="no compiled kernels here")
NAMES = ["llava-siglip-qwen2", "idefics2"]  # a table that serves as head, and a head of its own


def made(n: int, k: int, *, bias: bool = False, loud: int = 0) -> Int8Head:
    """loud: of so many inputs the weights are 30 times larger."""
    linear = nn.Linear(k, n, bias=bias)
    with torch.no_grad():
        linear.weight.normal_()
        linear.weight[:, :loud] *= 30
    return Int8Head.of(linear)


def largest(layer: Int8Linear, x: Tensor) -> Tensor:
    """By all outputs; numpy's is the first of several that are equal."""
    return torch.from_numpy(layer(x).numpy().argmax(-1))


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, MOST_ROWS), st.integers(1, 200), st.sampled_from([1, 31, 33, 500, 2100])),
    bias=st.booleans(),
    loud=st.integers(0, 3),
    spikes=st.booleans(),
    seed=st.integers(0, 1000),
)
@torch.inference_mode()
def test_it_is_the_largest_of_all(shape: tuple[int, int, int], bias: bool, loud: int, spikes: bool, seed: int) -> None:
    torch.manual_seed(seed)
    rows, k, n = shape
    layer, x = made(n, k, bias=bias, loud=loud), torch.randn(rows, k)
    if spikes:
        x[:, 0] *= 200
    found = layer.best(x)
    assert found is not None
    assert bool(((found == largest(layer, x)) | (found == UNKNOWN)).all())


@needs_kernels
@torch.inference_mode()
def test_few_are_computed_and_they_suffice() -> None:
    torch.manual_seed(0)
    layer = made(20_000, 256)
    for _ in range(20):
        x = torch.randn(2, 256)
        found = layer.best(x)
        assert found is not None and torch.equal(found, largest(layer, x))


@needs_kernels
@torch.inference_mode()
def test_the_first_of_equal_outputs() -> None:
    linear = nn.Linear(64, 300, bias=False)
    linear.weight.copy_(torch.randn(100, 64).repeat(3, 1))
    layer, x = Int8Head.of(linear), torch.randn(3, 64)
    found = layer.best(x)
    assert found is not None and torch.equal(found, largest(layer, x)) and int(found.max()) < 100
    zeros = layer.best(torch.zeros(1, 64))
    assert zeros is not None and zeros.tolist() == [0]


@needs_kernels
@torch.inference_mode()
def test_what_is_further_off_than_was_said_is_noticed() -> None:
    torch.manual_seed(0)
    layer, x = made(3000, 128), torch.randn(1, 128)
    found = layer.best(x)
    assert found is not None and found.tolist() != [UNKNOWN]
    layer.errors.mul_(0.05)
    for strange in (x, torch.full((1, 128), torch.nan)):
        found = layer.best(strange)
        assert found is not None and found.tolist() == [UNKNOWN]


@torch.inference_mode()
def test_where_all_outputs_are_as_soon_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(200, 64)
    assert layer.best(torch.randn(MOST_ROWS + 1, 64)) is None
    assert layer.best(torch.randn(0, 64)) is None
    assert layer.best(torch.randn(1, 64, dtype=torch.bfloat16)) is None
    handle = layer.register_forward_hook(lambda *_: None)
    assert layer.best(torch.randn(1, 64)) is None, "somebody wants to see the outputs"
    handle.remove()
    monkeypatch.setattr(native, "LIBRARY", None)
    assert layer.best(torch.randn(1, 64)) is None


@torch.inference_mode()
def test_it_is_the_int8_layer_and_the_int4_layer() -> None:
    linear, x = nn.Linear(96, 150), torch.randn(5, 96)
    layer, rough = Int8Head.of(linear), Int4Linear.of(linear)
    assert torch.equal(layer(x), Int8Linear.of(linear)(x))
    assert all(
        torch.equal(tensor, layer.get_buffer(f"rough_{name}"))
        for name, tensor in rough.state().items()
        if name != "bias"
    )
    assert layer.n_bytes == Int8Linear.of(linear).n_bytes + rough.n_bytes - 150 * 4 + layer.errors.nbytes
    off = (rough.dequantized() - layer.dequantized()).norm(dim=1)
    assert bool((layer.errors > off / 96**0.5 * head.WIDTH * 0.999).all())


@needs_kernels
@torch.inference_mode()
def test_a_copy_and_another_device_begin_anew() -> None:
    layer, x = made(300, 64), torch.randn(1, 64)
    found = layer.best(x)
    other = copy.deepcopy(layer)
    again = other.best(x)
    assert found is not None and again is not None and torch.equal(found, again)
    assert other._rough is not layer._rough


# --- in a model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "LEAST_WEIGHTS", 1)


def head_of(decoder: Any) -> nn.Module:
    found: nn.Module = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    return found.layer if isinstance(found, QuantizedEmbedding) else found


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_answers_are_those_of_all_logits(
    name: str, scheme: str, any_size: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path))
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "1GB")
    asked: list[int] = []
    best = Int8Head.best
    monkeypatch.setattr(Int8Head, "best", lambda self, x: (asked.append(len(x)), best(self, x))[1])
    for _ in range(2):  # quantized, and mapped from what was kept
        model = behold.load(toys.checkpoint(name), quantize=scheme, device="cpu").model
        assert isinstance(head_of(model.decoder), Int8Head)
        assert sum(isinstance(module, Int8Head) for module in model.modules()) == 1
        found = answers(model)
        assert asked
        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "best", lambda self, hidden: None)
            assert answers(model) == found and not asked


def answers(model: Any) -> list[tuple[int, ...]]:
    """Several at once, one of them sampled from its beginning; and alone, with guesses."""
    prompts = [Prompt(tuple(range(5 + i, 20 + 3 * i))) for i in range(3)]
    greedy = SamplingParams(max_new_tokens=12, ignore_eos=True)
    drawn = SamplingParams(max_new_tokens=6, ignore_eos=True, temperature=1.0, seed=1)
    found: list[tuple[int, ...]] = []
    for lookup_rows in (0, 4):
        options = EngineOptions(lookup_rows=lookup_rows, prefix_cache_bytes=0)
        engine = Engine(model, tokenizer=None, eos_token_ids=frozenset(), options=options)
        requests = [(prompts[0], greedy), (prompts[1], greedy), (prompts[2], drawn)]
        found += [answer.ids for answer in engine.complete(requests)]
        found += [answer.ids for answer in engine.complete(requests[:1])]
    return found


@needs_kernels
def test_only_what_asks_for_no_logits_goes_without(any_size: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = behold.load(toys.checkpoint(NAMES[0]), quantize="int8", device="cpu").model
    by_logits: list[int] = []
    choose = Runner._choose_by_logits
    monkeypatch.setattr(Runner, "_choose_by_logits", lambda *given: (by_logits.append(1), choose(*given))[1])
    for params, expected in (
        (SamplingParams(max_new_tokens=3), 0),
        (SamplingParams(max_new_tokens=3, logprobs=1), 3),
        (SamplingParams(max_new_tokens=3, temperature=1.0), 3),
        (SamplingParams(max_new_tokens=3, repetition_penalty=1.1), 3),
        (SamplingParams(max_new_tokens=3, num_beams=2), 3),
        (SamplingParams(max_new_tokens=3, min_new_tokens=3), 0),
    ):
        engine = Engine(model, tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
        engine.complete([(Prompt((5, 6, 7)), params)])
        assert len(by_logits) == expected, params
        by_logits.clear()


@needs_kernels
@pytest.mark.usefixtures("any_size")
def test_an_end_that_may_not_come_yet_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = behold.load(toys.checkpoint(NAMES[0]), quantize="int8", device="cpu").model

    def answer(eos: frozenset[int], **params: int) -> tuple[int, ...]:
        engine = Engine(model, tokenizer=None, eos_token_ids=eos, options=EngineOptions(lookup_rows=0))
        return engine.complete([(Prompt((5, 6, 7)), SamplingParams(max_new_tokens=8, **params))])[0].ids

    free = answer(frozenset())
    ends = frozenset(free[2:3])
    assert len(answer(ends)) <= 3
    found = answer(ends, min_new_tokens=6)
    assert len(found) >= 6 and not ends & {*found[:5]}
    monkeypatch.setattr(Int8Head, "best", lambda self, x: None)
    assert answer(ends, min_new_tokens=6) == found


@pytest.mark.usefixtures("any_size")
def test_only_heads_of_cpus_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear(64, 200)
    for is_head, kind in ((True, Int8Head), (False, Int8Linear)):
        layer, record = apply.round_layer("lm_head", linear, "int8", head=is_head)
        assert type(layer) is kind and record.scheme == "int8" and record.bytes_after == layer.n_bytes
    monkeypatch.setattr(apply, "LEAST_WEIGHTS", head.LEAST_WEIGHTS)
    assert type(apply.round_layer("lm_head", linear, "int8", head=True)[0]) is Int8Linear
