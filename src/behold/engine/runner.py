"""Runs one step through the model: pictures, embeddings, decoder, choice. Holds all tensors of the engine.

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
from behold.engine.encoder import Encoder
from behold.engine.image_cache import ImageCache
from behold.engine.kv_cache import KVCache
from behold.engine.replay import Replay
from behold.engine.sampler import Sampled, Sampler, is_plain, likeliest, may_come, processed, reads_history
from behold.engine.scheduler import Step
from behold.engine.sequence import Chunk, Scoring, Sequence
from behold.models.base import UNKNOWN, VisionLanguageModel


@dataclass(slots=True)
class StepOutput:
    """What a step found, by sequence key: the chosen ids (several where guesses were right), the beam candidates, the
    log probabilities of texts to rate, and seconds spent on pictures.
    """

    sampled: dict[int, list[Sampled]] = field(default_factory=dict)
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)
    ratings: dict[int, list[list[float]]] = field(default_factory=dict)
    vision_s: dict[int, float] = field(default_factory=dict)


class Runner:
    """The tensors: KV rows, image embeddings, positions, random numbers."""

    def __init__(
        self,
        model: VisionLanguageModel,
        *,
        table: RowTable,
        kv_dtype: torch.dtype,
        image_cache_bytes: int,
        max_image_tokens: int,
    ) -> None:
        self._model = model
        self._table = table
        text = model.config.text
        self.device = model.device
        self.cache = KVCache(
            n_layers=text.num_hidden_layers,
            n_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            device=model.device,
            dtype=kv_dtype,
            computes=model.dtype,
        )
        self.images = ImageCache(image_cache_bytes)
        self._encoder = Encoder(model, self.images, max_tokens=max_image_tokens)
        self._pins: dict[int, set[str]] = {}
        self._positions: list[int] = []
        self._sampler = Sampler(self.device)
        self._replay = Replay(model)

    @torch.inference_mode()
    def run(self, step: Step) -> StepOutput:
        """Pictures first, for as long as the step says, then one pass over all chunks."""
        output = StepOutput()
        self.cache.retain(self._table.rows)
        if step.pictures:
            self._encode(step, output)
        if not step.chunks:
            return output
        chunks = step.chunks
        self._make_room(chunks)
        rows = batch.build(chunks, self._positions, self.images.__getitem__, self.device)
        sampling = [chunk for chunk in chunks if chunk.samples]
        likeliest = bool(sampling) and all(wants_likeliest(chunk) for chunk in sampling)
        hidden, best = self._replay.run(rows, self.cache.view(rows.plan), likeliest=likeliest)
        if sampling:
            self._choose(hidden, best, sampling, output)
        return output

    # --- pictures: what the scheduler asks ----------------------------------------------------------------------------

    def hold(self, sequence: Sequence, digest: str) -> None:
        """See scheduler.Pictures."""
        pins = self._pins.setdefault(sequence.key, set())
        if digest not in pins:
            pins.add(digest)
            known = digest in self.images or self.images.pinned(digest)  # pinned: on its way for somebody else
            self.images.pin(digest)
            self.images.stats.hits += known
            self.images.stats.misses += not known

    def ready(self, digest: str) -> bool:
        """See scheduler.Pictures."""
        return digest in self.images

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
                self.cache.copy(slots[parent], order[-1], start, sequence.computed)
        sequence.slots = tuple(order)

    def check(self, live: frozenset[int]) -> None:
        """Our own bookkeeping: only sequences that live hold pictures."""
        self.images.check()
        assert self._pins.keys() <= live, (set(self._pins), live)

    def _encode(self, step: Step, output: StepOutput) -> None:
        begin = time.perf_counter()
        digests = self._encoder.run(step.pictures, step.pictures_s)
        seconds = time.perf_counter() - begin
        for sequence in step.looking:
            if any(picture.digest in digests for picture in sequence.prompt.images):
                output.vision_s[sequence.key] = seconds

    def _make_room(self, chunks: Many[Chunk]) -> None:
        """Storage for what the chunks write, with the beginnings they share with other rows."""
        for chunk in chunks:
            tokens = max(chunk.stop, chunk.sequence.n_prompt)  # a prompt gets its place in one piece
            for slot in chunk.sequence.slots:
                self.cache.grow(slot, tokens, reserve=self._table.reserved(slot))
            if chunk.source is not None:
                self.cache.copy(chunk.source, chunk.sequence.slots[0], chunk.sequence.computed, chunk.start)
        longest = max(chunk.stop for chunk in chunks)
        if longest > len(self._positions):
            self._positions = self._model.positions(max(longest, 2 * len(self._positions))).tolist()

    def _choose(self, hidden: Tensor, best: list[int], chunks: list[Chunk], output: StepOutput) -> None:
        """hidden: (R, D), for each chunk a row, or one a running beam, or one a token of the texts to rate. best: the
        likeliest id of each row, or none where that does not suffice.
        """
        found: dict[int, list[Sampled]] = {}
        for chunk in chunks if best else ():
            own, best = best[: chunk.n_logits], best[chunk.n_logits :]
            if all(token != UNKNOWN and may_come(token, chunk.sequence) for token in own):
                found[chunk.sequence.key] = confirmed(own, chunk.guesses)
        if len(found) == len(chunks):
            output.sampled.update(found)
        else:
            self._choose_by_logits(self._model.logits(hidden), chunks, output)

    def _choose_by_logits(self, logits: Tensor, chunks: list[Chunk], output: StepOutput) -> None:
        """logits: (R, V), as `_choose` has hidden states."""
        singles: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for chunk in chunks:
            sequence, own = chunk.sequence, logits[row : row + chunk.n_logits]
            if sequence.scoring is not None:
                output.ratings[sequence.key] = ratings(own, sequence.scoring)
            elif sequence.beams is not None:
                output.candidates[sequence.key] = self._continuations(own, sequence)
            elif chunk.guesses:
                output.sampled[sequence.key] = confirmed(likeliest(own), chunk.guesses)
            else:
                singles.append(sequence)
                rows.append(row)
            row += chunk.n_logits
        if singles:
            wanted = logits if len(rows) == row else logits[rows]
            for sequence, pick in zip(singles, self._sampler.sample(wanted, singles), strict=True):
                output.sampled[sequence.key] = [pick]

    def _continuations(self, logits: Tensor, sequence: Sequence) -> list[Candidate]:
        """logits: (beams, V)."""
        assert sequence.beams is not None
        params, prompt = sequence.params, sequence.prompt.ids

        def process(scores: Tensor, beam: Beam) -> Tensor:
            ids = [*prompt, *beam.ids] if reads_history(params) else []
            history = torch.tensor(ids, dtype=torch.long, device=scores.device)
            return processed(scores, history, params, n_prompt=len(prompt), n_new=len(beam.ids), eos=sequence.eos)

        return beams.candidates(logits, sequence.beams, process)

    def _unpin(self, key: int, digests: set[str]) -> None:
        for digest in digests:
            self._pins[key].discard(digest)
            self.images.unpin(digest)
        if not self._pins.get(key, True):
            del self._pins[key]


def wants_likeliest(chunk: Chunk) -> bool:
    """Whether nothing of the logits is asked for but which is the largest."""
    sequence = chunk.sequence
    return sequence.scoring is None and sequence.beams is None and is_plain(sequence)


def confirmed(best: Many[int], guesses: tuple[int, ...]) -> list[Sampled]:
    """The greedy choice behind the newest token and behind every guess that was right.

    best: the likeliest id behind the newest token and behind each guess.
    """
    right = next((i for i, guess in enumerate(guesses) if guess != best[i]), len(guesses))
    return [Sampled(token) for token in best[: right + 1]]


def ratings(logits: Tensor, scoring: Scoring) -> list[list[float]]:
    """Natural logarithms of the probabilities of what is next of each text.

    logits: (1, V) behind the prompt: one number a text, its first id's; or (N, V) at the N places of the texts'
    branches: those of all further ids.
    """
    logprobs = logits.float().log_softmax(-1)
    if not scoring.logprobs:
        first = logprobs[0, torch.tensor([ids[0] for ids in scoring.continuations], device=logits.device)]
        return [[value] for value in first.tolist()]
    wanted = [token for ids in scoring.continuations for token in ids[1:]]
    picked = logprobs.gather(1, torch.tensor(wanted, device=logits.device)[:, None])[:, 0].tolist()
    numbers = iter(picked)
    return [[next(numbers) for _ in ids[1:]] for ids in scoring.continuations]
