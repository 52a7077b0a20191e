"""A checkpoint on the hub, through every door: the first use downloads it, the next needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

import behold
from tests import toys
from tests.hub.server import Hub, Repo

QUESTION = "What do we see in this image?"
ID = "toys/llava-siglip-qwen2"


@pytest.fixture
def toy_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with a real toy in the published spelling, and an empty cache of its own."""
    folder = toys.checkpoint("llava-siglip-qwen2", style="published", shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos[ID] = Repo(files | {"pytorch_model.bin": b"pickle"}, revisions=("main", "v1"))
    hub.repos["toys/closed"] = Repo(files, token="secret")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


def test_load_downloads_once_and_then_works_offline(toy_hub: Hub) -> None:
    picture = toys.picture(40, 28, 0)
    answer = behold.load(ID, dtype="float32").ask(picture, QUESTION, max_new_tokens=5)
    assert answer.usage.completion_tokens == 5
    fetched = toy_hub.fetched()
    assert "pytorch_model.bin" not in fetched
    assert sum(name.endswith(".safetensors") for name in fetched) == 2
    toy_hub.requests.clear()
    assert behold.load(ID, dtype="float32", offline=True).ask(picture, QUESTION, max_new_tokens=5) == answer
    assert toy_hub.requests == []


def test_a_processor_needs_no_weights(toy_hub: Hub, tmp_path: Path) -> None:
    processor = behold.AutoProcessor.from_pretrained(
        "toys/closed", token="secret", cache_dir=tmp_path / "elsewhere", revision="main"
    )
    assert processor.tokenizer.decode(processor.tokenizer(QUESTION)["input_ids"]) == QUESTION
    assert not [name for name in toy_hub.fetched() if name.endswith(".safetensors")]
    with pytest.raises(behold.CheckpointError, match="toys/closed"):
        behold.AutoProcessor.from_pretrained("toys/closed", cache_dir=tmp_path / "third")


def test_a_processor_first_and_the_model_later(toy_hub: Hub) -> None:
    """What was fetched for the processor does not pass for the whole checkpoint."""
    behold.AutoProcessor.from_pretrained(ID)
    with pytest.raises(behold.CheckpointNotFoundError, match="cache"):
        behold.AutoModelForImageTextToText.from_pretrained(ID, local_files_only=True)
    assert behold.AutoModelForImageTextToText.from_pretrained(ID).config.model_type == "llava"


def run(*arguments: str, hub: Hub, home: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    command = [sys.executable, "-m", "behold", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_line(toy_hub: Hub, tmp_path: Path) -> None:
    toys.picture(40, 28, 0).save(tmp_path / "scene.png")
    ask = ("ask", str(tmp_path / "scene.png"), QUESTION, "--model", ID, "--json", "--max-new-tokens", "3")
    missing = run(*ask, hub=toy_hub, home=tmp_path / "home", offline=True)
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert "cache" in missing.stderr and "offline" in missing.stderr
    first = run(*ask, hub=toy_hub, home=tmp_path / "home")
    assert first.returncode == 0, first.stderr
    again = run(*ask, hub=toy_hub, home=tmp_path / "home", offline=True)
    assert again.returncode == 0, again.stderr
    texts = [json.loads(done.stdout)["answer"] for done in (first, again)]
    assert texts[0] == texts[1]
    listed = run("models", hub=toy_hub, home=tmp_path / "home", offline=True)
    assert ID in listed.stdout
