"""What is made of the figures: floors, bars, tables, a section and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import bars, plot, report
from benchmarks.bars import Bar
from benchmarks.checkpoint import Blueprint, blueprint
from benchmarks.figures import Measured, floor, medians
from benchmarks.floor import FORMATS, Work
from benchmarks.report import Run, agreements, common, section, terminal_tables, write_results
from benchmarks.rows import ALL, ROWS, Formats

RATES = {"read_gb_s": 30.0, "float_gop_s": 200.0, "int8_gop_s": 400.0, "int4_gop_s": 600.0}
PATCHES = 27 * 27


def measured(name: str, *, first: float, speed: float, peak: float = 2e9, ids: tuple[int, ...] = (1, 2, 3)) -> Measured:
    load = {"dtype": "float32", "load_s": 1.0, "import_s": 1.0, "load_bytes": 1e9}
    answer: dict[str, Any] = {"first_token_s": first, "decode_tokens_per_s": speed, "peak_bytes": peak}
    answer |= {"prompt_tokens": 760, "ids": list(ids), "picture_sizes": [[384, 384]]}
    return Measured(ROWS[name], [load], [answer, answer | {"first_token_s": first + 9}, answer])


def a_run(
    *rows: Measured, name: str = "llava-interleave-qwen-0.5b", rates: list[dict[str, float]] | None = None
) -> Run:
    plan = blueprint("llava-interleave-qwen-0.5b")
    plan = Blueprint(name, plan.dtype, {}, None, None, plan.files, plan.tensors)
    return Run(plan, list(rows), 2, "cpu", 3, [RATES] if rates is None else rates)


# --- floors ----------------------------------------------------------------------------------------------------------


def test_the_work_of_a_published_model_is_counted_from_its_shapes() -> None:
    tensors = blueprint("llava-interleave-qwen-0.5b").tensors
    work = Work.of(tensors, patches=[PATCHES], prompt_tokens=760, decode_tokens=32)
    layer, tower = 4 * 1024**2 + 3 * 1024 * 2816, 4 * 1152**2 + 2 * 1152 * 4304
    embed, projector = 1152 * 3 * 14 * 14, 1152 * 1024 + 1024**2
    assert work.text_weights == 24 * layer and work.head_weights == 152_000 * 1024
    assert work.text_linear == 2 * (760 * 24 * layer + 152_000 * 1024)
    assert work.vision_linear == 2 * PATCHES * (26 * tower + embed + projector)
    assert work.vision_attention == 26 * 2 * (2 * PATCHES**2 * 1152)
    assert work.text_attention == 24 * 2 * (760**2 * 1024)
    assert work.kv_numbers == 24 * 2 * 1024 * 776
    twice = Work.of(tensors, patches=[PATCHES, PATCHES], prompt_tokens=760, decode_tokens=32)
    assert twice.vision_linear == 2 * work.vision_linear and twice.text_linear == work.text_linear


def test_a_resampler_multiplies_its_own_rows() -> None:
    tensors = {
        "lm_head.weight": (50, 8),
        "model.text_model.embed_tokens.weight": (50, 8),
        "model.vision_model.embeddings.position_embedding.weight": (10, 4),
        "model.connector.modality_projection.up_proj.weight": (6, 4),
        "model.connector.perceiver_resampler.latents": (3, 8),
        "model.connector.perceiver_resampler.layers.0.self_attn.k_proj.weight": (2, 8),
        "model.connector.perceiver_resampler.layers.0.self_attn.q_proj.weight": (4, 8),
    }
    work = Work.of(tensors, patches=[10], prompt_tokens=5, decode_tokens=0)
    assert work.vision_linear == 2 * (10 * 6 * 4 + 13 * 2 * 8 + 3 * 4 * 8)
    assert (work.text_linear, work.head_weights, work.vision_attention) == (2 * 50 * 8, 400, 0)


def test_floors_are_work_over_rates() -> None:
    work = Work(600e9, 40e9, 400e9, 20e9, text_weights=300_000_000, head_weights=150_000_000, kv_numbers=40_000_000)
    formats = Formats(text="int4", vision="int8", head="int8", kv="float16")
    assert work.first_token_s(formats, RATES) == pytest.approx(600 / 400 + 400 / 600 + 60 / 200)
    assert work.token_bytes(formats) == 150e6 + 150e6 + 80e6
    assert work.decode_tokens_per_s(formats, RATES) == pytest.approx(30e9 / 380e6)
    plain = {"read_gb_s": 30.0, "float_gop_s": 200.0}
    assert work.first_token_s(formats, plain) is None
    assert work.first_token_s(ROWS["transformers"].held("float32"), plain) == pytest.approx(1060 / 200)


def test_every_row_holds_known_formats() -> None:
    held = [row.held("float32") for row in ALL]
    assert {part for each in held for part in (each.text, each.vision, each.head, each.kv)} <= set(FORMATS)


def test_shares_are_of_the_floor() -> None:
    row = measured("behold", first=10.0, speed=5.0)
    work = Work(600e9, 0, 400e9, 0, text_weights=1_000_000_000, head_weights=0, kv_numbers=0)
    found = floor(row, work, RATES)
    assert (found.first_token_s, found.first_token_share) == (5.0, 0.5)
    assert (found.decode_tokens_per_s, found.decode_share) == (7.5, pytest.approx(2 / 3))
    assert medians([RATES, RATES, {**RATES, "read_gb_s": 10.0}]) == RATES and medians([]) == {}


# --- bars and tables -------------------------------------------------------------------------------------------------


def test_bars_are_ceilings_or_floors_or_plain_numbers() -> None:
    rows = [
        measured("behold:int8", first=4.0, speed=40.0, peak=1.4e9),
        measured("llama.cpp:q8_0", first=10.0, speed=20.0),
    ]
    wanted = (
        Bar("toy", "behold:int8", bars.FIRST, "llama.cpp:q8_0", 0.42),
        Bar("toy", "behold:int8", bars.SPEED, "llama.cpp:q8_0", 2.4),
        Bar("toy", "behold:int8", bars.PEAK, None, 1.5e9),
        Bar("toy", "behold:int8", bars.FIRST, "transformers", 0.48),  # was not measured
        Bar("another", "behold:int8", bars.FIRST, "llama.cpp:q8_0", 0.42),
    )
    first, speed, peak = bars.lines("toy", rows, wanted)
    ours = "behold, int8"
    assert first == [ours, "first token", "4.00 s", "llama.cpp, Q8_0", "10.00 s", "0.40×", "≤ 0.42×: reached"]
    assert speed[-2:] == ["2.00×", "≥ 2.40×: not reached"]
    assert peak == [ours, "peak, running", "1.40 GB", "", "", "", "≤ 1.50 GB: reached"]


def test_every_bar_is_about_a_row_and_a_column() -> None:
    assert {bar.row for bar in bars.BARS} | {bar.against for bar in bars.BARS} - {None} <= set(ROWS)
    for bar in bars.BARS:
        rows = [measured(name, first=1.0, speed=1.0) for name in dict.fromkeys((bar.row, bar.against)) if name]
        assert len(bars.lines(bar.shapes, rows, [bar])) == 1


def test_a_section_has_figures_floors_bars_and_notes() -> None:
    run = a_run(
        measured("llama.cpp:q8_0", first=10.0, speed=20.0),
        measured("behold:int8", first=4.0, speed=40.0, ids=(1, 2, 9)),
    )
    run.notes.append("a note")
    text = section(run, plot="toy.svg")
    assert text.startswith("## llava-interleave-qwen-0.5b, cpu, 2 threads\n\n")
    assert "760 prompt tokens with one picture, 2 tokens after the first; 3 runs." in text
    assert "![First token, decode and peak memory of each row](toy.svg)" in text
    assert (
        "| llama.cpp, Q8_0 | q8_0 | 10.00 s (10.00–19.00) | 20.00 tok/s | 2.00 GB | 1.00 GB | 1.00 s | 1.00 s |" in text
    )
    assert "reading memory 30.0 GB/s" in text and "| behold, int8 | 3.09 s | 77 % |" in text
    assert "| behold, int8 | first token | 4.00 s | llama.cpp, Q8_0 | 10.00 s | 0.40× | ≤ 0.42×: reached |" in text
    assert "- a note\n- the same answers? behold, int8: 2 of 3 tokens (3 different) as llama.cpp, Q8_0" in text
    assert len(terminal_tables(run)) == 3


def test_a_wider_cpu_has_a_section_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "cpu_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    rates = [RATES | {"bfloat16_gop_s": 400.0}]
    rows = (measured("transformers", first=10.0, speed=20.0), measured("behold:int8", first=4.0, speed=40.0))
    text = section(a_run(*rows, rates=rates))
    assert text.startswith("## llava-interleave-qwen-0.5b, cpu, AVX-512, 2 threads\n\n")
    assert "float32 200, bfloat16 400, int8 400. Up to" in text
    assert "0.40× | ≤ 0.48×: reached |" in text and "- what is to be reached was set for a CPU with AVX2" in text
    assert "was set for" not in section(a_run(*rows, name="toy", rates=rates))


def test_without_a_probe_or_bars_there_are_figures_only() -> None:
    run = a_run(measured("behold", first=1.0, speed=1.0), name="toy", rates=[])
    assert len(terminal_tables(run)) == 1
    assert "Measured between" not in section(run)
    ElementTree.fromstring(plot.svg(run))


def test_answers_are_compared_as_far_as_both_go() -> None:
    assert [common([1, 2, 3], [1, 2]), common([1, 2], [3]), common([], [])] == [2, 0, 0]
    rows = [measured("behold", first=1, speed=1), measured("behold:int8", first=1, speed=1, ids=(1, 2))]
    assert agreements(rows) == ["behold, int8: 2 of 2 tokens (2 different) as behold"]


def test_a_section_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    text = section(a_run(measured("behold", first=4.0, speed=20.0)))
    other = section(a_run(measured("behold", first=4.0, speed=20.0), name="another"))
    for part in (text, other, text.replace("20.00 tok/s", "21.00 tok/s")):
        write_results(path, part)
    written = path.read_text()
    assert written.count("## llava") == written.count("## another") == 1
    assert "21.00 tok/s" in written
    assert written.startswith("# Results\n")


def test_the_plot_has_a_bar_for_every_row_in_every_panel() -> None:
    rows = [measured("behold:int8", first=4.0, speed=40.0), measured("llama.cpp:q8_0", first=8.0, speed=20.0)]
    root = ElementTree.fromstring(plot.svg(a_run(*rows)))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [each for each in root.iter(f"{space}rect") if each.get("fill") in (plot.OURS, plot.THEIRS)]
    widths = [float(each.get("width", 0)) for each in boxes]
    assert len(boxes) == 2 * len(plot.PANELS)
    assert widths[0] / widths[1] == pytest.approx(0.5, abs=0.01)  # first token
    assert widths[2] / widths[3] == pytest.approx(2.0, abs=0.01)  # decode
    texts = [each.text for each in root.iter(f"{space}text")]
    assert texts.count("behold, int8") == texts.count("llama.cpp, Q8_0") == 3 and "40.00 tok/s" in texts
    right = float(root.get("width", 0))
    assert all(float(each.get("x", 0)) < right for each in root.iter(f"{space}text"))
