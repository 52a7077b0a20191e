"""The command line put together, and what the process makes of an exception that no command has dealt with."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from behold._version import __version__
from behold.api.cli import ask, bench, cache, chat, models, quantization, serve, show
from behold.api.cli.terminal import complain

HELP = "Ask questions about images with open vision-language models."
EPILOG = 'Try it without any download: behold ask picture.png "What do we see in this image?" --model demo'

# typer brings its own copy of click or depends on it, as it likes: this is the name both give to a usage error.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class PlainGroup(TyperGroup):
    """Its help is drawn without Rich, whose import alone takes as long as all else; a command's help may use it."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - handed through
        super().__init__(**{**settings, "rich_markup_mode": None})


app = typer.Typer(
    cls=PlainGroup,
    name="behold",
    help=HELP,
    epilog=EPILOG,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ask", short_help="Answer a question about pictures.")(ask.ask)
app.command("chat", short_help="Talk about pictures.")(chat.chat)
app.command("serve", short_help="Answer over HTTP: the OpenAI API and a chat page.")(serve.serve)
app.command("show", short_help="Draw what the model sees of a picture.")(show.show)
app.command("bench", short_help="Measure speed and memory on this machine.")(bench.bench)
app.command("models", short_help="List what can be used, and what is on this machine.")(models.models)
app.command("quantization", short_help="Show what quantizing does to each layer.")(quantization.quantization)
app.add_typer(cache.cache, short_help="List or clear the quantized weights that are kept on disk.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"behold {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar is for eyes, not for logs
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        code = app(arguments, prog_name="behold", standalone_mode=False)
    except UsageError as error:
        code = _explain(error)
    except typer.Abort:
        code = 130
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    """Say what was wrong with the command typed, and where it is explained; the exit code."""
    complain(getattr(error, "format_message", error.__str__)())
    context = getattr(error, "ctx", None)
    if context is not None:
        complain(f"see {context.command_path} --help", label="hint")
    return int(getattr(error, "exit_code", 2))
