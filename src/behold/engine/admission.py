"""From a prompt and options to a Sequence: what can be refused is refused here, before anything is queued."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

import torch

from behold.engine.beams import BeamSearch
from behold.engine.blocks import RowTable
from behold.engine.guides import Guides
from behold.engine.lookup import Lookup
from behold.engine.params import validate
from behold.engine.request import Transcript
from behold.engine.sampler import is_plain
from behold.engine.sequence import Guide, Scoring, Sequence
from behold.errors import CapacityError, OptionError
from behold.processing.detokenizer import Detokenizer
from behold.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from behold.models.config import TextConfig
    from behold.processing.tokenizer import Tokenizer


class Admission:
    """Knows the limits of one engine: vocabulary, context, cache memory, and whether there is a tokenizer."""

    def __init__(
        self,
        text: TextConfig,
        *,
        tokenizer: Tokenizer | None,
        eos: frozenset[int],
        table: RowTable,
        bytes_a_token: int,
    ) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._eos = eos
        self._table = table
        self._bytes_a_token = bytes_a_token
        self._guides = None if tokenizer is None else Guides(tokenizer, vocab_size=text.vocab_size)
        self.next_key = 0
        self._lock = threading.Lock()

    def sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        """The sequence that a request becomes.

        Raises:
            OptionError: an option is out of range, clashes with another, needs a tokenizer that is not there, or is a
                constraint that cannot be enforced.
            CapacityError: the prompt is longer than the context, or the request needs more memory than there is.
        """
        self._validate(params)
        sequence = Sequence(
            key=self._key(),
            prompt=prompt,
            params=params,
            limit=self._room(prompt, params),
            eos=self._ends(params),
            seed=_seed(params),
        )
        self._check_memory(sequence)
        sequence.guide = self._guide(params)
        if is_plain(sequence) and params.num_beams == 1 and not params.min_new_tokens:
            sequence.lookup = Lookup()
        if params.num_beams > 1:
            sequence.beams = self._beam_search(sequence)
        return sequence

    def prepare(self, params: SamplingParams) -> None:
        """See Engine.prepare."""
        self._validate(params)
        self._guide(params)

    def scoring(self, prompt: Prompt, continuations: Many[tuple[int, ...]]) -> Sequence:
        """The sequence that rates texts; raises as Engine.score does."""
        if not continuations or not all(continuations):
            raise OptionError(f"continuations={continuations!r:.80} is not allowed: at least one, none of them empty")
        top = self._text.vocab_size
        if not all(0 <= token < top for ids in continuations for token in ids):
            raise OptionError(f"continuations hold ids outside the vocabulary of {top}")
        scoring = Scoring(tuple(tuple(ids) for ids in continuations))
        limit = self._room(prompt, SamplingParams(max_new_tokens=max(map(len, continuations))))
        if limit < max(map(len, continuations)):
            raise CapacityError(
                f"the longest of the texts to rate has more tokens than the context has room for, {limit}"
            )
        sequence = Sequence(self._key(), prompt, SamplingParams(), limit, scoring=scoring)
        self._check_memory(sequence)
        return sequence

    def _validate(self, params: SamplingParams) -> None:
        validate(params, vocab_size=self._text.vocab_size, has_tokenizer=self._tokenizer is not None)
        if params.num_return_sequences > 1 and params.num_beams == 1:
            raise OptionError(
                f"num_return_sequences={params.num_return_sequences} with num_beams=1 is that many requests: "
                "submit those that engine.params.spread makes"
            )

    def _ends(self, params: SamplingParams) -> frozenset[int]:
        """The ids that end an answer."""
        return params.stop_token_ids if params.ignore_eos else params.stop_token_ids | self._eos

    def _guide(self, params: SamplingParams) -> Guide | None:
        if params.constraint is None or self._guides is None:
            return None
        return self._guides.guide(params.constraint, self._ends(params))

    def _key(self) -> int:
        with self._lock:
            self.next_key += 1
            return self.next_key - 1

    def transcript(self, params: SamplingParams) -> Transcript:
        """A fresh one: ids to visible text, under the request's stop strings."""
        tokenizer = None if params.ids_only else self._tokenizer
        return Transcript(None if tokenizer is None else Detokenizer(tokenizer), params.stop)

    def _room(self, prompt: Prompt, params: SamplingParams) -> int:
        """New tokens that the context has room for, max_new_tokens at most."""
        context, length = self._text.max_position_embeddings, len(prompt.ids)
        if not length:
            raise CapacityError("the prompt has no tokens: there is nothing to go on from")
        if length >= context:
            raise CapacityError(
                f"the prompt has {length} tokens ({prompt.image_tokens} of pictures) and the model's context is "
                f"{context}, which must hold at least one more: shorten the text or give fewer or smaller pictures"
            )
        return min(params.max_new_tokens, context - length)

    def _check_memory(self, sequence: Sequence) -> None:
        if self._table.can_ever_fit(sequence.rows, sequence.reserve):
            return
        rows, places = sequence.rows, sequence.reserve
        if rows > self._table.max_rows:
            raise CapacityError(
                f"num_beams={rows} needs as many rows and this engine has {self._table.max_rows}: "
                "lower num_beams or raise EngineOptions.max_rows"
            )
        need, have = rows * places * self._bytes_a_token, self._table.budget_tokens * self._bytes_a_token
        raise CapacityError(
            f"{sequence.n_prompt} prompt tokens and {sequence.limit} new ones in {rows} row(s) need {need:,} bytes of "
            f"cache and {have:,} are set aside: lower max_new_tokens or raise EngineOptions.kv_cache_bytes"
        )

    def _beam_search(self, sequence: Sequence) -> BeamSearch:
        def hits(ids: tuple[int, ...]) -> bool:
            if ids[-1] in sequence.eos:
                return True
            if not sequence.params.stop:
                return False
            transcript = self.transcript(sequence.params)
            for token in ids:
                transcript.add(token)
            transcript.finish()
            return transcript.stopped

        search = BeamSearch(sequence.params, sequence.limit, len(sequence.eos), hits)
        if search.n_candidates > self._text.vocab_size:
            raise OptionError(
                f"num_beams={search.width} needs {search.n_candidates} candidates a step (beams × (1 + ids that end "
                f"an answer)), more than the vocabulary's {self._text.vocab_size}: lower num_beams"
            )
        return search


def _seed(params: SamplingParams) -> int:
    if params.seed is not None or params.greedy:
        return params.seed or 0
    return int(torch.randint(1 << 62, ()))
