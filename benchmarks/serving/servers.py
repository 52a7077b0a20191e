"""Servers as processes of their own: started, waited for, measured from outside, stopped."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

ROOT = Path(__file__).parents[2]
START_S = 300.0
NEEDED_BY_TRANSFORMERS = ("accelerate", "psutil", "fastapi", "uvicorn", "openai")


@dataclass
class Server:
    """A running server. `model` is the name that requests give it."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    base_url: str
    model: str

    def memory_bytes(self, kind: str) -> int:
        """Of the process and its children: "VmRSS" now, "VmHWM" at most (0 where the system does not tell)."""
        return sum(_status_bytes(pid, kind) for pid in _family(self.process.pid))

    def counters(self) -> dict[str, float]:
        """What /metrics says, by name; of metrics with labels the sum. Nothing where there is no such page."""
        response = httpx.get(f"{self.base_url}/metrics", trust_env=False, timeout=30)
        return read_metrics(response.text) if response.status_code == 200 else {}

    def output(self) -> str:
        """The end of what it printed."""
        self.log.seek(0)
        return self.log.read()[-4000:].decode("utf-8", "replace")


def read_metrics(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format; those of one name added up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def missing_for_transformers() -> list[str]:
    """What `transformers serve` needs and is not installed."""
    return [name for name in NEEDED_BY_TRANSFORMERS if importlib.util.find_spec(name) is None]


def _command(name: str, model: str, port: int, *, dtype: str, max_waiting: int) -> list[str]:
    if name == "behold":
        line = [sys.executable, "-m", "behold", "serve", "--model", model, "--dtype", dtype, "--device", "cpu"]
        return [*line, "--port", str(port), "--max-waiting", str(max_waiting)]
    start = "from transformers.cli.transformers import main; main()"
    folder = str(ROOT / "src" / "behold" / "demo") if model == "demo" else model
    return [sys.executable, "-c", start, "serve", folder, "--device", "cpu", "--dtype", dtype, "--port", str(port)]


@contextmanager
def serving(name: str, model: str, *, threads: int, dtype: str = "float32", max_waiting: int = 512) -> Iterator[Server]:
    """`behold` or `transformers`, serving a folder (or "demo") on a free port until the block ends.

    Raises:
        SystemExit: it did not start; the message has the end of its output.
    """
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = _command(name, model, port, dtype=dtype, max_waiting=max_waiting)
    log = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT)
    server = Server(name, process, log, f"http://127.0.0.1:{port}", command[4] if name == "transformers" else "")
    try:
        _wait_until_up(server)
        if name == "behold":
            listed = httpx.get(f"{server.base_url}/v1/models", trust_env=False, timeout=30).json()
            server.model = listed["data"][0]["id"]
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.base_url}/health", trust_env=False, timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{server.name} did not start:\n{server.output()}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [member for child in task.read_text().split() for member in _family(int(child))]
        except OSError:  # it has just ended
            continue
    return found


def _status_bytes(pid: int, kind: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))
