"""Folders, the bundled checkpoint and the local cache; downloads are tested in tests/hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from behold.checkpoint import hub
from behold.checkpoint.hub import cached_models, resolve
from behold.errors import CheckpointNotFoundError


def snapshot(cache: Path, repo_id: str, commit: str, content: bytes = b"{}") -> Path:
    """A repository in the cache's own layout."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs" / commit).write_bytes(content)
    (repo / "snapshots" / commit / "config.json").symlink_to(repo / "blobs" / commit)
    return repo / "snapshots" / commit


@pytest.mark.parametrize("as_text", [True, False])
def test_a_folder_is_itself(tmp_path: Path, as_text: bool) -> None:
    assert resolve(str(tmp_path) if as_text else tmp_path) == tmp_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "a/b/c", "~/none", "a b", "../x", Path("none")])
def test_neither_folder_nor_id(name: str | Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="neither a folder nor a hub id"):
        resolve(name)


def test_the_bundled_checkpoint_needs_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="bundled checkpoint"):
        resolve("demo")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    assert resolve("demo") == tmp_path / "demo"


def test_a_cached_snapshot_is_found_without_network(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, "someone/model", "a" * 40)
    assert resolve("someone/model", cache_dir=tmp_path, local_files_only=True) == folder


def test_what_is_cached(tmp_path: Path) -> None:
    snapshot(tmp_path, "z/last", "a" * 40, b"12345")
    first = snapshot(tmp_path, "a/first", "b" * 40)
    found = cached_models(tmp_path)
    assert [(model.repo_id, model.n_bytes) for model in found] == [("a/first", 2), ("z/last", 5)]
    assert found[0].folder == first


def test_no_cache_is_an_empty_one(tmp_path: Path) -> None:
    assert cached_models(tmp_path / "none") == []
