"""A hub with a small checkpoint, and huggingface_hub pointed at it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub.server import Hub, Repo, serve

# Contents differ, as equal ones would be fetched once.
NEEDED = {
    "config.json": json.dumps({"model_type": "llava"}).encode(),
    "generation_config.json": b'{"eos_token_id": 2}',
    "preprocessor_config.json": b'{"size": 8}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 64,
    "model-00002-of-00002.safetensors": bytes(range(255, -1, -1)) * 64,
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
NEVER_NEEDED = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"# A model",
    "pytorch_model.bin": b"pickle",
    "consolidated.pth": b"pickle",
    "modeling_custom.py": b"raise SystemExit('code from a checkpoint ran')",
    "onnx/model.onnx": b"onnx",
    "flax_model.msgpack": b"flax",
    "photo.png": b"png",
}


def go_online(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point huggingface_hub, which reads its environment once on import, at `endpoint`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub with toys/llava (public), toys/private (token "secret") and toys/gated."""
    repos = {
        "toys/llava": Repo(NEEDED | NEVER_NEEDED, revisions=("main", "v1")),
        "toys/private": Repo(dict(NEEDED), token="secret"),
        "toys/gated": Repo(dict(NEEDED), gated=True),
        "toys/pickled": Repo({"config.json": NEEDED["config.json"], "pytorch_model.bin": b"pickle"}),
    }
    with serve(repos) as running:
        go_online(monkeypatch, running.endpoint)
        yield running
        huggingface_hub.close_session()
