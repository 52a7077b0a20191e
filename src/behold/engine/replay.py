"""Steps that are as the one before, made by one call: the decoder's kernels are written down and run again.

Only steps of few tokens, in which our own kernels do all the work. That nothing else took part in it is not believed
but tried: for each number of rows, a step is computed both ways, with inputs of its own, before its like are replayed.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.engine.kv_cache import RowView
from behold.kernels import native
from behold.kernels.attention import RowTokens
from behold.kernels.replay import Tape
from behold.models.base import FEW_ROWS, VisionLanguageModel

TAPES = 4  # kept: guesses make steps of one row and of several take turns


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A step's inputs, its places in the cache, its calls, and where its result is."""

    embeddings: Tensor
    angles: tuple[Tensor, Tensor]
    places: ctypes.Array[ctypes.c_int64]
    tape: Tape
    hidden: Tensor

    def play(self, embeddings: Tensor, angles: tuple[Tensor, Tensor], tokens: RowTokens) -> Tensor:
        """The same for another step."""
        self.embeddings.copy_(embeddings)
        for mine, new in zip(self.angles, angles, strict=True):
            mine.copy_(new)
        ctypes.memmove(self.places, tokens.places, ctypes.sizeof(self.places))
        self.tape.play()
        return self.hidden.clone()


class Replay:
    """The decoder of one model, for one engine."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._model = model
        # a model that does more than its decoder is asked itself
        self._plain = type(model).hidden is VisionLanguageModel.hidden
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._trusted: dict[int, bool] = {}
        self._hooks = [
            hooks for module in model.decoder.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def hidden(self, embeddings: Tensor, positions: Tensor, view: RowView, wanted: Tensor | None) -> Tensor:
        """As VisionLanguageModel.hidden."""
        rows, tokens = len(embeddings), view.tokens
        if (
            wanted is not None
            or tokens is None
            or rows > FEW_ROWS
            or not self._plain
            or not self._trusted.get(rows, True)
            or self._watched()
        ):
            return self._model.hidden(embeddings, positions, view, wanted)
        angles = self._model.decoder.rotary(positions, embeddings.dtype)
        key = (rows, torch.get_num_threads(), tokens.sameness)
        known = self._recorded.get(key)
        if known is None:
            return self._record(key, embeddings, angles, view, tokens)
        self._recorded.move_to_end(key)
        if rows in self._trusted:
            return known.play(embeddings, angles, tokens)
        # Inputs that no step has, as an answer may say one word over and over: what a tape left out would then be there
        # still, from the step before, and look right. Keys and values of the trial are written anew after it.
        trial = 1 - embeddings
        tried = known.play(trial, angles, tokens)
        self._trusted[rows] = torch.equal(self._model.decoder.through(trial, angles, view), tried)
        return self._model.decoder.through(embeddings, angles, view)

    def _record(
        self, key: Hashable, embeddings: Tensor, angles: tuple[Tensor, Tensor], view: RowView, tokens: RowTokens
    ) -> Tensor:
        mine, own = embeddings.clone(), (angles[0].clone(), angles[1].clone())
        with native.written_down() as calls:
            hidden = self._model.decoder.through(mine, own, view)
        self._recorded[key] = _Recorded(mine, own, tokens.places, Tape(calls), hidden)
        while len(self._recorded) > TAPES:
            self._recorded.popitem(last=False)
        return hidden.clone()

    def _watched(self) -> bool:
        """Whether somebody has hooks on a layer, which are to be called."""
        return any(self._hooks)
