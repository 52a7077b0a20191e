"""What can be used: the families behold knows, and the checkpoints on this machine. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from behold.checkpoint.hub import DEMO, cached_models, demo_folder
from behold.errors import CheckpointNotFoundError
from behold.models.registry import FAMILIES


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint that needs no network. state: "ready", or why it cannot be used as it is."""

    name: str
    model_type: str
    n_bytes: int
    state: str


@dataclass(frozen=True)
class Catalog:
    """families: name to the model types it reads."""

    families: dict[str, list[str]]
    local: list[LocalModel]

    def record(self) -> dict[str, Any]:
        """As --json prints it."""
        return {"families": self.families, "models": [asdict(model) for model in self.local]}

    def text(self) -> str:
        """As a person reads it."""
        lines = ["Families (model_type of config.json)"]
        lines += _columns([(name, ", ".join(types)) for name, types in self.families.items()])
        lines += ["", "On this machine"]
        rows = [(m.name, m.model_type, size_text(m.n_bytes), "" if m.state == "ready" else m.state) for m in self.local]
        lines += _columns(rows) or ["  nothing: --model ID fetches a model from the hub"]
        return "\n".join(lines) + "\n"


def catalog() -> Catalog:
    """Everything there is now."""
    families: dict[str, list[str]] = {}
    for model_type, module in FAMILIES.items():
        families.setdefault(module.rpartition(".")[2], []).append(model_type)
    return Catalog(families, list(_local_models()))


def size_text(n_bytes: int) -> str:
    """For instance 12 MB, 1.7 GB; decimal units, as the hub counts."""
    megabytes = n_bytes / 1e6
    return (
        f"{megabytes / 1e3:.1f} GB" if megabytes >= 1000 else f"{max(megabytes, 0.1):.{1 if megabytes < 10 else 0}f} MB"
    )


def _local_models() -> Iterator[LocalModel]:
    try:
        folder = demo_folder()
    except CheckpointNotFoundError:
        pass  # an installation without it: nothing to list
    else:
        yield _described(DEMO, folder, sum(path.stat().st_size for path in folder.iterdir() if path.is_file()))
    for model in cached_models():
        if (model.folder / "config.json").is_file():
            yield _described(model.repo_id, model.folder, model.n_bytes)


def _described(name: str, folder: Path, n_bytes: int) -> LocalModel:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return LocalModel(name, "?", n_bytes, "config.json cannot be read")
    if model_type not in FAMILIES:
        return LocalModel(name, model_type, n_bytes, "not supported")
    if not any(folder.glob("*.safetensors")):
        return LocalModel(name, model_type, n_bytes, "settings only, no weights yet")
    return LocalModel(name, model_type, n_bytes, "ready")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows indented and aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
