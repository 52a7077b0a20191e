"""When an answer only repeats itself: the same block of at most 64 tokens, at least 10 times in a row and for at least
128 tokens. Free of torch.

Small models fall into such loops and leave them almost never, so that everything up to the length limit is wasted.
Text with a purpose repeats too. The bounds let pass what is common: rulers of 120 characters even where every byte is
a token, boards and tables of 9 equal rows, refrains, a laugh of 40 syllables, arrays of some 40 equal numbers. Longer
runs of the very same are taken for a loop, an empty form's many equal rows among them.
"""

from __future__ import annotations

MAX_PERIOD = 64
MIN_REPEATS = 10
MIN_TOKENS = 128


class LoopDetector:
    """Fed an answer's ids one by one. A token costs as many steps as it has equals among the 64 before it.

    >>> detector = LoopDetector()
    >>> [detector.add(7) for _ in range(128)].index(True)
    127
    """

    def __init__(self) -> None:
        self._length = 0
        self._places: dict[int, list[int]] = {}  # where each id came last, within the longest period
        self._runs: dict[int, int] = {}  # period → how many of the newest ids equal the one a period before them

    def add(self, token: int) -> bool:
        """Take the next id; whether the ids now end in a loop."""
        places = [place for place in self._places.get(token, ()) if self._length - place <= MAX_PERIOD]
        periods = [self._length - place for place in places]
        self._runs = {period: self._runs.get(period, 0) + 1 for period in periods}
        self._places[token] = [*places, self._length]
        self._length += 1
        # A run begins with its second block, so the first one is added.
        return any(run + period >= max(MIN_TOKENS, MIN_REPEATS * period) for period, run in self._runs.items())
