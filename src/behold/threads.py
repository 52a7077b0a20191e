"""How many threads work on a CPU: as many as there are cores, and no more than other programs leave free.

Torch's OpenMP threads wait for each other by spinning. That is fastest where each has a core of its own; where they
have not, a thread that waits holds the core of the one it waits for, and two programs get a fifth of what one gets.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from behold.errors import OptionError

PERIOD_S = 0.1  # ten ticks of the system's clocks
FEW_ROWS = 16  # of a model pass so short that its number of threads stays: it may be replayed (engine/replay.py)
PAUSE_S = 3.0  # what others took, on average, since before a pause says nothing about now


def use_threads(system: Path = Path("/sys")) -> None:
    """Set how many threads torch and our kernels work with: BEHOLD_THREADS, or as many as there are cores to use.

    Fewer are left as they are, and what OMP_NUM_THREADS says is, too: somebody wanted it so.

    Raises:
        OptionError: BEHOLD_THREADS is no whole number from 1 on.
    """
    wanted = os.environ.get("BEHOLD_THREADS", "")
    if wanted:
        if not wanted.isdecimal() or not int(wanted):
            raise OptionError(f"BEHOLD_THREADS={wanted!r} is not a number of threads: a whole number from 1 on.")
        torch.set_num_threads(int(wanted))
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cores := usable_cores(system)):
        torch.set_num_threads(cores)


def usable_cores(system: Path = Path("/sys")) -> int:
    """The physical cores this process may use, at least 1: those it is bound to, and no more than its share of time.

    Two hardware threads of a core share the units that products need: the second one gains nothing there.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(system, cpu) for cpu in allowed}
    with suppress(OSError, ValueError):
        quota, period = (system / "fs/cgroup/cpu.max").read_text().split()
        return max(1, min(len(cores), int(quota) // int(period)))
    return max(1, len(cores))


def _siblings(system: Path, cpu: int) -> str:
    """The hardware threads of a CPU's core, as Linux writes them; elsewhere each is a core."""
    try:
        return (system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


@dataclass(frozen=True, slots=True)
class Reading:
    """At a time: how many CPUs we may use, and seconds of work so far: theirs, and this process's own."""

    at: float
    cpus: int
    busy: float
    own: float


def read_load(stat: Path = Path("/proc/stat")) -> Reading | None:
    """The reading of now; None where the system does not say (only Linux does)."""
    try:
        allowed = os.sched_getaffinity(0)
        fields = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
        ticks = 0
        for name, user, nice, system, _idle, _waiting, interrupt, late, *_ in fields:
            if name[3:] and int(name[3:]) in allowed:
                ticks += int(user) + int(nice) + int(system) + int(interrupt) + int(late)
        return Reading(time.monotonic(), len(allowed), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())
    except (OSError, AttributeError, ValueError):
        return None


class _Driver(threading.local):
    """A thread that runs steps: whether it has run one, and inside a step the most threads it may work with, else 0."""

    known = False
    most = 0


class Share:
    """The threads of this process beside the programs that want the same CPUs.

    Every tenth of a second at most it is looked how much of them others have taken since; what is left is ours. So two
    processes that meet come down to a part for each, and who is alone again soon works with all threads.
    """

    def __init__(self, read: Callable[[], Reading | None] = read_load) -> None:
        self._read = read
        self._last = read()
        self._free: int | None = None  # threads that have a CPU each; None: nothing is known against any number
        self._most = 0
        self._driver = _Driver()

    def threads(self, most: int) -> int:
        """How many to work with now, 1 to `most`."""
        if self._last is not None and most > 1 and time.monotonic() - self._last.at >= PERIOD_S:
            self._look(self._last)
        return most if self._free is None else max(1, min(most, self._free))

    def _look(self, last: Reading) -> None:
        self._last = new = self._read()
        if new is None or new.cpus != last.cpus or not 0 < new.at - last.at < PAUSE_S:
            self._free = None
            return
        others = (new.busy - last.busy - (new.own - last.own)) / (new.at - last.at)
        free, known = new.cpus - others, new.cpus if self._free is None else self._free
        # Half a CPU taken is one lost; one regained has to be there nearly whole, or two processes would take turns.
        if free < known - 0.5:
            self._free = int(max(1.0, free + 0.5))
        elif free > known + 0.75:
            self._free = int(free + 0.25)

    def __enter__(self) -> None:
        """Work with `threads`, until `__exit__`: after that torch has as many as before, which are the most."""
        most = torch.get_num_threads()
        if not self._driver.known:  # a thread that began while another worked with fewer has inherited those
            self._driver.known, most = True, max(most, self._most)
        self._driver.most = self._most = most
        try:
            self.reconsider()
        except BaseException:  # Ctrl+C
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        most, self._driver.most = self._driver.most, 0
        _use(most)

    def reconsider(self) -> None:
        """Between two parts of a long work; nothing happens outside `with`."""
        if self._driver.most:
            _use(self.threads(self._driver.most))


def _use(threads: int) -> None:
    """Setting what is set already takes torch as long as a small kernel."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


SHARE = Share()
"""That of this process: threads are counted for all of torch."""
