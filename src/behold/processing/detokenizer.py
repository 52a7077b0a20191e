"""Ids to text while they arrive: every piece is final, no character is split, and the pieces join to the whole text.

Cost per id is that of decoding a few ids, whatever came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from behold.processing.token_bytes import BYTE_OF, BYTE_TOKEN, decoder_steps
from behold.processing.tokenizer import Tokenizer

# The longest beginning of a UTF-8 character that is not yet a character.
_LONGEST_INCOMPLETE_BYTES = 3


class Detokenizer:
    """State of one answer.

    Three offsets into its ids: text up to `_read` has been given out (up to `_previous` the time before); decoding
    starts at `_context`, a little before, so that the decoder sees what a word follows; ids from `_read` on wait until
    their text is final.

    Example: the two byte-level ids of "é", one by one: the first gives "", the second gives "é".
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._context = 0
        self._previous = 0
        self._read = 0
        self._context_text = ""  # of the ids from _context to _read
        kinds = {step["type"] for step in decoder_steps(tokenizer)}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds

    def add(self, ids: Iterable[int]) -> str:
        """Take further ids; returns the text that is now certain, often "" in the middle of a character."""
        self._ids.extend(ids)
        return "" if self._waiting() else self._advance()

    def finish(self) -> str:
        """The text still held back; an unfinished character shows as U+FFFD, as it does when decoding all at once."""
        return self._advance()

    def pending(self) -> str:
        """What is held back, as it would read if the answer ended here; "" in the middle of a character.

        For looking only (has a stop string been written?): later ids may still change it.
        """
        held = self._decode(self._context)[len(self._context_text) :] if self._read < len(self._ids) else ""
        return "" if "\ufffd" in held else held

    def _advance(self) -> str:
        text = self._decode(self._context)
        if len(text) <= len(self._context_text):
            return ""  # nothing to see yet (special tokens): keep the context, a decoder may trim a first space
        new = text[len(self._context_text) :]
        self._context_text = text
        for start in (self._read, self._previous):
            # A lone space will not do as context: a decoder that trims the first space would trim a second one.
            if later := self._decode(start):
                self._context, self._context_text = start, later
                break
        self._previous, self._read = self._read, len(self._ids)
        return new

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._ids[start:], skip_special_tokens=self._skip)

    def _waiting(self) -> bool:
        """Whether the last ids may still change what their text will be."""
        if self._byte_level:
            tail = self._tail_bytes()
            _, consumed = codecs.utf_8_decode(tail, "replace", False)
            return consumed < len(tail)
        if self._byte_fallback:
            # A run of byte tokens is decoded together: one wrong byte at its end turns all of it into U+FFFD.
            token = self._last_token()
            return token is not None and BYTE_TOKEN.fullmatch(token) is not None
        return False

    def _visible(self) -> Iterable[str]:
        """Tokens from the last backwards, without those that are not shown."""
        special = self._tokenizer.special_ids if self._skip else frozenset()
        for position in range(len(self._ids) - 1, -1, -1):
            identifier = self._ids[position]
            token = None if identifier in special else self._tokenizer.id_to_token(identifier)
            if token is not None:
                yield token

    def _last_token(self) -> str | None:
        return next(iter(self._visible()), None)

    def _tail_bytes(self) -> bytes:
        tail = b""
        for token in self._visible():
            written = [BYTE_OF.get(character) for character in token]
            # A token with any other character is an added one, which the decoder takes literally.
            whole = token.encode() if None in written else bytes(byte for byte in written if byte is not None)
            tail = whole + tail
            if len(tail) >= _LONGEST_INCOMPLETE_BYTES:
                break
        return tail[-_LONGEST_INCOMPLETE_BYTES:]
