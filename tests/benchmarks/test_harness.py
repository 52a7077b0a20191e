"""The benchmark harness: its shapes, its report, and one run on the tiny shapes, so that it does not rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks.checkpoint import Blueprint, blueprint, make
from benchmarks.report import Measured, section, write_results

ROOT = Path(__file__).parents[2]


def measured(name: str, *, first: float, speed: float) -> Measured:
    load = {"dtype": "float32", "load_s": 1.0, "import_s": 1.0, "load_bytes": 1e9}
    answer = {"first_token_s": first, "decode_tokens_per_s": speed, "peak_bytes": 2e9, "prompt_tokens": 760}
    return Measured(name, [load], [answer, answer | {"first_token_s": first + 9}, answer])


def test_full_size_shapes_add_up() -> None:
    """864 M parameters in 715 tensors, as the published files have."""
    plan = blueprint("llava-interleave-qwen-0.5b")
    assert (len(plan.tensors), plan.n_parameters) == (715, 864_031_264)
    assert plan.tensors["language_model.model.layers.23.mlp.up_proj.weight"] == (2816, 1024)


def test_unknown_shapes_say_what_there_is() -> None:
    with pytest.raises(SystemExit, match="tiny"):
        blueprint("no-such-shapes")


def test_a_folder_of_shapes_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "special_tokens.json").write_text('{"<image>": 9}')
    (tmp_path / "weight_shapes.json").write_text('{"dtype": "float16", "tensors": {"a.weight": [2, 3]}}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "chat_template": "x"}')
    plan = blueprint(str(tmp_path))
    assert plan.tensors == {"a.weight": (2, 3)}
    assert (plan.dtype, plan.eos_token, plan.n_parameters) == ("float16", "</s>", 6)
    assert plan.files["chat_template.json"] == {"chat_template": "x"}


def test_weights_are_seeded_and_made_once(tmp_path: Path) -> None:
    plan = blueprint("tiny")
    folder = make(plan, tmp_path / "a")
    again = make(plan, tmp_path / "b")
    file = folder / "model.safetensors"
    assert file.read_bytes() == (again / "model.safetensors").read_bytes()
    with safe_open(file, "pt") as weights:
        assert set(weights.keys()) == set(plan.tensors)
        assert {name: tuple(weights.get_slice(name).get_shape()) for name in plan.tensors} == plan.tensors
    before = file.stat().st_mtime_ns
    assert make(plan, tmp_path / "a") == folder
    assert file.stat().st_mtime_ns == before


def test_large_weights_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.checkpoint.SHARD_BYTES", 50_000)
    plan = blueprint("tiny")
    folder = make(plan, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(plan.tensors)
    assert len(list(folder.glob("model-*.safetensors"))) == len(set(index["weight_map"].values())) > 1


def test_the_report_shows_medians_and_how_many_times_better(tmp_path: Path) -> None:
    plan = Blueprint("toy", "bfloat16", {}, None, None, {}, {"w": (1000, 1000)})
    rows = [measured("transformers", first=4.0, speed=5.0), measured("behold", first=2.0, speed=20.0)]
    options = {"dtype": "float32", "device": "cpu", "threads": 2, "decode": 32, "runs": 3}
    text = section(plan, rows, options)
    assert "| first token | 4.00 s (4.00–13.00) | 2.00 s (2.00–11.00) | 2.00× |" in text
    assert "| decode | 5.00 tok/s (5.00–5.00) | 20.00 tok/s (20.00–20.00) | 4.00× |" in text
    path = tmp_path / "RESULTS.md"
    other = text.replace("## toy", "## another")
    for part in (text, other, text.replace("20.00 tok/s", "21.00 tok/s")):
        write_results(path, part)
    written = path.read_text()
    assert written.count("## toy") == written.count("## another") == 1
    assert "21.00 tok/s" in written
    assert written.startswith("# Results\n")


def test_a_run_on_tiny_shapes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--shapes", "tiny", "--rows", "behold", "--runs", "1"]
    command += ["--decode", "3", "--prompt", "60", "--threads", "1", "--cache", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "COLUMNS": "120"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "first token" in run.stdout
    assert "tok/s" in run.stdout
