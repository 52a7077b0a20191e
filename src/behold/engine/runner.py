"""Runs one step's chunks through the model: pictures, embeddings, decoder, choice. Holds all tensors of the engine.

Running a step changes no sequence. If it is broken off, the same step can be run again: keys and values are written to
the same places, and draws depend on seed and count only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from behold.engine import batch, beams
from behold.engine.beams import Beam, Candidate
from behold.engine.blocks import RowTable
from behold.engine.image_cache import ImageCache
from behold.engine.kv_cache import KVCache
from behold.engine.sampler import Sampled, Sampler, processed, reads_history
from behold.engine.sequence import Chunk, Sequence
from behold.models.base import VisionLanguageModel
from behold.types import ImageInput


@dataclass(slots=True)
class StepOutput:
    """What a step found, by sequence key: the chosen ids, the beam candidates, and seconds spent on pictures."""

    sampled: dict[int, Sampled] = field(default_factory=dict)
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)
    vision_s: dict[int, float] = field(default_factory=dict)


class Runner:
    """The tensors: KV rows, image embeddings, positions, random numbers."""

    def __init__(self, model: VisionLanguageModel, *, table: RowTable, image_cache_bytes: int) -> None:
        self._model = model
        self._table = table
        text = model.config.text
        self.device = model.device
        self.cache = KVCache(
            n_layers=text.num_hidden_layers,
            n_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            max_rows=table.max_rows,
            budget_tokens=table.budget_tokens,
            device=model.device,
            dtype=model.dtype,
        )
        self.images = ImageCache(image_cache_bytes)
        self._pins: dict[int, set[str]] = {}
        self._positions = torch.empty(0, dtype=torch.long, device=self.device)
        self._sampler = Sampler(self.device)

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> StepOutput:
        """One pass over all chunks."""
        output = StepOutput()
        self._encode_pictures(chunks, output)
        self._make_room(chunks)
        step = batch.build(chunks, self._positions, self.images.__getitem__, self.device)
        embeddings = self._model.embed(step.ids, step.image_rows, step.at)
        hidden = self._model.hidden(embeddings, step.positions, self.cache.view(step.plan))
        if step.n_samples:
            wanted = hidden if step.sample_rows is None else hidden.index_select(0, step.sample_rows)
            self._choose(self._model.logits(wanted), [c.sequence for c in chunks if c.samples], output)
        return output

    def recorded(self, sequence: Sequence) -> None:
        """After a sequence has moved on: pictures that lie behind it may go."""
        if sequence.key in self._pins:
            ahead = {
                sequence.prompt.images[span.image].digest
                for span in sequence.prompt.spans
                if span.stop > sequence.computed
            }
            self._unpin(sequence.key, self._pins[sequence.key] - ahead)

    def forget(self, sequence: Sequence) -> None:
        """A sequence is over: drop what is kept for it."""
        self._unpin(sequence.key, set(self._pins.get(sequence.key, ())))
        self._sampler.forget(sequence)

    @torch.inference_mode()
    def follow(self, sequence: Sequence, parents: list[int]) -> None:
        """Give each running beam its parent's row. Only what beams do not share is copied, and only where a parent
        goes on twice; `sequence.computed` places are filled.
        """
        start = sequence.n_prompt if sequence.computed > sequence.n_prompt else 0
        slots, free = sequence.slots, [s for i, s in enumerate(sequence.slots) if i not in parents]
        taken: set[int] = set()
        order: list[int] = []
        for parent in parents:
            if parent not in taken:
                taken.add(parent)
                order.append(slots[parent])
            else:
                order.append(free.pop())
                self.cache.fork(slots[parent], order[-1], start, sequence.computed)
        sequence.slots = tuple(order)

    def check(self, live: frozenset[int]) -> None:
        """Our own bookkeeping: only sequences that live hold pictures."""
        self.images.check()
        assert self._pins.keys() <= live, (set(self._pins), live)

    def _encode_pictures(self, chunks: Many[Chunk], output: StepOutput) -> None:
        """Embeddings of every picture that the chunks touch; those not seen before in one call for all requests."""
        unseen: dict[str, ImageInput] = {}
        waiting: set[int] = set()
        for chunk in chunks:
            sequence = chunk.sequence
            for span in sequence.prompt.spans:
                if span.stop <= chunk.start or span.start >= chunk.stop:
                    continue
                picture = sequence.prompt.images[span.image]
                known = picture.digest in self.images
                if not known:
                    unseen[picture.digest] = picture
                    waiting.add(sequence.key)
                if self._pin(sequence.key, picture.digest):
                    self.images.stats.hits += known
                    self.images.stats.misses += not known
        if not unseen:
            return
        begin = time.perf_counter()
        embeddings = self._model.encode_images(list(unseen.values()))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be counted to the text
        for digest, rows in zip(unseen, embeddings, strict=True):
            self.images.put(digest, rows)
        output.vision_s = dict.fromkeys(waiting, time.perf_counter() - begin)

    def _make_room(self, chunks: Many[Chunk]) -> None:
        rows = 1 + max(slot for chunk in chunks for slot in chunk.sequence.slots)
        longest = max(chunk.stop for chunk in chunks)
        self.cache.grow(rows, longest, reserved=self._table.shape)
        if longest > self._positions.shape[0]:
            self._positions = self._model.positions(max(longest, 2 * self._positions.shape[0])).to(self.device)

    def _choose(self, logits: Tensor, sequences: list[Sequence], output: StepOutput) -> None:
        """logits: (R, V), one row a sequence, or one a running beam."""
        singles: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for sequence in sequences:
            if sequence.beams is None:
                singles.append(sequence)
                rows.append(row)
                row += 1
                continue
            n = len(sequence.beams.running)
            output.candidates[sequence.key] = self._continuations(logits[row : row + n], sequence)
            row += n
        if singles:
            wanted = logits if len(rows) == row else logits[rows]
            chosen = self._sampler.sample(wanted, singles)
            output.sampled = {s.key: pick for s, pick in zip(singles, chosen, strict=True)}

    def _continuations(self, logits: Tensor, sequence: Sequence) -> list[Candidate]:
        """logits: (beams, V)."""
        assert sequence.beams is not None
        params, prompt = sequence.params, sequence.prompt.ids

        def process(scores: Tensor, beam: Beam) -> Tensor:
            ids = [*prompt, *beam.ids] if reads_history(params) else []
            history = torch.tensor(ids, dtype=torch.long, device=scores.device)
            return processed(scores, history, params, n_prompt=len(prompt), n_new=len(beam.ids), eos=sequence.eos)

        return beams.candidates(logits, sequence.beams, process)

    def _pin(self, key: int, digest: str) -> bool:
        """False where this sequence holds it already."""
        pins = self._pins.setdefault(key, set())
        if digest in pins:
            return False
        pins.add(digest)
        self.images.pin(digest)
        return True

    def _unpin(self, key: int, digests: set[str]) -> None:
        for digest in digests:
            self._pins[key].discard(digest)
            self.images.unpin(digest)
        if not self._pins.get(key, True):
            del self._pins[key]
