"""Blocks whose weights are wanted now and then, not at every step: a tower's, which looks at a picture once."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class Seldom(nn.Module):
    """A block that says when it is through, until the next picture.

    when_through: what whoever keeps the weights wants to be told then; a copy of the block tells nobody.
    """

    when_through: Callable[[], object] | None = None

    def through(self) -> None:
        """To be called at the end of each pass."""
        if self.when_through is not None:
            self.when_through()
