"""How much reading fits beside running answers: measured seconds, not guesses about the machine. No torch.

While an answer runs that began before a request came, the request's prompt and pictures are read in portions that
are meant to take no longer than the answer's own step, so that the time between two of its tokens about doubles. A
portion has a least size: every step that reads at all also reads all weights for it.
"""

from __future__ import annotations

SHARE = 0.6  # of a decode step's time, spent on reading; below 1 because steps vary
FEWEST_TOKENS = 8
_MEMORY = 0.7  # weight of the past in each running mean


class Pace:
    """Running means of what a decode step takes, and what each prompt token adds to one."""

    def __init__(self) -> None:
        self.decode_s = 0.0
        self.token_s = 0.0

    def record(self, seconds: float, *, decoding: int, prompt_tokens: int, pictures: bool) -> None:
        """A step took `seconds`: that many answers got a token, that many prompt tokens were read."""
        if pictures or not decoding:
            return
        if not prompt_tokens:
            self.decode_s = _mean(self.decode_s, seconds)
        elif self.decode_s:
            self.token_s = _mean(self.token_s, max(seconds - self.decode_s, 0.0) / prompt_tokens)

    def portion(self, most: int) -> int:
        """Prompt tokens to read beside a decode step, `most` at most."""
        if not self.decode_s or not self.token_s:
            return min(FEWEST_TOKENS, most)
        fitting = int(SHARE * self.decode_s / self.token_s)
        # In steps, as products of a size that was never met take longer.
        return min(max(fitting - fitting % FEWEST_TOKENS, FEWEST_TOKENS), most)

    @property
    def pictures_s(self) -> float:
        """Seconds to spend on pictures beside a decode step."""
        return SHARE * self.decode_s


def _mean(past: float, now: float) -> float:
    return _MEMORY * past + (1 - _MEMORY) * now if past else now
