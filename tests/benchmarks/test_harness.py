"""The benchmark harness: its shapes, its rows, and one run on the tiny shapes, so that it does not rot."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from benchmarks import gguf_files, probe, run
from benchmarks.checkpoint import blueprint, make
from benchmarks.rows import ALL, ROWS, USUAL, Row

LLAVA = "llava-interleave-qwen-0.5b"


# --- made checkpoints ------------------------------------------------------------------------------------------------


def test_full_size_shapes_add_up() -> None:
    """864 M parameters in 715 tensors, as the published files have."""
    plan = blueprint(LLAVA)
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


# --- files for llama.cpp ---------------------------------------------------------------------------------------------


def test_every_tensor_has_one_place_in_the_files_for_llama_cpp() -> None:
    """All but the norm after the layer that is read, and none twice."""
    tensors = blueprint(LLAVA).tensors
    rules = (gguf_files.TEXT_NAMES, gguf_files.EYE_NAMES)
    places = {name: [new for table in rules if (new := gguf_files.renamed(name, table))] for name in tensors}
    assert [name for name, found in places.items() if len(found) != 1] == [
        gguf_files.UNUSED + "bias",
        gguf_files.UNUSED + "weight",
    ]
    named = [found[0] for found in places.values() if found]
    assert len(set(named)) == len(named)
    assert places["language_model.model.layers.7.self_attn.o_proj.weight"] == ["blk.7.attn_output.weight"]
    assert places["vision_tower.vision_model.encoder.layers.25.mlp.fc2.bias"] == ["v.blk.25.ffn_down.bias"]


def test_other_families_have_no_files_for_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "idefics2"}')
    with pytest.raises(gguf_files.UnwritableError, match="idefics2"):
        gguf_files.make(tmp_path, "q8_0")


def test_files_for_llama_cpp_hold_the_weights(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    plan = blueprint("tiny")
    source = make(plan, tmp_path)
    folder = gguf_files.make(source, "q4_0")
    text, eye = (gguf.GGUFReader(folder / name) for name in (gguf_files.TEXT, gguf_files.EYE))
    kinds = {tensor.name: tensor.tensor_type.name for reader in (text, eye) for tensor in reader.tensors}
    assert len(kinds) == len(plan.tensors) - 2
    assert (kinds["token_embd.weight"], kinds["blk.1.ffn_up.weight"]) == ("Q8_0", "Q4_0")
    assert (kinds["v.blk.0.ffn_up.weight"], kinds["blk.0.attn_q.bias"]) == ("F16", "F32")
    with safe_open(source / "model.safetensors", "pt") as weights:
        wanted = weights.get_tensor("language_model.model.layers.1.mlp.up_proj.weight").float().numpy()
    (found,) = [tensor for tensor in text.tensors if tensor.name == "blk.1.ffn_up.weight"]
    values = gguf.quants.dequantize(found.data, found.tensor_type)
    assert abs(values - wanted).max() < abs(wanted).max() / 7  # sixteen steps from one end to the other
    assert gguf_files.make(source, "q4_0") == folder


# --- rows and turns --------------------------------------------------------------------------------------------------


def test_rows_are_named_once_and_say_what_they_need() -> None:
    assert len(ROWS) == len(ALL) and set(USUAL) < set(ROWS)
    assert Row("x", "x", "x", needs={"no_such_module.inner": "a-package", "json": "other"}).missing == ["a-package"]
    assert ROWS["transformers"].held("bfloat16").kv == "bfloat16"
    assert ROWS["behold:int4"].held("float32").text == "int4"


def turns(*words: str) -> run.Turns:
    plan = blueprint("tiny")
    return run.Turns(run.parse(["--shapes", "tiny", *words]), plan, Path("nowhere"), Console(file=io.StringIO()))


def test_slow_rows_are_measured_less_and_say_so() -> None:
    slow, slower, other = (ROWS[name] for name in ("transformers:int8", "transformers:auto", "behold"))
    usual = turns()
    counts = [(usual.runs(row), usual.loads(row), usual.decode(row)) for row in (slow, slower, other)]
    assert counts == [(5, 2, 8), (2, 2, 16), (5, 5, 64)]
    full = turns("--full")
    assert (full.runs(slow), full.loads(slow), full.decode(slow)) == (5, 5, 64)
    few = turns("--runs", "1", "--decode", "3")
    assert (few.runs(slow), few.loads(slow), few.decode(slow)) == (1, 1, 3)
    usual.rows = [slow, slower, other]
    usual.check()
    assert usual.notes == [
        "transformers, quanto int8 is slow: 5 runs, loaded 2 times, 8 tokens after the first",
        "transformers, as installed is slow: 2 runs, 16 tokens after the first",
    ]


def test_turns_begin_with_another_row_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SETTLE_S", 0.0)
    three = turns()
    three.rows = [ROWS["behold"], ROWS["transformers"], ROWS["behold:int8"]]
    orders = [[row.name for row in three.in_turn(number)] for number in range(4)]
    assert [order[0] for order in orders] == ["behold", "transformers", "behold:int8", "behold"]
    assert orders[1] == ["transformers", "behold:int8", "behold"]


def test_unknown_rows_and_counts_are_usage_errors() -> None:
    for words in (["--rows", "no-such-row"], ["--runs", "0"]):
        with pytest.raises(SystemExit):
            run.parse(words)


def test_the_probe_measures_this_machine(tmp_path: Path) -> None:
    program = probe.build(tmp_path)
    if program is None:
        pytest.skip("no C compiler")
    assert probe.build(tmp_path) == program
    rates = probe.measure(program, 1, 0.001)
    assert {"read_gb_s", "float_gop_s"} <= set(rates) and min(rates.values()) > 0


def test_a_run_on_tiny_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """behold and transformers give the same tokens; who is missing, or cannot be loaded, is told and left out."""
    strangers = {
        "absent": Row("absent", "absent", "x", needs={"no_such_module": "such-a-package"}),
        "refused": Row("refused", "refused", "no_such_library"),
        "broken": Row("broken", "broken", "json"),
    }
    monkeypatch.setattr(run, "ROWS", ROWS | strangers)
    monkeypatch.setattr(run, "SETTLE_S", 0.0)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setenv("COLUMNS", "150")
    words = ["--shapes", "tiny", "--rows", "transformers", "behold", *strangers, "--runs", "1", "--decode", "3"]
    words += ["--prompt", "60", "--threads", "1", "--cache", str(tmp_path), "--probe-seconds", "0.001"]
    with pytest.raises(SystemExit) as leaving:
        run.main([*words, "--json", str(tmp_path / "all.json"), "--write"])
    said = capsys.readouterr().out
    assert leaving.value.code == 1  # for the broken one
    assert "absent is left out: pip install such-a-package" in said
    assert "refused is left out: No module named 'no_such_library'" in said
    assert "broken is left out: its process failed" in said and "AutoProcessor" in said
    assert re.search(r"behold: 4 of 4 tokens \(\d different\) as transformers", said)
    record = json.loads((tmp_path / "all.json").read_text())
    assert list(record["rows"]) == ["transformers", "behold"]
    for row in record["rows"].values():
        (answer,) = row["answers"]
        assert (answer["prompt_tokens"], answer["picture_sizes"], len(answer["ids"])) == (60, [[56, 56]], 4)
    assert "![" in (tmp_path / "RESULTS.md").read_text() and (tmp_path / "tiny-cpu.svg").exists()
