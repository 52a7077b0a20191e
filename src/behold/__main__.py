"""`python -m behold`: the same as the command `behold`."""

from __future__ import annotations

from behold.api.cli import main

if __name__ == "__main__":
    main()
