"""`behold chat [IMAGE…]`: a conversation at the terminal, or one line after the other from a pipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from behold.api.cli.asked import STDIN, sayable
from behold.api.cli.options import (
    DebugOption,
    JsonOption,
    ModelChoice,
    PictureChoice,
    QuietOption,
    SamplingChoice,
    takes,
)
from behold.api.cli.printing import print_answer
from behold.api.cli.terminal import complain, note, reported, write_styled
from behold.errors import BeholdError, CapacityError

if TYPE_CHECKING:
    from PIL.Image import Image

    from behold.api.chat import Chat
    from behold.api.sampling import SamplingOptions
    from behold.api.vlm import VLM
    from behold.chat.policy import MediaPolicy

PROMPT = "you: "
HELP = """/image PICTURE…  show one or more pictures with the next line
/reset           forget the conversation
/help            this list
/quit            leave (as does Ctrl+D)
Ctrl+C stops an answer; what has come of it stays in the conversation."""


@takes(choice=ModelChoice, decoding=PictureChoice, sampling=SamplingChoice)
def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]…", show_default=False, help="Pictures to talk about: files or addresses."),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told beforehand.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    choice: ModelChoice,
    decoding: PictureChoice,
    sampling: SamplingChoice,
) -> None:
    """Talk about pictures; the conversation is kept, and each picture is looked at once.

    Lines from a pipe are answered one after the other; the first error ends it.
    """
    if STDIN in (images or ()):
        raise typer.BadParameter("standard input is where your lines come from; name the picture's file")
    with reported(debug=debug, hint=choice.hint):
        pictures = [_load(image, decoding.policy) for image in images or ()]
        vlm = choice.open()
        options = sampling.keywords()
        vlm.params(options)
        conversation = Conversation(vlm, options, decoding.policy, system=system, json=json, quiet=quiet)
        conversation.pictures = pictures
        conversation.run()


class Conversation:
    """The loop: read a line, obey or answer it."""

    def __init__(
        self, vlm: VLM, options: SamplingOptions, policy: MediaPolicy, *, system: str | None, json: bool, quiet: bool
    ) -> None:
        self.pictures: list[Image] = []
        self._vlm = vlm
        self._chat: Chat = vlm.chat(system=system)
        self._options = options
        self._policy = policy
        self._json = json
        self._quiet = quiet
        self._at_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Until the input ends or /quit.

        Raises:
            BeholdError: a line failed, and nobody is at the terminal to be told.
        """
        if self._at_terminal:
            _enable_line_editing()
            note(f"{self._vlm.name} · /help lists the commands · Ctrl+C stops an answer · Ctrl+D leaves")
        while (line := self._read()) is not None:
            try:
                if line.startswith("/") and not Path(line.split()[0]).exists():
                    if not self._obey(line):
                        return
                elif line:
                    self._answer(line)
            except BeholdError as error:
                if not self._at_terminal:
                    raise
                complain(str(error))
                if isinstance(error, CapacityError):
                    complain("/reset forgets the conversation so far", label="hint")
            except KeyboardInterrupt:
                if not self._at_terminal:
                    raise
                note("stopped")

    def _read(self) -> str | None:
        """The next line without its end; None when there is none."""
        while True:
            try:
                return sayable(_ask_line() if self._at_terminal else _next_line()).strip()
            except EOFError:
                if self._at_terminal:
                    note("")
                return None
            except KeyboardInterrupt:
                if not self._at_terminal:
                    raise
                note("\n(Ctrl+D or /quit leaves)")

    def _obey(self, line: str) -> bool:
        """Do what a /command says; False to leave."""
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/image":
            self._add_pictures(rest)
        elif command == "/reset":
            self._chat.reset()
            self.pictures = []
            note("forgotten")
        elif command in ("/help", "/?"):
            note(HELP)
        else:
            complain(f"there is no command {command}; /help lists them")
        return True

    def _add_pictures(self, rest: str) -> None:
        try:
            names = [rest.strip()] if Path(rest.strip()).expanduser().is_file() else shlex.split(rest)
        except ValueError as error:
            complain(f"{rest}: {error}")
            return
        if not names:
            complain("/image needs a file or an address")
            return
        self.pictures += [_load(name, self._policy) for name in names]
        note(f"{len(self.pictures)} with your next line" if len(self.pictures) > 1 else "goes with your next line")

    def _answer(self, line: str) -> None:
        turns = len(self._chat.messages)
        beams = self._options.get("num_beams") or 1
        reply = self._chat.say if beams > 1 else self._chat.stream
        answer = reply(self.pictures, line, **self._options)
        try:
            print_answer(answer, self._vlm, json=self._json, quiet=self._quiet)
        finally:
            # Pictures of a turn that failed go with the next line instead.
            if len(self._chat.messages) > turns:
                self.pictures = []


def _load(name: str, policy: MediaPolicy) -> Image:
    from behold.chat.media import load_image

    return load_image(str(Path(name).expanduser()) if name.startswith("~") else name, policy=policy)


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - its import alone gives input() line editing and history
    except ImportError:
        return  # not on every platform; plain lines work as well


def _ask_line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    write_styled(PROMPT, "1")
    return _next_line()


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
