"""The command line put together, and what the process makes of an exception that no command has dealt with."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from behold._version import __version__
from behold.api.cli import ask, chat, models, show
from behold.api.cli.terminal import complain

HELP = "Ask questions about images with open vision-language models."
EPILOG = 'Try it without any download: behold ask picture.png "What do we see in this image?" --model demo'

# typer brings its own copy of click or depends on it, as it likes: this is the name both give to a usage error.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="behold",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("show")(show.show)
app.command("models")(models.models)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"behold {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 1 (error), 2 (usage), 130 (Ctrl+C), 141 (nobody reads)."""
    try:
        code = app(arguments, prog_name="behold", standalone_mode=False)
    except UsageError as error:
        code = _explain(error)
    except typer.Abort:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print what was wrong with the command typed; the exit code."""
    context = getattr(error, "ctx", None)
    message = getattr(error, "format_message", error.__str__)()
    if context is not None and not message:
        print(context.get_help())  # a bare `behold`: not a mistake worth a word, but not success either
    else:
        complain(message)
        if context is not None:
            complain(f"see {context.command_path} --help", label="hint")
    return int(getattr(error, "exit_code", 2))
