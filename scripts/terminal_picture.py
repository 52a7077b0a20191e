"""Draws docs/terminal.svg, the picture in the README, from a real session in a pseudo-terminal.

python scripts/terminal_picture.py        # needs the bundled checkpoint; run it again when the output changes
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from pathlib import Path

import pexpect
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "terminal.svg"
WIDTH = 100
SESSION = (
    'behold ask --model demo examples/scene.png "What do we see in this image?"',
    'behold ask --model demo examples/word.png "What does the text say?"',
    'behold ask --model demo examples/number.png "How many shapes are there?"',
)


def run(command: str) -> str:
    """What a command writes to a terminal of WIDTH columns.

    Raises:
        SystemExit: the command failed; a picture of an error helps nobody.
    """
    program, *arguments = shlex.split(command)
    beside = Path(sys.executable).parent / program
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    text, status = pexpect.run(
        shlex.join([str(beside), *arguments]),
        cwd=str(ROOT),
        env=environment,
        encoding="utf-8",
        withexitstatus=True,
        timeout=120,
        dimensions=(40, WIDTH),
    )
    if status != 0:
        raise SystemExit(f"{command} failed:\n{text}")
    return str(text).replace("\r\n", "\n").rstrip()


def main() -> None:
    """Run the session and write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for command in SESSION:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(run(command)))
        console.print()
    picture = console.export_svg(title="behold", unique_id="behold")
    # the reader's own monospace font will do: a README should fetch nothing from elsewhere
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    TARGET.write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
