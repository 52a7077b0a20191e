"""Quantized weights that were kept on disk: where they are, what they are kept for, which go when room is needed.

No torch here, so that listing is quick; weights_file.py writes and reads the files themselves.

A file's name is a digest of all that its content depends on. Of a checkpoint's own files that is
- the SHA-256 that the hub's cache has in the name of every large file, where the file lies in that cache;
- elsewhere its size, the time of its last change and that of its entry's (which nobody can set back, where systems
  keep it), its header, and three pieces of every tensor. Reading all of an 8-billion-parameter checkpoint would take as
  long as quantizing it; where programs can date files back, the pieces show what training or merging has changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behold._version import __version__
from behold.errors import OptionError

FORMAT = 2  # of the files; goes up whenever a packed weight would be read differently, or has more parts
METADATA_KEY = "behold"
SUFFIX, UNFINISHED = ".safetensors", ".unfinished"

_DEFAULT_LIMIT = "32 GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?[bB]?)")
_BLOB = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES = 1024
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class CachedWeights:
    """One file. name: the checkpoint's; last_used: seconds since 1970."""

    path: Path
    name: str
    scheme: str
    dtype: str
    n_bytes: int
    last_used: float


# --- settings ----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """BEHOLD_CACHE, or the user's cache folder (XDG_CACHE_HOME, ~/.cache); it need not exist."""
    given = os.environ.get("BEHOLD_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given).expanduser() if given else home / "behold") / "quantized"


def size_limit(option: str | int | None = None) -> int:
    """Bytes that all files together may have: the option, BEHOLD_CACHE_LIMIT or 32 GB; 0 keeps nothing.

    Raises:
        OptionError: it is not a size.
    """
    name, value = "cache_limit", option
    if option is None:
        name, value = "BEHOLD_CACHE_LIMIT", os.environ.get("BEHOLD_CACHE_LIMIT") or _DEFAULT_LIMIT
    found = _SIZE.fullmatch(str(value).strip())
    unit = _UNITS.get(found[2].upper() if found[2].upper() in _UNITS else f"{found[2].upper()}B") if found else None
    if not found or unit is None:
        raise OptionError(f"{name}={value!r} is no size. Give bytes, or for instance '20 GB'; 0 keeps nothing on disk.")
    return int(float(found[1]) * unit)


# --- keys --------------------------------------------------------------------------------------------------------


def checkpoint_key(files: Iterable[Path], config: Mapping[str, Any], *, scheme: str, dtype: str) -> str:
    """The name of the file that holds these weights quantized, without its ending.

    Raises:
        OSError: a file cannot be read.
    """
    parts = [f"{FORMAT} {__version__} {scheme} {dtype}", json.dumps(config, sort_keys=True, default=str)]
    parts += sorted(f"{path.name} {_file_digest(path)}" for path in files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def _file_digest(path: Path) -> str:
    blob = path.resolve()
    if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        return blob.name
    status = path.stat()
    parts = [f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()]
    # mapped, not read: each of thousands of reads lets another thread go first, 0.24 s in place of 0.01
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = mapped[8 : 8 + int.from_bytes(mapped[:8], "little")]
        parts.append(header)
        data = 8 + len(header)
        for start, stop in _extents(header):
            last = max(stop - _PIECE_BYTES, start)
            for offset in dict.fromkeys((start, (start + last) // 2, last)):
                parts.append(mapped[data + offset : data + min(offset + _PIECE_BYTES, stop)])
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _extents(header: bytes) -> list[tuple[int, int]]:
    """Where each tensor lies behind the header; nothing where that is damaged, as whoever reads it will say."""
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        return [(int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return []


# --- files -------------------------------------------------------------------------------------------------------


def path_of(key: str) -> Path:
    """Where the weights of a key are, if they are kept."""
    return cache_folder() / f"{key}{SUFFIX}"


def mark_used(path: Path) -> None:
    """It was read just now. The time of change says so: that of access is often not kept, or changed by listing."""
    with suppress(OSError):
        os.utime(path)


def entries() -> list[CachedWeights]:
    """Every file that is kept, the last used first; one that cannot be read is called damaged."""
    found = []
    for path in _files(SUFFIX):
        with suppress(OSError):
            status = path.stat()
            about = read_metadata(path) or {}
            found.append(
                CachedWeights(
                    path=path,
                    name=str(about.get("name", "(damaged)")),
                    scheme=str(about.get("scheme", "?")),
                    dtype=str(about.get("dtype", "?")),
                    n_bytes=status.st_size,
                    last_used=status.st_mtime,
                )
            )
    return sorted(found, key=lambda entry: entry.last_used, reverse=True)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What a file says of itself: name, scheme, dtype, layers; None where it is not one of ours.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length).rstrip())
        except ValueError:
            return None
    return metadata_of(header.get("__metadata__")) if isinstance(header, dict) else None


def metadata_of(said: object) -> dict[str, Any] | None:
    """`read_metadata` of what is in a header already."""
    try:
        about = json.loads(said[METADATA_KEY]) if isinstance(said, dict) else None
    except (ValueError, KeyError, TypeError):
        return None
    return about if isinstance(about, dict) else None


def remove(some: Iterable[CachedWeights]) -> list[CachedWeights]:
    """Deletes them, and returns those that are gone. Who has one open keeps it until it is closed."""
    gone = []
    for entry in some:
        with suppress(OSError):
            entry.path.unlink()
            gone.append(entry)
    return gone


def make_room(limit: int, keep: Path) -> None:
    """Deletes what was not used for longest until all fit into `limit` bytes; `keep` stays."""
    kept = entries()
    total = sum(entry.n_bytes for entry in kept)
    for entry in reversed(kept):
        if total <= limit:
            break
        if entry.path != keep:
            remove([entry])
            total -= entry.n_bytes


def sweep() -> None:
    """Deletes what writers left that were killed: unfinished files that nobody holds locked."""
    for path in _files(UNFINISHED):
        with suppress(OSError):
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    age_s = time.time() - path.stat().st_mtime
    try:
        import fcntl
    except ImportError:  # Windows: only time can tell
        return age_s > _ABANDONED_S
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    # a file is locked right after it is made; a minute is plenty
    return age_s > 60


def _files(ending: str) -> list[Path]:
    try:
        return sorted(path for path in cache_folder().iterdir() if path.name.endswith(ending))
    except OSError:
        return []


@functools.cache
def say_why_not(reason: str) -> None:
    """Warn, once for each reason, that weights are not kept and the next load will quantize again."""
    warnings.warn(f"Quantized weights are not kept on disk: {reason}", stacklevel=2)
