"""The bytes that single ids stand for: what a text is made of before it is cut into characters."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from behold.processing.tokenizer import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_alphabet() -> dict[str, int]:
    """The 256 printable letters that byte-level BPE writes bytes with: printable Latin-1 stands for itself, the rest
    are shifted up from 256 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = byte_level_alphabet()


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The steps that the tokenizer's decoder is made of, each with its "type"."""
    decoder = tokenizer.backend.decoder
    if decoder is None:
        return []
    described: dict[str, Any] = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = described.get("decoders", [described])
    return steps


class TokenBytes:
    """One tokenizer's ids as bytes, each as it reads inside a text: a word piece keeps the space before it.

    Example, byte-level: the two ids of "é" give b"\\xc3" and b"\\xa9".
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, identifier: int) -> bytes:
        """b"" for an id beyond the vocabulary: models have more logits than tokens."""
        token = self._tokenizer.id_to_token(identifier)
        if token is None:
            return b""
        if identifier in self._added:
            return token.encode()
        if "ByteLevel" in self._kinds:
            written = [BYTE_OF.get(character) for character in token]
            return token.encode() if None in written else bytes(byte for byte in written if byte is not None)
        if "ByteFallback" in self._kinds and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte.group(1))
        for letter, text in self._spaces:
            token = token.replace(letter, text)
        return token.encode()

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(step["type"] for step in decoder_steps(self._tokenizer))

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.backend.get_added_tokens_decoder())

    @cached_property
    def _spaces(self) -> list[tuple[str, str]]:
        """What stands for a space in tokens, and the space."""
        steps = decoder_steps(self._tokenizer)
        written = [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        replaced = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
        return [(letter, text) for letter, text in [*written, *replaced] if letter]
