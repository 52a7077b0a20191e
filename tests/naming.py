"""Names of tests, the same in every process: workers that share a run compare their lists."""

from __future__ import annotations

import re


def plainly(value: object) -> str:
    """What a parameter is called: its text, without the address that some objects have in theirs."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))
