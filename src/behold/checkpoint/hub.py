"""A hub id, a folder or "demo" to a local folder with the needed files. No torch.

huggingface_hub does the work: cache, resume, tokens, progress bars and HF_HUB_OFFLINE are its own.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from behold.errors import CheckpointError, CheckpointNotFoundError

DEMO = "demo"

# JSON, templates and tokenizers are small and needed; of the weights only safetensors
_SETTINGS = ("*.json", "*.jinja", "tokenizer.model", "*.model")
_WEIGHTS = ("model*.safetensors",)
# faults of the disk, not of the network
_CACHE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One repository in the local cache. n_bytes: its size on disk, all revisions together."""

    repo_id: str
    folder: Path
    n_bytes: int


def resolve(
    id_or_dir: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    with_weights: bool = True,
) -> Path:
    """The folder of a checkpoint, fetched first where it is a hub id that is not in the cache.

    Raises:
        CheckpointNotFoundError: no such folder or id; not cached while offline; no network.
        CheckpointError: the hub refuses (gated, private, wrong token).
    """
    if str(id_or_dir) == DEMO:
        return demo_folder()
    if Path(id_or_dir).expanduser().is_dir():
        return Path(id_or_dir).expanduser()
    name = str(id_or_dir)
    if isinstance(id_or_dir, Path) or not _REPO_ID.fullmatch(name) or ".." in name:
        raise CheckpointNotFoundError(
            f"{name!r} is neither a folder nor a hub id. Give a folder with config.json, an id such as "
            f'"llava-hf/llava-interleave-qwen-0.5b-hf", or "{DEMO}".'
        )
    from huggingface_hub import snapshot_download

    patterns = [*_SETTINGS, *(_WEIGHTS if with_weights else ())]
    with _readable_errors(name, revision):
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],  # only what lies beside config.json
        )
    return Path(folder)


def demo_folder() -> Path:
    """The checkpoint that comes with the package.

    Raises:
        CheckpointNotFoundError: this installation lacks it.
    """
    folder = Path(str(resources.files("behold"))) / "demo"
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(
            f'The bundled checkpoint "{DEMO}" is missing from {folder}. Install behold-vlm again, or name another '
            "model."
        )
    return folder


def cached_models(cache_dir: str | Path | None = None) -> list[CachedModel]:
    """The model repositories in the local cache, by name; an unreadable or missing cache is an empty one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(cache_dir)
    except CacheNotFound:
        return []
    found = []
    for repo in cache.repos:
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        if repo.repo_type == "model" and newest:
            found.append(CachedModel(repo.repo_id, newest.snapshot_path, repo.size_on_disk))
    return sorted(found, key=lambda model: model.repo_id.lower())


@contextmanager
def _readable_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises, in our words and tree."""
    from huggingface_hub import errors

    what = repr(repo_id) + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{what} is gated: accept its terms on its page on the hub, then log in (`hf auth login`) or pass token=…"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointNotFoundError(f"{what} is not on the hub: the repository is, this revision is not.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{what} is not on the hub, or it is private: check the id; for a private repository pass token=… or log "
            "in (`hf auth login`)."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointNotFoundError(f"{what} is neither a folder nor a valid hub id.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _absent(what) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise CheckpointError(f"The hub did not deliver {what} (HTTP status {status}). Try again later.") from error
    except (errors.OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, OSError) and error.errno in _CACHE_FAULTS:
            raise CheckpointError(
                f"{what} cannot be kept in the local cache: {error.strerror}. Make room or allow writing "
                "there, or name another folder with HF_HOME or cache_dir=…."
            ) from error
        raise _absent(what) from error


def _absent(what: str) -> CheckpointNotFoundError:
    from huggingface_hub import constants

    why = (
        "downloads are switched off (offline mode)"
        if constants.HF_HUB_OFFLINE
        else "the hub cannot be reached over the network (or local_files_only was set)"
    )
    return CheckpointNotFoundError(
        f"{what} is not in the local cache, and {why}. Connect and try again, give a local folder, or use the bundled "
        f'"{DEMO}", which needs no network.'
    )
