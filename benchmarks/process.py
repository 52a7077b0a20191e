"""A peer's process, spoken to in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
SETTLE_S = 0.5  # between two peers' turns: threads of the last one stop spinning


class PeerFailedError(SystemExit):
    """The process ended without an answer; the message has the last it said."""


class PeerRefusedError(PeerFailedError):
    """The library does not take what it was asked to load; the message is its own."""


@dataclass
class Worker:
    """`loaded` is what the process said after its setup."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str]
    loaded: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, setup: Mapping[str, Any], *, threads: int, module: str = "benchmarks.worker") -> Worker:
        """Runs `module` and gives it its setup.

        Raises:
            PeerFailedError: it ended. PeerRefusedError: it said why it would not load.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed by `stop`)
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        worker = cls(name, process, log)
        worker.loaded = worker.ask(dict(setup))
        if "refused" in worker.loaded:
            worker.stop()
            raise PeerRefusedError(worker.loaded["refused"])
        return worker

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line to the process, one line back.

        Raises:
            PeerFailedError: there is none.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.log.seek(0)
            said = self.log.read()[-4000:]
            self.stop()
            raise PeerFailedError(f"{self.name} failed:\n{said}")
        record: dict[str, Any] = json.loads(answer)
        return record

    def stop(self) -> None:
        """Lets the process end; it may have ended already."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
