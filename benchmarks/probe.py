"""What this machine can do: probe.c, compiled when it is first needed, and run between the turns of the rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("probe.c")
SECONDS = 0.5  # for each of its figures


def build(cache: Path) -> Path | None:
    """The program, or None where there is no C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    program = cache / f"probe-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".unfinished")
        command = [compiler, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(unfinished)]
        subprocess.run(command, check=True)
        unfinished.rename(program)
    return program


def measure(program: Path, threads: int, seconds: float = SECONDS) -> dict[str, float]:
    """Rates with this many threads, by the names that probe.c prints."""
    run = subprocess.run([program, str(threads), str(seconds)], check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(run.stdout)
    return rates
