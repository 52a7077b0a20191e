"""The command `behold`: thin commands over the short surface.

Nothing heavy is imported until a command runs, so that `behold --help` answers at once.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 1 (error), 2 (usage), 130 (Ctrl+C), 141 (nobody reads)."""
    try:
        from behold.api.cli.app import run

        code = run(arguments)
    except KeyboardInterrupt:  # before or after a command, each of which answers for its own time
        code = 130
    sys.exit(code)
