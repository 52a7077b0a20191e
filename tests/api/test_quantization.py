"""The doors to quantized models: the report, `behold quantization`, `behold cache`, and every way to ask for int4."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import behold
from behold.api import session
from behold.api.cli.app import run as run_command
from behold.api.quantization import picture
from behold.checkpoint.hub import demo_folder
from behold.models.base import VisionLanguageModel
from behold.models.load import load_model
from behold.quant import apply
from behold.quant.apply import quantize_
from tests import toys
from tests.server.running import running

NAME = "llava-siglip-qwen2"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEHOLD_CACHE", str(tmp_path))
    monkeypatch.setenv("BEHOLD_CACHE_LIMIT", "1 GB")
    return tmp_path / "quantized"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- the report --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scheme"), [(NAME, "int8"), *((name, "int4") for name in toys.TOYS)])
def test_the_report_measures_every_layer(name: str, scheme: str) -> None:
    vlm = behold.load(toys.checkpoint(name), quantize=scheme)
    report = vlm.quantization_report()
    assert [layer.name for layer in report.layers] == [layer.name for layer in vlm.model.quantized_layers]
    errors = {layer.name: layer.output_error for layer in report.layers}
    limits = {"int8": 0.05, "int4": 0.2}
    for layer in report.layers:
        error = errors[layer.name]
        if error is not None:  # the last tower layer of some families is not used
            assert 0 < error < limits[layer.scheme], layer
    assert sum(error is None for error in errors.values()) < len(errors) / 3
    assert report.bytes_after < report.bytes_before / 2 and not report.fallbacks
    record = report.record()
    assert json.loads(json.dumps(record)) == record and len(record["layers"]) == len(report.layers)


def test_the_report_tells_what_fell_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(apply.GATES, "int4", 0.0)
    vlm = behold.load(toys.checkpoint(NAME), quantize="int4")
    report = vlm.quantization_report()
    assert {(layer.asked, layer.scheme) for layer in report.fallbacks} == {("int4", "int8")}
    assert len(report.fallbacks) > 5 and all(layer.refused["int4"] > 0 for layer in report.fallbacks)


def test_a_layer_that_cannot_be_rounded_falls_back_and_every_door_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights so large, in every row, that the others fall to a handful of steps: of 4 bits, or of 8 as well."""
    folder = toys.copy(demo_folder(), tmp_path / "demo")
    weights = toys.read_weights(folder)
    for part, times, places in (("down_proj", 30.0, (0,)), ("gate_proj", 7.0, (0, 96))):
        weight = weights[f"language_model.model.layers.1.mlp.{part}.weight"]
        rows, large = torch.arange(len(weight)), times * weight.float().std()
        for place in places:
            weight[rows, (rows + place) % weight.shape[1]] = large.to(weight.dtype)
    toys.write_weights(folder, weights)
    vlm = behold.load(folder, quantize="int4")
    fallbacks = {layer.name: layer for layer in vlm.quantization_report().fallbacks}
    full, eight = (fallbacks.pop(f"language_model.layers.1.mlp.{part}") for part in ("down_proj", "gate_proj"))
    assert (full.asked, full.scheme, full.output_error) == ("int4", "full", 0.0)
    assert full.refused["int4"] > 0.12 and full.refused["int8"] > 0.02 and full.bytes_before == full.bytes_after
    assert eight.scheme == "int8" and eight.refused["int4"] > 0.12 and 0 < eight.error < 0.02
    assert not fallbacks
    answer = vlm.ask(PICTURE, QUESTION, max_new_tokens=4)
    assert answer == ask_transformers_way(folder, tokens=4, quantization_config=behold.QuantoConfig(weights="int4"))
    code, out, _ = run(capsys, "quantization", "--model", str(folder), "--quantize", "int4")
    assert code == 0 and "full*" in out and "int8*" in out and "2 of" in out


def test_layers_that_stay_full_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(apply.GATES, "int8", 0.0)
    report = behold.load(toys.checkpoint(NAME), quantize="int8").quantization_report()
    assert {(layer.scheme, layer.output_error) for layer in report.layers} == {("full", 0.0)}


def test_a_full_model_has_no_report() -> None:
    with pytest.raises(behold.OptionError, match='quantize="int8"'):
        behold.load(toys.checkpoint(NAME)).quantization_report()


def test_the_built_in_picture_is_always_the_same() -> None:
    assert picture().size == (384, 384) and picture().tobytes() == picture().tobytes()
    assert len(picture().getcolors(1 << 20) or ()) > 1000


# --- the command line --------------------------------------------------------------------------------------------


def test_behold_quantization_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(toys.checkpoint(NAME))
    code, out, _ = run(capsys, "quantization", "--model", model, "--quantize", "int4")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "layers.*.mlp.up_proj" in line and "language" in line]
    assert "(" in line and " int4 " in line and "%" in line
    assert "0 of" in out and "after" in out
    code, out, _ = run(capsys, "quantization", "--model", model, "--every")
    assert code == 0 and "language_model.layers.0.mlp.up_proj" in out and "int4" not in out
    code, out, _ = run(capsys, "quantization", "--model", model, "--json")
    assert code == 0 and json.loads(out)["layers"][0]["scheme"] == "int8"


def test_behold_cache_lists_and_clears(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing of 1.0 GB" in run(capsys, "cache")[1]
    for scheme in ("int8", "int4"):
        behold.load(toys.checkpoint(NAME), quantize=scheme)
    behold.load("demo", quantize="int8")
    code, out, _ = run(capsys, "cache", "--json")
    found = json.loads(out)
    assert code == 0 and (found["folder"], found["limit_bytes"]) == (str(kept), 10**9)
    assert sorted(weights["scheme"] for weights in found["weights"]) == ["int4", "int8", "int8"]
    name = str(toys.checkpoint(NAME))
    code, out, _ = run(capsys, "cache")
    assert code == 0 and out.count(name) == 2 and "int4 (float32)" in out and "of 1.0 GB in" in out
    assert run(capsys, "cache", "clear", name)[1].endswith("deleted\n")
    assert len(list(kept.iterdir())) == 1
    assert run(capsys, "cache", "clear", name)[0] == 2
    assert run(capsys, "cache", "clear")[0] == 2 and run(capsys, "cache", "clear", name, "--all")[0] == 2
    assert [weights["name"] for weights in json.loads(run(capsys, "cache", "--json")[1])["weights"]] == ["demo"]
    code, out, _ = run(capsys, "cache", "clear", "--all", "--json")
    assert code == 0 and len(json.loads(out)["deleted"]) == 1 and not list(kept.iterdir())
    assert run(capsys, "cache", "clear", "--all")[0] == 0


# --- one path for all doors --------------------------------------------------------------------------------------

QUESTION, PICTURE = "What is this?", toys.picture()
TURN = {"type": "text", "text": QUESTION}


def ask_by_load(folder: Path, scheme: str) -> str:
    return behold.load(folder, quantize=scheme, dtype="float32").ask(PICTURE, QUESTION, max_new_tokens=8)


def ask_in_a_batch(folder: Path, scheme: str) -> str:
    vlm = behold.load(folder, quantize=scheme, dtype="float32")
    items = [([], "Why?"), (PICTURE, QUESTION), (toys.picture(60, 20, 3), "Which colour is it?")]
    return str(vlm.batch(items, max_new_tokens=8)[1])


def ask_the_command_line(folder: Path, scheme: str) -> str:
    picture = str(folder.parent / "asked.png")
    PICTURE.save(picture)
    options = ["--model", str(folder), "--quantize", scheme, "--dtype", "float32", "--max-new-tokens", "8", "--json"]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert run_command(["ask", picture, QUESTION, *options]) == 0
    return str(json.loads(told.getvalue())["answer"])


def ask_a_server(folder: Path, scheme: str) -> str:
    url = "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, TURN]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    with running(behold.load(folder, quantize=scheme, dtype="float32")) as (client, _):
        return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def ask_transformers_way(folder: Path, tokens: int = 8, **options: Any) -> str:
    model = behold.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", **options)
    processor = behold.AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, TURN]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[PICTURE], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return str(processor.batch_decode(ids, skip_special_tokens=True)[0])


def ask_a_pipeline(folder: Path, scheme: str) -> str:
    config = behold.QuantoConfig(weights=scheme)
    pipe = behold.pipeline(
        "image-text-to-text", model=str(folder), dtype="float32", model_kwargs={"quantization_config": config}
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, TURN]}]
    told = pipe(text=messages, max_new_tokens=8, return_full_text=False, generate_kwargs={"do_sample": False})
    return str(told[0]["generated_text"])


def bits(scheme: str) -> dict[str, bool]:
    return {"load_in_8bit": True} if scheme == "int8" else {"load_in_4bit": True}


def theirs(name: str, **options: Any) -> Any:
    """A configuration of transformers' own."""
    return getattr(pytest.importorskip("transformers"), name)(**options)


DOORS: dict[str, Callable[[Path, str], str]] = {
    "load": ask_by_load,
    "batch": ask_in_a_batch,
    "command line": ask_the_command_line,
    "server": ask_a_server,
    "pipeline": ask_a_pipeline,
    "QuantoConfig": lambda folder, scheme: ask_transformers_way(
        folder, quantization_config=behold.QuantoConfig(weights=scheme)
    ),
    "BitsAndBytesConfig": lambda folder, scheme: ask_transformers_way(
        folder, quantization_config=behold.BitsAndBytesConfig(**bits(scheme))
    ),
    "their QuantoConfig": lambda folder, scheme: ask_transformers_way(
        folder, quantization_config=theirs("QuantoConfig", weights=scheme)
    ),
    "a dict": lambda folder, scheme: ask_transformers_way(folder, quantization_config=bits(scheme)),
    "load_in_…": lambda folder, scheme: ask_transformers_way(folder, **bits(scheme)),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[VisionLanguageModel]:
    """The models that were loaded, by whichever door."""
    models: list[VisionLanguageModel] = []

    def load(*args: Any, **options: Any) -> VisionLanguageModel:
        models.append(load_model(*args, **options))
        return models[-1]

    monkeypatch.setattr(session, "load_model", load)
    return models


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_layers_and_the_same_answer(
    door: str, scheme: str, opened: list[VisionLanguageModel]
) -> None:
    (expected, answer), (_, full) = by_hand(scheme), by_hand(None)
    opened.clear()
    assert DOORS[door](toys.checkpoint(NAME), scheme) == answer != full
    (model,) = opened
    assert model.quantized_layers == expected.quantized_layers
    assert {layer.asked for layer in model.quantized_layers} == {"int8", scheme}
    ours, state = model.state_dict(), expected.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], state[name]) for name in state)


@functools.cache
def by_hand(scheme: str | None) -> tuple[VisionLanguageModel, str]:
    """A full model that is quantized afterwards, and its answer."""
    vlm = behold.load(toys.checkpoint(NAME), dtype="float32")
    if scheme is not None:
        vlm.model.quantized_layers = tuple(quantize_(vlm.model, scheme, decoder=vlm.model.decoder))
        parts = {"tokenizer": vlm.processor.tokenizer, "eos_token_ids": vlm.processor.eos_token_ids}
        vlm.engine = session.open_engine(vlm.model, **parts)
    return vlm.model, str(vlm.ask(PICTURE, QUESTION, max_new_tokens=8))


def png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def test_every_door_takes_what_another_kept(kept: Path) -> None:
    answers = {DOORS[door](toys.checkpoint(NAME), "int4") for door in ("QuantoConfig", "load", "load_in_…")}
    assert len(answers) == len(list(kept.iterdir())) == 1, "the same weights, from the same file"


def test_the_limit_is_an_option_too(kept: Path) -> None:
    behold.load(toys.checkpoint(NAME), quantize="int4", cache_limit=0)
    assert not kept.exists()
    with pytest.raises(behold.OptionError, match="cache_limit='much'"):
        behold.load(toys.checkpoint(NAME), quantize="int4", cache_limit="much")
