"""Steps that are replayed: the same hidden states, bit for bit, whoever joins and leaves meanwhile."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import behold
from behold.engine import replay
from behold.engine.engine import Engine
from behold.engine.options import EngineOptions
from behold.engine.runner import Runner
from behold.kernels import native
from behold.kernels.replay import Tape
from behold.nn.norms import RMSNorm
from behold.quant.head import Int8Head
from behold.types import Prompt, SamplingParams
from tests import toys

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="no compiled kernels here")
NAME = "llava-siglip-qwen2"
SCHEMES = ["int8", "int4", None]


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Every tape, each time that it is played."""
    tapes: list[Tape] = []
    play = Tape.play
    monkeypatch.setattr(Tape, "play", lambda tape: (tapes.append(tape), play(tape)))
    monkeypatch.setattr("behold.kernels.linear_f32.MIN_WEIGHTS", 1)  # so that a toy's layers take part
    return tapes


def model(scheme: str | None = "int8") -> Any:
    return behold.load(toys.checkpoint(NAME), quantize=scheme).model


def prompt(seed: int, length: int) -> Prompt:
    return Prompt(tuple(torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()))


def answers(model: Any, *, lookup_rows: int = 0) -> list[tuple[int, ...]]:
    """Three that begin at different times and end at different times; one outgrows its row."""
    engine = Engine(model, tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=lookup_rows))
    plan = {0: (prompt(1, 9), 90), 7: (prompt(2, 30), 12), 11: (prompt(1, 9), 20)}
    requests = []
    for step in range(400):
        if step in plan:
            asked, new = plan[step]
            requests.append(engine.submit(asked, SamplingParams(max_new_tokens=new, ignore_eos=True)))
        engine.step()
        if step > max(plan) and all(request.done for request in requests):
            break
    engine.check()
    return [tuple(request.sequence.ids) for request in requests]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lookup_rows", [0, 8])
def test_replayed_or_not(
    head: bool, scheme: str | None, lookup_rows: int, played: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    if head:
        monkeypatch.setattr("behold.quant.apply.LEAST_WEIGHTS", 1)  # the likeliest id is part of what is replayed
    toy = model(scheme)
    found = answers(toy, lookup_rows=lookup_rows)
    assert len(played) > (40 if lookup_rows == 0 else 5)
    played.clear()
    monkeypatch.setattr(replay, "FEW_ROWS", 0)
    assert answers(toy, lookup_rows=lookup_rows) == found and not played


def test_the_next_answer_is_replayed_from_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    record = replay.Replay._record
    monkeypatch.setattr(replay.Replay, "_record", lambda *given: (recorded.append(1), record(*given))[1])
    engine = Engine(model(), tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
    for seed in range(3):
        engine.complete([(prompt(seed, 9 + 20 * seed), SamplingParams(max_new_tokens=8, ignore_eos=True))])
    assert len(recorded) == 1, "whatever row it has"


class Doubled(RMSNorm):
    """What no kernel does."""

    def can_join(self, x: Tensor) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * 2
        return out


def test_one_word_over_and_over_is_replayed(played: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("behold.engine.sampler.likeliest", lambda logits: [7] * len(logits))
    engine = Engine(model(), tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
    engine.complete([(prompt(1, 9), SamplingParams(max_new_tokens=12, ignore_eos=True))])
    assert len(played) == 10, "all but the prompt and the step that is written down; the one that is tried counts"


def test_what_the_kernels_do_not_do_is_not_lost(played: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    toy = model()
    toy.decoder.layers[1].input_layernorm.__class__ = Doubled
    found = answers(toy)
    rows = 3
    assert 1 <= len(played) <= rows, "a try for each number of rows, and no more"
    monkeypatch.setattr(replay, "FEW_ROWS", 0)
    assert answers(toy) == found


def test_a_step_that_comes_again_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = model()
    toy.decoder.layers[1].input_layernorm.__class__ = Doubled
    asked = [(1, 1), (1, 1), (1, 1), (2, 12), (3, 12)]  # seeds of prompts, and new tokens

    def all_answers() -> list[tuple[int, ...]]:
        engine = Engine(toy, tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
        params = [SamplingParams(max_new_tokens=new, ignore_eos=True) for _, new in asked]
        return [engine.complete([(prompt(seed, 9), own)])[0].ids for (seed, _), own in zip(asked, params, strict=True)]

    found = all_answers()
    monkeypatch.setattr(replay, "FEW_ROWS", 0)
    assert all_answers() == found


def test_a_likeliest_id_that_is_not_found_is_looked_for(played: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("behold.quant.apply.LEAST_WEIGHTS", 1)
    toy = model("int4")
    wanted = answers(toy)
    played.clear()
    toy.decoder.embed_tokens.layer.errors.mul_(0.01)  # which is less than they are
    by_logits: list[int] = []
    choose = Runner._choose_by_logits
    monkeypatch.setattr(Runner, "_choose_by_logits", lambda *given: (by_logits.append(1), choose(*given))[1])
    assert answers(toy) == wanted and len(played) > 40 and len(by_logits) > 40


class Shifted(Int8Head):
    """Its likeliest id goes through torch."""

    def best(self, x: Tensor) -> Tensor | None:
        found = super().best(x)
        return None if found is None else (found + 1) % self.out_features


def test_a_likeliest_id_that_no_kernel_gives_is_not_replayed(
    played: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("behold.quant.apply.LEAST_WEIGHTS", 1)
    toy = model()
    toy.decoder.embed_tokens.layer.__class__ = Shifted
    found = answers(toy)
    assert 1 <= len(played) <= 3, "a try for each number of rows, and no more"
    monkeypatch.setattr(replay, "FEW_ROWS", 0)
    assert answers(toy) == found


@torch.inference_mode()
def test_rows_of_a_table_that_look_the_same_prove_nothing(played: list[Tape]) -> None:
    toy = model(None)
    table = toy.decoder.embed_tokens.weight
    table.copy_(table[0].clone())
    engine = Engine(toy, tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
    engine.complete([(prompt(1, 9), SamplingParams(max_new_tokens=12, ignore_eos=True))])
    assert not played


def test_a_hook_is_called_for_every_token() -> None:
    toy = model()
    engine = Engine(toy, tokenizer=None, eos_token_ids=frozenset(), options=EngineOptions(lookup_rows=0))
    engine.submit(prompt(1, 9), SamplingParams(max_new_tokens=30, ignore_eos=True))
    for _ in range(8):
        engine.step()
    seen: list[int] = []
    handle = toy.decoder.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(5):
        engine.step()
    handle.remove()
    engine.step()
    assert len(seen) == 5
    toy.decoder.layers[1].register_forward_pre_hook(lambda *_: seen.append(1))
    engine.step()
    assert len(seen) == 6


def test_no_row_is_held(played: list[Tape]) -> None:
    options = EngineOptions(lookup_rows=0, prefix_cache_bytes=0)
    engine = Engine(model(), tokenizer=None, eos_token_ids=frozenset(), options=options)
    request = engine.submit(prompt(1, 9), SamplingParams(max_new_tokens=20, ignore_eos=True))
    for _ in range(10):
        engine.step()
    (row,) = (weakref.ref(row.numbers) for row in engine._runner.cache.rows.values())
    while not request.done:
        engine.step()
    engine.submit(prompt(2, 5), SamplingParams(max_new_tokens=1, ignore_eos=True))
    engine.step()
    gc.collect()
    assert row() is None and played
