"""Conversations as rows of token ids, and the batches of stage 2.

Letters: R rows, T tokens, N supervised tokens, A answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from conversations import Conversation, converse
from drawing import GRID
from pool import Pool
from questions import Turn
from scenes import COLOURS, SHAPES, SIZES, Thing, is_variation, make_scene
from tokenizer import END, IMAGE, PAD, START

KINDS = (
    *("describe", "count all", "count some", "colour", "shape", "place", "what is at", "yes or no", "size"),
    *("relation", "read", "not there", "follow-up", "one of two", "compare", "what changed", "no picture"),
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with equally many pictures each, padded on the right.

    `images` and `labels` are the pool's, [R * pictures, …], `ids` [R, T]. `row` and `position` [N] find the supervised
    tokens' predictions, `target` [N] what they should be, `answer` [N] which answer they belong to; `kind` [A] is that
    answer's kind, `subject` [A, 4] the shape, colour, size and cell of what it is about, or -1.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    row: Tensor
    position: Tensor
    target: Tensor
    answer: Tensor
    kind: Tensor
    subject: Tensor

    @property
    def starts(self) -> tuple[Tensor, Tensor]:
        """(rows, positions) [A] each, from which the first tokens of the answers are predicted."""
        first = torch.ones_like(self.answer, dtype=torch.bool)
        first[1:] = self.answer[1:] != self.answer[:-1]
        return self.row[first], self.position[first]

    def to(self, device: torch.device) -> Rows:
        return Rows(*(getattr(self, name).to(device) for name in self.__slots__))


class RowEncoder:
    """Writes conversations as the chat template does, marking the answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.pad, self.start, self.end, self.image = tokenizer.convert_tokens_to_ids([PAD, START, END, IMAGE])

        @cache
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        self.encode: Callable[[str], list[int]] = encode

    def turn(self, question: str, answer: str, pictures: int) -> tuple[list[int], int]:
        """Ids of a question with its answer, and how many at the end are supervised."""
        asked = [self.start, *self.encode("user\n"), *[self.image] * (GRID * GRID * pictures)]
        asked += [*self.encode(question), self.end, self.start, *self.encode("assistant\n")]
        said = [*self.encode(answer), self.end]
        return asked + said, len(said)

    def row(self, talk: Conversation, budget: int) -> tuple[list[int], list[tuple[int, int, Turn]]]:
        """Ids of a conversation, and (first, end, turn) of its answers; turns are left out to fit `budget` tokens."""
        system = [self.start, *self.encode("system\n" + talk.system), self.end] if talk.system else []
        exchanges = list(talk.exchanges)
        turns = [self.turn(e.turn.question, e.turn.answer, e.pictures) for e in exchanges]
        while len(system) + sum(len(ids) for ids, _ in turns) > budget:
            # The last turn is often the description, which is worth keeping.
            spare = len(turns) - 2
            if exchanges[spare].pictures or exchanges[-1].turn.kind == "follow-up":
                spare += 1
            del turns[spare], exchanges[spare]
        ids, answers = list(system), []
        for (tokens, supervised), exchange in zip(turns, exchanges, strict=True):
            ids += tokens
            answers.append((len(ids) - supervised, len(ids), exchange.turn))
        return ids, answers


def pack(encoder: RowEncoder, pool: Pool, talks: list[Conversation], places: list[int], budget: int) -> Rows:
    """Encode `talks`, whose pictures are the pool's `places` in order."""
    encoded = [encoder.row(talk, budget) for talk in talks]
    ids = torch.full((len(talks), max(len(row) for row, _ in encoded)), encoder.pad)
    marks: list[tuple[int, int, int]] = []
    kinds: list[int] = []
    subjects: list[tuple[int, ...]] = []
    for number, (row, answers) in enumerate(encoded):
        ids[number, : len(row)] = torch.tensor(row)
        for first, end, turn in answers:
            marks += [(number, position - 1, len(kinds)) for position in range(first, end)]
            kinds.append(KINDS.index(turn.kind))
            subjects.append(_words(turn.subject))
    row, position, answer = torch.tensor(marks).T
    drawn = np.asarray(places, dtype=np.int64)
    images, labels = torch.from_numpy(pool.images[drawn]), torch.from_numpy(pool.labels[drawn])
    target = ids[row, position + 1]
    return Rows(images, labels, ids, row, position, target, answer, torch.tensor(kinds), torch.tensor(subjects))


def _words(thing: Thing | None) -> tuple[int, ...]:
    if thing is None:
        return (-1, -1, -1, -1)
    return SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(thing.size), thing.cell


class ChatBatches(Dataset[list[Rows]]):
    """Item `step` is that step's packs, a function of (seed, step) alone.

    Early steps see scenes of few things: at most two, then three, then all.
    """

    BUDGETS = (GRID * GRID + 215, 2 * GRID * GRID + 215)

    def __init__(
        self,
        encoder: RowEncoder,
        pool: Pool,
        rows: tuple[int, int],
        *,
        parts: int,
        seed: int,
        easy_steps: int,
        stream: str,
    ) -> None:
        """`rows` on one and on two pictures in a step, each dealt out to `parts` packs."""
        self.encoder, self.pool, self.rows, self.parts = encoder, pool, rows, parts
        self.seed, self.easy_steps, self.stream = seed, easy_steps, stream
        self.sizes = np.array([len(make_scene(pool.first_seed + index).things) for index in range(len(pool))])

    def __getitem__(self, step: int) -> list[Rows]:
        rng = random.Random(f"{self.stream} {self.seed} {step}")
        most = 2 if step < self.easy_steps // 2 else 3 if step < self.easy_steps else max(self.sizes)
        allowed = np.flatnonzero(self.sizes <= most)
        packs = []
        for pictures, count, budget in zip((1, 2), self.rows, self.BUDGETS, strict=True):
            talks, places = [], []
            for _ in range(count):
                chosen = [int(allowed[rng.randrange(len(allowed))]) for _ in range(pictures)]
                if pictures == 2 and rng.random() < 0.45:
                    chosen = self._variation(chosen[0])
                scenes = [make_scene(self.pool.first_seed + place) for place in chosen]
                talks.append(converse(scenes, rng, rng.choice((9, 10, 11))))
                places += chosen
            share = -(-count // self.parts)
            for first in range(0, count, share):
                some = places[first * pictures : (first + share) * pictures]
                packs.append(pack(self.encoder, self.pool, talks[first : first + share], some, budget))
        return packs

    @staticmethod
    def _variation(place: int) -> list[int]:
        """The scene that has a variation, and the variation, of the four around `place`."""
        changed = place // 4 * 4 + 3
        assert is_variation(changed)
        return [changed - 1, changed]
