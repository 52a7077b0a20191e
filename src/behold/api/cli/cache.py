"""`behold cache`: the quantized weights that are kept on disk."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from behold.api.cli.options import DebugOption, JsonOption
from behold.api.cli.printing import print_json, print_table
from behold.api.cli.terminal import reported, write

if TYPE_CHECKING:
    from behold.quant.cache import CachedWeights

cache = typer.Typer(
    name="cache",
    help="Quantized weights that are kept on disk, so that the next load takes no time: list or clear them.",
    invoke_without_command=True,
)


@cache.callback()
def listed(context: typer.Context, *, json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the quantized weights that are kept on disk, the last used first.

    BEHOLD_CACHE names another folder, BEHOLD_CACHE_LIMIT says how much they may take together (32 GB; 0 keeps none).
    """
    if context.invoked_subcommand is not None:
        return
    with reported(debug=debug):
        from behold.api.catalog import size_text
        from behold.quant.cache import cache_folder, entries, size_limit

        found, limit = entries(), size_limit()
        total = sum(entry.n_bytes for entry in found)
        if json:
            print_json({"folder": str(cache_folder()), "limit_bytes": limit, "weights": _records(found)})
            return
        print_table(
            ("Checkpoint", "Scheme", "Size", "Last used"),
            [(e.name, f"{e.scheme} ({e.dtype})", size_text(e.n_bytes), f"{_when(e):%Y-%m-%d %H:%M}") for e in found],
        )
        write(f"{size_text(total) if found else 'nothing'} of {size_text(limit)} in {cache_folder()}\n")


@cache.command("clear")
def clear(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", show_default=False, help="A checkpoint, as the list calls it.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Delete all that is kept.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Delete the quantized weights of one checkpoint, or all. They are made again when they are needed."""
    if (name is None) is not everything:
        raise typer.BadParameter("give the name of a checkpoint, or --all", param_hint="NAME")
    with reported(debug=debug):
        from behold.api.catalog import size_text
        from behold.quant.cache import entries, remove

        found = [entry for entry in entries() if everything or entry.name == name]
        if not found and not everything:
            raise typer.BadParameter(f"nothing is kept of {name!r}; behold cache lists what is", param_hint="NAME")
        gone = remove(found)
        if json:
            print_json({"deleted": _records(gone)})
        else:
            total = size_text(sum(entry.n_bytes for entry in gone)) if gone else "nothing"
            write(f"{total} deleted\n")


def _records(found: list[CachedWeights]) -> list[dict[str, Any]]:
    return [{**asdict(entry), "path": str(entry.path), "last_used": _when(entry).isoformat()} for entry in found]


def _when(entry: CachedWeights) -> datetime:
    return datetime.fromtimestamp(int(entry.last_used)).astimezone()
