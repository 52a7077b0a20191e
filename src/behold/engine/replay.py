"""Steps that are as the one before, made by one call: their kernels are written down and run again.

Only steps of few tokens, in which our own kernels do all the work, from the ids that come in to the hidden states and
the likeliest ids. That nothing else took part in it is not believed but tried: for each number of rows, a step is
computed both ways, with inputs of its own, before its like are replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from ctypes import Array, c_int64
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from behold.engine.batch import StepBatch
from behold.engine.kv_cache import RowView
from behold.kernels import native
from behold.kernels.attention import RowTokens
from behold.kernels.replay import Tape
from behold.models.base import UNKNOWN, VisionLanguageModel
from behold.threads import FEW_ROWS

TAPES = 4  # kept: guesses make steps of one row and of several take turns


class Passed(NamedTuple):
    """What came of the rows that are sampled: (R, D) hidden states, which hold until the next step is run, and the ids
    of the largest logits, where they were asked for and found without computing all.
    """

    hidden: Tensor
    best: list[int]


Numbers = Array[Any]  # c_int64


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step's inputs, its places in the cache, its calls, and where its results are."""

    ids: Numbers
    positions: Numbers
    places: Numbers
    tape: Tape
    hidden: Tensor
    best: Numbers

    def play(self, ids: list[int], positions: list[int], tokens: RowTokens) -> Passed:
        """The same for another step."""
        self.ids[:] = ids
        self.positions[:] = positions
        self.places[:] = tokens.words
        self.tape.play()
        return Passed(self.hidden, self.best[:])


class Replay:
    """The decoder of one model, for one engine."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        self._n_ids = model.config.text.vocab_size
        kind, known = type(model), VisionLanguageModel
        # a model that does more than its decoder is asked itself
        self._plain = kind.hidden is known.hidden and kind.embed is known.embed
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._trusted: dict[Hashable, bool] = {}
        self._hooks = [
            hooks for module in model.decoder.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._looked_at = -1

    def run(self, batch: StepBatch, view: RowView, *, likeliest: bool) -> Passed:
        """One pass over a step's rows. likeliest: whether the ids of the largest logits are of use."""
        kind, tokens = (len(batch.ids), likeliest), view.tokens
        if (
            batch.at is not None
            or batch.sample_rows is not None
            or tokens is None
            or len(batch.ids) > FEW_ROWS
            or not self._plain
            or not self._trusted.get(kind, True)
            or not all(0 <= token < self._n_ids for token in batch.ids)
            or self._watched()
        ):
            return self._computed(batch, view, likeliest)
        key = (kind, torch.get_num_threads(), tokens.sameness)
        known = self._recorded.get(key)
        if known is None:
            return self._record(key, batch, view, tokens, likeliest)
        self._recorded.move_to_end(key)
        if kind not in self._trusted:
            self._try(kind, known, view, tokens, likeliest)
            return self._computed(batch, view, likeliest)
        return known.play(batch.ids, batch.positions, tokens)

    def _computed(self, batch: StepBatch, view: RowView, likeliest: bool) -> Passed:
        device = self._model.device
        ids, positions = torch.tensor(batch.ids, device=device), torch.tensor(batch.positions, device=device)
        wanted = None if batch.sample_rows is None else torch.tensor(batch.sample_rows, device=device)
        embeddings = self._model.embed(ids, batch.image_rows, batch.at)
        hidden = self._model.hidden(embeddings, positions, view, wanted)
        best = self._model.best(hidden) if likeliest else None
        return Passed(hidden, [] if best is None else best.tolist())

    def _through(self, ids: Tensor, positions: Tensor, view: RowView, likeliest: bool) -> tuple[Tensor, Tensor]:
        hidden = self._model.hidden(self._model.embed(ids), positions, view)
        best = self._model.best(hidden) if likeliest else None
        return hidden, torch.empty(0, dtype=torch.long) if best is None else best

    def _try(self, kind: Hashable, known: _Recorded, view: RowView, tokens: RowTokens, likeliest: bool) -> None:
        """Find out whether such steps can be replayed.

        With inputs that no step has, as an answer may say one word over and over: what a tape left out would then be
        there still, from the step before, and look right. Keys and values of the trial are to be written anew after it.
        """
        ids, positions = [(token + 1) % self._n_ids for token in known.ids], [place + 1 for place in known.positions]
        new, old = torch.tensor(ids), torch.tensor(known.ids[:])
        if torch.equal(self._model.embed(new), self._model.embed(old)):
            return  # two that look the same: the next step's may not
        known.best[:] = [UNKNOWN] * len(known.best)
        played = known.play(ids, positions, tokens)
        hidden, best = self._through(new, torch.tensor(positions), view, likeliest)
        self._trusted[kind] = torch.equal(hidden, played.hidden) and best.tolist() == played.best

    def _record(self, key: Hashable, batch: StepBatch, view: RowView, tokens: RowTokens, likeliest: bool) -> Passed:
        ids, positions = torch.tensor(batch.ids), torch.tensor(batch.positions)
        with native.written_down() as calls:
            hidden, best = self._through(ids, positions, view, likeliest)
        numbers = (_numbers(ids), _numbers(positions), tokens.places)
        self._recorded[key] = _Recorded(*numbers, Tape(calls), hidden, _numbers(best))
        while len(self._recorded) > TAPES:
            self._recorded.popitem(last=False)
        return Passed(hidden, best.tolist())

    def _watched(self) -> bool:
        """Whether somebody has hooks on a layer, which are to be called. New ones are numbered by torch, so that as
        long as no number was given it is known that there is none.
        """
        if self._looked_at == RemovableHandle.next_id:
            return False
        now = RemovableHandle.next_id  # read first: a hook may come from another thread meanwhile
        watched = any(self._hooks)
        self._looked_at = -1 if watched else now
        return watched


def _numbers(x: Tensor) -> Numbers:
    """The memory of x (N,) int64, for as long as this is there: read and written in a tenth of the time."""
    return (c_int64 * len(x)).from_buffer(x.numpy().data)
