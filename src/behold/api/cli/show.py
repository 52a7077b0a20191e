"""`behold show IMAGE…`: what the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from behold.api.cli.asked import STDIN, read_images
from behold.api.cli.options import CheckpointChoice, DebugOption, JsonOption, PictureChoice, takes
from behold.api.cli.printing import print_json
from behold.api.cli.terminal import leaving_at_once, reported, write

if TYPE_CHECKING:
    from PIL.Image import Image

    from behold.api.show import Sight


@takes(choice=CheckpointChoice, decoding=PictureChoice)
def show(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE…", show_default=False, help="Pictures: files, addresses, - for standard input."),
    ],
    *,
    question: Annotated[str, typer.Option("--question", "-p", help="What is asked about them.")] = (
        "What do we see in this image?"
    ),
    detail: Annotated[
        Literal["auto", "low", "high"], typer.Option(help="What the pictures may cost, where there is a choice.")
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to draw. \\[default: NAME-seen.png, here]"),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
    choice: CheckpointChoice,
    decoding: PictureChoice,
) -> None:
    """Draw what the model sees: each picture resized or cut into tiles, the prompt, and its tokens.

    Only the settings of a model are needed, not its weights.
    """
    with reported(debug=debug, hint=choice.hint):
        with leaving_at_once():
            from behold.api.session import open_checkpoint, open_processor
            from behold.api.show import draw, look
            from behold.api.turns import user_message

        message = user_message(read_images(images), question, detail=detail, policy=decoding.policy)
        files = open_checkpoint(
            choice.model, revision=choice.revision, local_files_only=choice.offline, with_weights=False
        )
        sight = look(open_processor(files), [message])
        names = [_name(image) for image in images]
        target = output or Path(f"{Path(names[0]).stem}-seen.png")
        _save(draw(sight, names), target)
        if json:
            print_json(_record(sight, names, choice.model, target))
        else:
            write(_text(sight, names, target))


def _text(sight: Sight, names: list[str], target: Path) -> str:
    from behold.api.show import describe

    lines = [describe(seen, name) for seen, name in zip(sight.pictures, names, strict=True)]
    lines.append(f"prompt · {sight.prompt_tokens} tokens")
    lines.append("")
    lines.append(sight.short_text.rstrip("\n"))
    lines.append("")
    lines.append(f"drawn in {target}")
    return "\n".join(lines) + "\n"


def _record(sight: Sight, names: list[str], model: str, target: Path) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": sight.text,
        "prompt_tokens": sight.prompt_tokens,
        "images": [
            {
                "name": name,
                "width": seen.size[0],
                "height": seen.size[1],
                "tokens": seen.tokens,
                "parts": [
                    {"width": part.width, "height": part.height, "tokens": tokens}
                    for part, tokens in zip(seen.parts, seen.part_tokens, strict=True)
                ],
            }
            for name, seen in zip(names, sight.pictures, strict=True)
        ],
        "output": str(target),
    }


def _name(image: str) -> str:
    """What to call a picture: the last part of its path or address."""
    if image == STDIN:
        return "stdin"
    if image.startswith("data:"):
        return "data"
    path = urlsplit(image).path if "://" in image else image
    return Path(path).name or "picture"


def _save(sheet: Image, target: Path) -> None:
    try:
        sheet.save(target)
    except ValueError as error:
        raise typer.BadParameter(
            f"{target} has no ending that says which kind of image to write", param_hint="--output"
        ) from error
