"""Encode a text in which some special tokens are meant and others were merely typed.

Splitting the text at the meant ones and encoding the pieces would not give the same ids: some pipelines treat the
first piece of a text differently. So the text is encoded in one go by a copy of the tokenizer that knows no special
tokens, but has one private character (an anchor) for each of them with the same stripping rules: meant tokens are
written as their anchor, typed ones as they are, and afterwards anchors' ids are exchanged for the tokens' own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import tokenizers

from behold.chat.literals import PRIVATE, Ranges
from behold.errors import ChatError


@dataclass(frozen=True, slots=True)
class _Copy:
    """A tokenizer without special tokens. anchors: special token → its character; ids: anchor's id → token's id."""

    backend: tokenizers.Tokenizer
    anchors: dict[str, str]
    ids: dict[int, int]


class Anchors:
    """Literal-aware encoding for one tokenizer; the copies are made when first needed (a second for 150k words)."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder().items()
        self._special = {token.content: (identifier, token) for identifier, token in added if token.special}
        self._meant = re.compile("|".join(self._pattern(token) for token in self._longest_first()) or r"(?!)")
        self._copies: dict[int, _Copy] = {}

    def encode(self, text: str, literals: Ranges, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`, special tokens that overlap one of the ordered ranges `literals` taken as plain text."""
        copy = self._copy_for(text)
        marked = self._mark(text, literals, copy.anchors)
        ids = copy.backend.encode(marked, add_special_tokens=add_special_tokens).ids
        return [copy.ids.get(identifier, identifier) for identifier in ids]

    def _longest_first(self) -> list[str]:
        return sorted(self._special, key=len, reverse=True)

    def _pattern(self, content: str) -> str:
        escaped = re.escape(content)
        return rf"(?<!\w){escaped}(?!\w)" if self._special[content][1].single_word else escaped

    def _mark(self, text: str, literals: Ranges, anchors: dict[str, str]) -> str:
        """The text with each special token that touches no literal range replaced by its anchor."""
        pieces: list[str] = []
        done = position = 0
        remaining = iter([*literals, (len(text), len(text))])
        start, stop = next(remaining)
        while match := self._meant.search(text, position):
            while stop <= match.start() and stop < len(text):
                start, stop = next(remaining)
            if start < match.end() and match.start() < stop:
                position = match.start() + 1
                continue
            pieces += (text[done : match.start()], anchors[match.group()])
            done = position = match.end()
        return "".join([*pieces, text[done:]])

    def _copy_for(self, text: str) -> _Copy:
        """A copy none of whose anchors occur in this text, so that nobody can type an anchor."""
        used = {ord(character) for character in text if ord(character) >= PRIVATE[0]}
        size = max(len(self._special), 1)
        # From the end of the private planes: the template's masking takes them from the start.
        for first in range(len(PRIVATE) - size, -1, -size):
            codes = PRIVATE[first : first + size]
            if used.isdisjoint(codes):
                if first not in self._copies:
                    self._copies[first] = self._make(codes)
                return self._copies[first]
        raise ChatError("the text uses too many private-use characters; remove them.")

    def _make(self, codes: tuple[int, ...]) -> _Copy:
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        anchors = {content: chr(code) for content, code in zip(self._special, codes, strict=False)}
        ids: dict[int, int] = {}
        for content, character in anchors.items():
            identifier, token = self._special[content]
            anchor = tokenizers.AddedToken(
                character, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized, special=False
            )
            backend.add_tokens([anchor])
            anchored = backend.token_to_id(character)
            assert anchored is not None
            ids[anchored] = identifier
        return _Copy(backend, anchors, ids)
