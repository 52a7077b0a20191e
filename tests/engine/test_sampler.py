"""Every processor against transformers' own, and what a draw depends on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from behold.engine import sampler as ours
from behold.engine.sampler import Sampler
from behold.engine.sequence import Sequence
from behold.types import Prompt, SamplingParams

V = 23


def scores(seed: int, *, ties: bool = False) -> Tensor:
    values = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3
    return values.round() if ties else values


def kept(values: Tensor, ids: Tensor | None) -> dict[int, float]:
    ids = torch.arange(len(values)) if ids is None else ids
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def finite(row: Tensor) -> dict[int, float]:
    return {i: value for i, value in enumerate(row.tolist()) if value != -float("inf")}


ids_lists = st.lists(st.integers(0, V + 3), min_size=1, max_size=30)


@given(seed=st.integers(0, 99), ids=ids_lists, penalty=st.sampled_from([0.7, 1.3, 2.0]))
@settings(deadline=None)
def test_repetition(seed: int, ids: list[int], penalty: float) -> None:
    row, tokens = scores(seed), torch.tensor(ids)
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(tokens[None], row[None])[0]
    assert torch.equal(ours.repetition(row, tokens, penalty), expected)


@given(seed=st.integers(0, 9), ids=st.lists(st.integers(0, 3), min_size=1, max_size=12), size=st.integers(1, 4))
@settings(deadline=None)
def test_no_repeat_ngram(seed: int, ids: list[int], size: int) -> None:
    row, tokens = scores(seed), torch.tensor(ids)
    expected = theirs.NoRepeatNGramLogitsProcessor(size)(tokens[None], row[None])[0]
    assert torch.equal(ours.no_repeat_ngram(row, tokens, size), expected)


words_lists = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=6)


@given(seed=st.integers(0, 9), ids=st.lists(st.integers(0, 4), min_size=1, max_size=8), words=words_lists)
@settings(deadline=None)
def test_bad_words(seed: int, ids: list[int], words: list[list[int]]) -> None:
    row, tokens = scores(seed), torch.tensor(ids)
    words = words if words != [[1]] else [[2]]  # theirs cannot be asked for nothing
    remaining = [word for word in words if word != [1]] or [[2]]
    expected = theirs.NoBadWordsLogitsProcessor([*words, *remaining], eos_token_id=1)(tokens[None], row[None])[0]
    mine = tuple(tuple(word) for word in [*words, *remaining])
    assert torch.equal(ours.bad_words(row, tokens, mine, frozenset({1})), expected)


def test_frequency_and_presence() -> None:
    row, answer = torch.zeros(5), torch.tensor([2, 2, 4])
    changed = ours.frequency(row, answer, 0.5, 0.25)
    assert changed.tolist() == [0, 0, -1.0, 0, -0.75]


@given(
    seed=st.integers(0, 999),
    ties=st.booleans(),
    k=st.sampled_from([None, 1, 3, 10, 99]),
    p=st.sampled_from([None, 0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=300)
def test_filters_keep_what_transformers_keeps(
    seed: int, ties: bool, k: int | None, p: float | None, min_p: float | None
) -> None:
    row = scores(seed, ties=ties)
    chain = theirs.LogitsProcessorList()
    if k:
        chain.append(theirs.TopKLogitsWarper(k))
    if p is not None and p < 1:
        chain.append(theirs.TopPLogitsWarper(p))
    if min_p is not None:
        chain.append(theirs.MinPLogitsWarper(min_p))
    expected = finite(chain(None, row[None].clone())[0])
    found = kept(*ours.filtered(row, SamplingParams(temperature=1.0, top_k=k, top_p=p, min_p=min_p)))
    if ties and p is not None:  # which of equal values top-p keeps is nobody's promise
        assert Counter(found.values()) == Counter(expected.values())
    else:
        assert found == expected


def test_top_p_over_a_wide_flat_vocabulary_looks_beyond_its_first_look() -> None:
    row = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 0.01
    expected = finite(theirs.TopPLogitsWarper(0.9)(None, row[None])[0])
    found = set(ours.top_p(row, 0.9).tolist())
    assert len(found ^ set(expected)) <= 2, "sums of 5000 floats differ by rounding"


def a_sequence(key: int = 0, ids: tuple[int, ...] = (3, 4), **params: object) -> Sequence:
    asked = SamplingParams(**params)  # type: ignore[arg-type]
    return Sequence(key=key, prompt=Prompt(ids), params=asked, limit=9, eos=frozenset({1}), seed=asked.seed or 0)


def choose(sampler: Sampler, rows: Tensor, sequences: list[Sequence]) -> list[int]:
    return [pick.id for pick in sampler.sample(rows, sequences)]


def test_a_draw_depends_on_seed_and_count_only() -> None:
    rows = torch.stack([scores(i) for i in range(3)])
    mine = [a_sequence(0, temperature=1.0, seed=7), a_sequence(1), a_sequence(2, temperature=2.0, seed=7, top_k=5)]
    together = choose(Sampler(torch.device("cpu")), rows, mine)
    alone = [choose(Sampler(torch.device("cpu")), rows[i : i + 1], [mine[i]])[0] for i in range(3)]
    again = choose(Sampler(torch.device("cpu")), rows.flip(0), mine[::-1])[::-1]
    assert together == alone == again
    assert together[1] == int(rows[1].argmax())


def test_seeds_and_counts_give_fresh_draws_from_the_right_distribution() -> None:
    row = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    sampler, counts = Sampler(torch.device("cpu")), Counter[int]()
    for seed in range(60):
        item = a_sequence(temperature=2.0, seed=seed)
        for _ in range(50):
            token = choose(sampler, row[None], [item])[0]
            counts[token] += 1
            item.ids.append(token)
    expected = (row / 2.0).softmax(-1) * 3000
    assert counts[3] == 0
    for token in range(3):
        assert abs(counts[token] - expected[token]) < 5 * expected[token] ** 0.5


def test_min_new_tokens_forbids_every_end() -> None:
    row = torch.zeros(V)
    row[1] = 9.0
    row[5] = 3.0
    item = a_sequence(min_new_tokens=2)
    sampler = Sampler(torch.device("cpu"))
    picks = []
    for _ in range(3):
        picks.append(choose(sampler, row[None], [item])[0])
        item.ids.append(picks[-1])
    assert picks == [5, 5, 1]


def test_history_buffers_follow_the_sequence_and_are_forgotten() -> None:
    sampler = Sampler(torch.device("cpu"))
    item = a_sequence(no_repeat_ngram_size=1)
    row = torch.arange(V, dtype=torch.float32)
    picks = []
    for _ in range(8):
        picks.append(choose(sampler, row[None], [item])[0])
        item.ids.append(picks[-1])
    assert picks == list(range(V - 1, V - 9, -1))
    sampler.forget(item)
    assert not sampler._histories


@pytest.mark.parametrize("n_top", [0, 2])
def test_logprobs_are_after_penalties_and_before_temperature(n_top: int) -> None:
    row = scores(3)
    item = a_sequence(ids=(4, 9), repetition_penalty=1.5, temperature=0.5, seed=1, logprobs=n_top)
    pick = Sampler(torch.device("cpu")).sample(row[None], [item])[0]
    expected = ours.repetition(row, torch.tensor([4, 9]), 1.5).log_softmax(-1)
    assert pick.logprob is not None and pick.logprob.id == pick.id
    assert pick.logprob.logprob == pytest.approx(float(expected[pick.id]))
    assert [i for i, _ in pick.logprob.top] == expected.topk(n_top).indices.tolist()


def test_equal_logits_give_the_lowest_id() -> None:
    rows = torch.zeros(2, V)
    assert choose(Sampler(torch.device("cpu")), rows, [a_sequence(0), a_sequence(1, logprobs=0)]) == [0, 0]
