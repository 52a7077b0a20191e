"""Python's collector of cycles, kept from looking through all of torch while there is nothing to be found."""

from __future__ import annotations

import gc
import threading
from types import TracebackType


class Pauses:
    """No collection between the first that enters and the last that leaves, in whatever threads they are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._was_on = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._was_on:
                gc.enable()


PAUSED = Pauses()
"""For moments in which thousands of objects are made that stay, modules or the layers of a model: each look at all of
torch's takes a tenth of a second."""
