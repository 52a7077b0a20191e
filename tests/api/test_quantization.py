"""The doors to quantized models: the report, `behold quantization`, `behold cache`, and every way to ask for int4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import behold
from behold.api.cli.app import run as run_command
from behold.api.quantization import picture
from behold.quant import apply
from behold.quant.linear import Int4Linear
from tests import toys

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


@pytest.mark.parametrize(("name", "scheme"), [(NAME, "int8"), (NAME, "int4"), ("idefics2", "int4")])
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
    code, out, _ = run(capsys, "cache", "clear", "--all", "--json")
    assert code == 0 and len(json.loads(out)["deleted"]) == 1 and not list(kept.iterdir())
    assert run(capsys, "cache", "clear", "--all")[0] == 0


# --- one path for all doors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"quantization_config": behold.QuantoConfig(weights="int4")},
        {"quantization_config": behold.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
        {"load_in_4bit": True},
    ],
)
def test_every_hugging_face_spelling_of_four_bits(options: dict[str, Any], kept: Path) -> None:
    behold.load(toys.checkpoint(NAME), quantize="int4", dtype="float32")
    model = behold.AutoModelForImageTextToText.from_pretrained(toys.checkpoint(NAME), dtype="float32", **options)
    assert any(isinstance(module, Int4Linear) for module in model.modules())
    assert len(list(kept.iterdir())) == 1, "the same weights, from the same file"


def test_the_limit_is_an_option_too(kept: Path) -> None:
    behold.load(toys.checkpoint(NAME), quantize="int4", cache_limit=0)
    assert not kept.exists()
    with pytest.raises(behold.OptionError, match="cache_limit='much'"):
        behold.load(toys.checkpoint(NAME), quantize="int4", cache_limit="much")
