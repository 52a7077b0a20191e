"""Downloads through a loopback hub: what is fetched, from which revision, with which token, and what goes wrong."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from behold.checkpoint.hub import resolve
from behold.errors import CheckpointError, CheckpointNotFoundError
from tests.hub.conftest import NEEDED
from tests.hub.server import Hub


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_needed_files_are_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = resolve("toys/llava", cache_dir=tmp_path)
    assert contents(folder) == NEEDED
    assert hub.fetched() == sorted(NEEDED)


def test_without_weights_no_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = resolve("toys/llava", cache_dir=tmp_path, with_weights=False)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    assert (folder / "config.json").read_bytes() == NEEDED["config.json"]


def test_a_second_call_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    first = resolve("toys/llava", cache_dir=tmp_path)
    hub.requests.clear()
    assert resolve("toys/llava", cache_dir=tmp_path) == first
    assert hub.fetched() == []


def test_a_revision_is_asked_for_by_name(hub: Hub, tmp_path: Path) -> None:
    folder = resolve("toys/llava", revision="v1", cache_dir=tmp_path)
    assert any(request.path.endswith("/revision/v1") for request in hub.requests)
    assert folder.name == hub.repos["toys/llava"].commit


def test_a_new_commit_is_noticed_and_only_what_changed_is_fetched(hub: Hub, tmp_path: Path) -> None:
    old = resolve("toys/llava", cache_dir=tmp_path)
    hub.requests.clear()
    hub.repos["toys/llava"].files["generation_config.json"] = b'{"do_sample": false}'
    new = resolve("toys/llava", cache_dir=tmp_path)
    assert new != old
    assert (new / "generation_config.json").read_bytes() == b'{"do_sample": false}'
    assert hub.fetched() == ["generation_config.json"]


def test_a_token_opens_a_private_repository(hub: Hub, tmp_path: Path) -> None:
    folder = resolve("toys/private", token="secret", cache_dir=tmp_path)
    assert contents(folder) == NEEDED
    assert {request.token for request in hub.requests} == {"secret"}


def test_a_broken_connection_is_resumed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is asked for, not the whole file again."""
    name = "model-00001-of-00002.safetensors"
    hub.repos["toys/llava"].drop_after_bytes[name] = 10_000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    folder = resolve("toys/llava", cache_dir=tmp_path)
    assert (folder / name).read_bytes() == NEEDED[name]
    ranges = [r.range for r in hub.requests if r.method == "GET" and r.path.endswith(name)]
    assert ranges[0] is None
    assert ranges[1].startswith("bytes=")
    assert int(ranges[1][6:].rstrip("-")) >= 9000


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    """Files that came whole are not fetched again after a call that failed."""
    missing = "model-00002-of-00002.safetensors"
    repo = hub.repos["toys/llava"]
    folder = resolve("toys/llava", cache_dir=tmp_path)
    (folder / missing).resolve().unlink()
    (folder / missing).unlink()
    hub.requests.clear()
    assert contents(resolve("toys/llava", cache_dir=tmp_path)) == NEEDED
    assert hub.fetched() == [missing]
    assert repo.files[missing] == NEEDED[missing]


def test_offline_uses_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("toys/llava", cache_dir=tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("toys/llava", cache_dir=tmp_path) == folder
    assert hub.requests == []


def test_local_files_only_uses_the_cache(hub: Hub, tmp_path: Path) -> None:
    folder = resolve("toys/llava", cache_dir=tmp_path)
    hub.requests.clear()
    assert resolve("toys/llava", cache_dir=tmp_path, local_files_only=True) == folder
    assert hub.requests == []


def test_offline_and_not_cached_says_both(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFoundError, match=r"toys/llava") as caught:
        resolve("toys/llava", cache_dir=tmp_path)
    text = str(caught.value).lower()
    assert "cache" in text and "offline" in text


def test_no_network_and_not_cached_says_both(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on port 9 (discard) of this machine."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(CheckpointNotFoundError, match=r"toys/llava") as caught:
        resolve("toys/llava", cache_dir=tmp_path)
    text = str(caught.value).lower()
    assert "cache" in text and ("network" in text or "reach" in text or "connect" in text)


@pytest.mark.parametrize(
    ("repo", "options", "says"),
    [
        ("toys/nothing", {}, r"toys/nothing"),
        ("toys/nothing", {"token": "some"}, r"toys/nothing"),
        ("toys/private", {}, r"toys/private.*token|token.*toys/private"),
        ("toys/private", {"token": "wrong"}, r"toys/private"),
        ("toys/gated", {}, r"toys/gated"),
        ("toys/llava", {"revision": "v9"}, r"v9"),
        ("not a repository id!", {}, r"not a repository id!"),
    ],
)
def test_refusals_are_readable(hub: Hub, tmp_path: Path, repo: str, options: dict[str, str], says: str) -> None:
    """One of our errors, naming what was asked for; not a page of HTTP."""
    with pytest.raises(CheckpointError) as caught:
        resolve(repo, cache_dir=tmp_path, **options)
    text = " ".join(str(caught.value).split())
    assert re.search(says, text), text
    assert "Traceback" not in text
    assert len(text) < 600


def test_pickled_weights_are_refused_and_not_fetched(hub: Hub, tmp_path: Path) -> None:
    """A repository with nothing but pickle files: an error with the remedy, at the latest when weights are read."""
    with pytest.raises(CheckpointError, match="safetensors"):
        _load_weights_of(resolve("toys/pickled", cache_dir=tmp_path))
    assert "pytorch_model.bin" not in hub.fetched()


def _load_weights_of(folder: Path) -> None:
    import torch
    from torch import nn

    from behold.checkpoint.rename import RenameRules
    from behold.checkpoint.weights import load_weights

    load_weights(nn.Linear(2, 2), folder, RenameRules(), device=torch.device("cpu"), dtype=torch.float32)


def test_a_full_disk_is_not_called_a_missing_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*HF_HOME") as caught:
        resolve("org/model", cache_dir=tmp_path)
    assert not isinstance(caught.value, CheckpointNotFoundError)
