"""When an answer ends, and what of its text may be shown before that. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Lets text through until one of the stop strings appears, and never shows a part of one.

    Text that could be the beginning of a stop string waits until it is clear what it is.

    >>> stops = StopStrings(("END",))
    >>> stops.add("to the E"), stops.add("ast EN"), stops.add("D of")
    ('to the ', 'East ', '')
    >>> stops.hit
    'END'
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self.strings = tuple(strings)
        self.hit: str | None = None
        self._held = ""

    def add(self, text: str) -> str:
        """Take more text; return what may be shown now. After a hit nothing more is shown."""
        if not self.strings:
            return text
        if self.hit is not None:
            return ""
        held = self._held + text
        found = [(at, stop) for stop in self.strings if (at := held.find(stop)) >= 0]
        if found:
            at, self.hit = min(found, key=lambda match: match[0])
            self._held = ""
            return held[:at]
        keep = max(_overlap(held, stop) for stop in self.strings)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The answer is over: what was held back turned out to be plain text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
