"""The state of a beam search, driven by hand. (Ids against transformers: test_parity.)"""

from __future__ import annotations

from typing import Any

import torch

from behold.engine.beams import BeamSearch, Candidate, candidates
from behold.types import SamplingParams

END = 9


def search(**options: Any) -> BeamSearch:
    params = SamplingParams(**{"num_beams": 2, "num_return_sequences": 2, **options})
    return BeamSearch(params, limit=4, n_ends=1, hits=lambda ids: ids[-1] == END)


def step(state: BeamSearch, *found: tuple[int, int, float]) -> list[int]:
    return state.advance([Candidate(*each) for each in found])


def ids(state: BeamSearch) -> list[tuple[int, ...]]:
    return [beam.ids for beam in state.answers()]


def test_beams_follow_their_parents() -> None:
    state = search()
    assert state.n_candidates == 4
    assert step(state, (0, 1, -1.0), (0, 2, -2.0), (0, 3, -3.0)) == [0, 0]
    assert step(state, (1, 5, -2.5), (0, 6, -3.0), (1, 7, -4.0)) == [1, 0]
    assert [beam.ids for beam in state.running] == [(2, 5), (1, 6)]


def test_only_ends_among_the_best_count() -> None:
    state = search()
    step(state, (0, 1, -1.0), (0, 2, -2.0))
    step(state, (0, 3, -1.5), (0, 4, -1.6), (1, END, -1.7))
    assert not state.ended
    step(state, (0, END, -1.8), (0, 5, -1.9), (1, 6, -2.0))
    assert [beam.ids for beam in state.ended] == [(1, 3, END)]
    assert [beam.ids[-1] for beam in state.running] == [5, 6], "an ended line is replaced"


def test_length_penalty_decides_between_short_and_long() -> None:
    def play(penalty: float) -> list[tuple[int, ...]]:
        state = search(length_penalty=penalty, early_stopping="never")
        step(state, (0, 1, -1.0), (0, END, -1.2), (0, 2, -1.4))
        step(state, (0, 3, -1.3), (1, 4, -1.5))
        step(state, (0, 5, -1.5), (1, 6, -1.6))
        step(state, (0, END, -1.7), (1, END, -1.9))
        assert state.done
        return ids(state)

    assert play(0.0)[0] == (END,)
    assert play(2.0)[0] == (1, 3, 5, END)


def test_early_stopping_ends_as_soon_as_there_are_enough() -> None:
    def play(early: bool) -> bool:
        state = search(early_stopping=early, length_penalty=1.0)
        step(state, (0, END, -3.0), (0, 1, -3.1), (0, 2, -3.2))
        step(state, (0, END, -3.3), (0, 3, -3.4), (1, 4, -3.5))
        return state.done

    assert play(early=True)
    assert not play(early=False), "-3.4 / 2 may still beat -3.0"


def test_the_limit_ends_everything() -> None:
    state = search()
    for token in range(1, 5):
        step(state, (0, token, -float(token)), (1 if token > 1 else 0, token + 10, -token - 0.5))
    assert state.done and [len(line) for line in ids(state)] == [4, 4]


def test_candidates_add_the_beams_scores_and_mask_by_beam() -> None:
    state = search()
    step(state, (0, 1, -1.0), (0, 2, -1.5))
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]])

    def process(scores: torch.Tensor, beam: Any) -> torch.Tensor:
        return scores.index_fill(0, torch.tensor([0]), -torch.inf) if beam.ids == (1,) else scores

    found = candidates(logits, state, process)
    assert (found[0].parent, found[0].id) == (1, 0)
    assert {(c.parent, c.id) for c in found[1:]} == {(0, 1), (0, 2), (0, 3)}
    assert abs(found[0].score - (-1.5 + float(logits[1].log_softmax(-1)[0]))) < 1e-6
