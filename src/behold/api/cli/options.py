"""Options that several commands share, each group a record: written once, taken whole.

A command says `@takes(choice=ModelChoice, sampling=SamplingChoice)` and gets one argument for each; on the command
line every field is an option of its own.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from behold.api.cli.terminal import leaving_at_once

if TYPE_CHECKING:
    from behold.api.sampling import SamplingOptions
    from behold.api.vlm import VLM
    from behold.chat.policy import MediaPolicy

DEFAULT_MODEL = "llava-hf/llava-interleave-qwen-0.5b-hf"
_MODEL = "Model"
_SAMPLING = "Sampling"

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error happened.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No timings.")]


@dataclass(frozen=True)
class CheckpointChoice:
    """Which checkpoint."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            envvar="BEHOLD_MODEL",
            metavar="ID_OR_DIR",
            help='A hub id, a folder, or "demo", which is bundled and needs no network.',
            rich_help_panel=_MODEL,
        ),
    ] = DEFAULT_MODEL
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit on the hub.", rich_help_panel=_MODEL)
    ] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use what is cached, never the network.", rich_help_panel=_MODEL)
    ] = False

    @property
    def hint(self) -> str:
        """What to try when the checkpoint is not to be had; nothing where it is a folder with something missing."""
        local = self.model == "demo" or Path(self.model).expanduser().is_dir()
        return "" if local else "--model demo is bundled and needs no network"


@dataclass(frozen=True)
class RunChoice(CheckpointChoice):
    """Which checkpoint, where and in what it is run."""

    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …", rich_help_panel=_MODEL)] = "auto"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.", rich_help_panel=_MODEL)] = "auto"


@dataclass(frozen=True)
class ModelChoice(RunChoice):
    """Which checkpoint, and how it is run."""

    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="SCHEME",
            help="Smaller weights: int8, int4, or float8 on a GPU; full: none.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    cache_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What quantized weights may take on disk, such as 20GB; 0 keeps none. \\[default: 32GB]",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None

    def open(self) -> VLM:
        """The model, loaded.

        Raises:
            BeholdError: see `behold.load`.
        """
        with leaving_at_once():
            from behold.api.vlm import load

        return load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            cache_limit=self.cache_limit,
            revision=self.revision,
            offline=self.offline,
        )


@dataclass(frozen=True)
class PictureChoice:
    """How pictures are decoded."""

    jpeg_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Decode JPEGs at a half, a quarter or an eighth, as long as both sides keep so many pixels: sooner, "
            "and answers may change a little.",
            rich_help_panel="Pictures",
            show_default=False,
        ),
    ] = None

    @property
    def policy(self) -> MediaPolicy:
        """As what decodes them wants it."""
        from behold.chat.policy import MediaPolicy

        return MediaPolicy(jpeg_side=self.jpeg_side)


def _number(help: str, *names: str) -> Any:  # noqa: ANN401 - as typer names it; what Annotated takes
    return typer.Option(*names, help=help, rich_help_panel=_SAMPLING, show_default=False)


@dataclass(frozen=True)
class SamplingChoice:
    """How answers are chosen; the names of `SamplingOptions`."""

    max_new_tokens: Annotated[int | None, _number("Tokens of an answer at most. \\[default: 256]")] = None
    temperature: Annotated[
        float | None, _number("0: the likeliest token each time; above: sample. \\[default: 0]", "--temperature", "-t")
    ] = None
    top_p: Annotated[float | None, _number("Sample from the likeliest tokens of this total probability.")] = None
    top_k: Annotated[int | None, _number("Sample from this many likeliest tokens.")] = None
    min_p: Annotated[float | None, _number("Leave out tokens less likely than this share of the likeliest.")] = None
    seed: Annotated[int | None, _number("Makes a sampled answer repeatable.")] = None
    stop: Annotated[list[str] | None, _number("End the answer before this text. May be repeated.")] = None
    repetition_penalty: Annotated[float | None, _number("Above 1: repeat less, as in CTRL.")] = None
    presence_penalty: Annotated[float | None, _number("Above 0: new words rather than used ones.")] = None
    frequency_penalty: Annotated[float | None, _number("Above 0: used words less, the more often used.")] = None
    num_beams: Annotated[int | None, _number("Beam search over this many beams; the answer comes at once.")] = None
    loop_stop: Annotated[
        bool | None,
        _number("End an answer that only repeats itself. \\[default: on]", "--loop-stop/--no-loop-stop"),
    ] = None

    def keywords(self) -> SamplingOptions:
        """Those that were given, as keywords of the short surface."""
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        options: SamplingOptions = {}
        options.update({name: value for name, value in given.items() if value not in (None, [])})  # type: ignore[typeddict-item]
        return options


def _form(help: str, *names: str, metavar: str) -> Any:  # noqa: ANN401 - as above
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Form", show_default=False)


@dataclass(frozen=True)
class FormChoice:
    """What the answer must look like; at most one of these."""

    schema: Annotated[
        str | None, _form("The answer is JSON under this JSON schema: a file, or the schema itself.", metavar="FILE")
    ] = None
    regex: Annotated[str | None, _form("The whole answer matches this pattern.", metavar="PATTERN")] = None
    choices: Annotated[
        list[str] | None,
        _form("The answer is this text. Repeated: one of these texts.", "--choice", metavar="TEXT"),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Those that were given, as keywords of the short surface.

        Raises:
            typer.BadParameter: the schema cannot be read.
        """
        given = {"regex": self.regex, "choices": self.choices or None}
        if self.schema is not None:
            given["schema"] = _json_of(self.schema)
        return {name: value for name, value in given.items() if value is not None}


def _json_of(schema: str) -> Any:  # noqa: ANN401 - whatever the JSON says
    try:
        return json.loads(schema if schema.lstrip().startswith("{") else Path(schema).expanduser().read_text("utf-8"))
    except OSError as error:
        why = f"{schema} cannot be read ({error.strerror}); give a file or the schema itself, which begins with {{"
        raise typer.BadParameter(why, param_hint="--schema") from error
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON: {error}", param_hint="--schema") from error


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Spread records over the command line: each field of `groups[name]` is an option, `name` gets the record."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in own.parameters.values()
            if parameter.name not in groups
        ]
        for group in groups.values():
            types = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=types[item.name]
                )
                for item in fields(group)
            ]

        @functools.wraps(command)
        def spread(**given: object) -> None:
            records = {
                name: group(**{item.name: given.pop(item.name) for item in fields(group)})
                for name, group in groups.items()
            }
            command(**given, **records)

        spread.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return spread

    return decorate
