"""The command `behold`: thin commands over the short surface.

Nothing heavy is imported until a command runs, so that `behold --help` answers at once.
"""

from __future__ import annotations

from behold.api.cli.app import main

__all__ = ["main"]
