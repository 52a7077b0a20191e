"""Text typed by people that looks like a special token, kept apart from the special tokens that a template writes.

Before rendering, each such piece of text is replaced by one private-use character, which a template can trim, join
and test like any other; afterwards the characters are put back and their ranges remembered. The tokenizer treats a
special token that touches one of these ranges as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from behold.errors import ChatError

# The two private-use planes: no text in any language uses them, and every tokenizer passes them through.
PRIVATE = tuple(chain(range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)))
_PRIVATE_CHARACTER = re.compile("[\U000f0000-\U0010fffd]")
Ranges = tuple[tuple[int, int], ...]


class RenderedPrompt(str):
    """A rendered conversation: a `str`, with the character ranges that must stay text.

    Example: of "<|im_start|>user\\nWhat is <image>?", where a person typed "<image>", literals is ((25, 32),).
    Any string method gives a plain `str` again, in which nothing is protected.
    """

    literals: Ranges

    def __new__(cls, text: str, literals: Iterable[tuple[int, int]] = ()) -> RenderedPrompt:
        prompt = super().__new__(cls, text)
        prompt.literals = tuple(literals)
        return prompt

    def __getnewargs__(self) -> tuple[str, Ranges]:  # type: ignore[override]  # pickle and copy keep the ranges
        return str(self), self.literals


class Masker:
    """Replaces what looks like one of `tokens` in anything a template is given, and puts it back afterwards.

    One masker serves one rendering: it hands out characters that occur nowhere in what it was shown.
    """

    def __init__(self, tokens: Iterable[str], avoid: Iterable[str]) -> None:
        """tokens: strings with a special meaning. avoid: texts whose private-use characters must not be taken."""
        self._tokens = sorted({token for token in tokens if token}, key=len, reverse=True)
        self._taken = set(chain.from_iterable(_PRIVATE_CHARACTER.findall(text) for text in avoid))
        self._free = (chr(code) for code in PRIVATE if chr(code) not in self._taken)
        self._originals: dict[str, str] = {}
        self._characters: dict[str, str] = {}
        self._whole = re.compile("|".join(map(re.escape, self._tokens)) or r"(?!)")
        self._starts = {token[:length] for token in self._tokens for length in range(1, len(token))}
        self._longest_start = max(map(len, self._starts), default=0)

    def mask(self, value: Any) -> Any:  # noqa: ANN401 - any JSON-like value, given back in the same shape
        """The same value with every string in it masked; keys of mappings stay as they are."""
        if isinstance(value, str):
            return self._mask_text(value)
        if isinstance(value, Mapping):
            return {key: self.mask(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.mask(item) for item in value]
        return value

    def character(self, original: str) -> str:
        """The private character that stands for `original` in this rendering."""
        if original not in self._characters:
            try:
                character = next(self._free)
            except StopIteration:
                raise ChatError("the text uses every private-use character there is; remove them.") from None
            self._characters[original] = character
            self._originals[character] = original
        return self._characters[original]

    def unmask(self, text: str) -> RenderedPrompt:
        """Masked text to what was typed, with the ranges of what was masked."""
        pieces: list[str] = []
        ranges: list[tuple[int, int]] = []
        length = 0
        for piece in re.split(f"([{''.join(self._originals)}])", text) if self._originals else [text]:
            original = self._originals.get(piece)
            if original:
                ranges.append((length, length + len(original)))
            pieces.append(piece if original is None else original)
            length += len(pieces[-1])
        return RenderedPrompt("".join(pieces), ranges)

    def _mask_text(self, text: str) -> str:
        text = self._whole.sub(lambda match: self.character(match.group()), text)
        # A token's beginning at the very end is masked too: "<ima" and "ge>" in two parts must not join to one.
        end = len(text.rstrip())
        for length in range(min(self._longest_start, end), 0, -1):
            if text[end - length : end] in self._starts:
                return text[: end - length] + self.character(text[end - length : end]) + text[end:]
        return text


def texts_of(value: object) -> Iterable[str]:
    """Every string in a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for item in value:
            yield from texts_of(item)
