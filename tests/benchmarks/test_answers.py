"""The benchmark of answers: what is asked, what is kept between runs, what is made of it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import behold
from benchmarks import answers, pictures
from benchmarks.answers import Verdict


def verdicts(n: int, *, wrong: int) -> list[Verdict]:
    """n questions about as many scenes, int8 wrong about `wrong` of them."""
    flags = [i >= wrong for i in range(n)]
    return [Verdict(i, "colour", (True, flag, True), (True, flag, True)) for i, flag in enumerate(flags)]


def test_a_scheme_may_lose_so_much_and_no_more() -> None:
    assert answers.bars(verdicts(1000, wrong=5)) == [("int8", 0.5, 0.5), ("int4", 0.0, 2.0)]
    text = answers.section(verdicts(1000, wrong=6), 1000)
    assert "| **all** | 1000 | 100.0 % | 99.4 % (-0.60) | 100.0 % (+0.00) | 99.4 % | 100.0 % |" in text
    assert "int8: 0.60 points below float32, to reach ≤ 0.5: missed" in text and "int4: 0.00" in text


def test_a_run_goes_on_where_another_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.jsonl"
    state.write_text("".join(json.dumps(asdict(each)) + "\n" for each in verdicts(3, wrong=1)) + '{"place": 3, "ki')
    options = answers.parse(["--scenes", "3", "--state", str(state)])
    monkeypatch.setattr(behold, "load", None)
    assert answers.go_on(options, answers.kept(state)) == verdicts(3, wrong=1), "nothing is left to ask"


def test_the_questions_are_those_of_the_checkpoints_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(answers.TRAINING), *sys.path])
    model = behold.load("demo")
    found = list(answers.ask([model] * 3, [0], 1000))
    assert {verdict.kind for verdict in found} >= {"describe", "count all", "compare", "no picture"}
    assert all(verdict.same == (True, True, True) and len(set(verdict.right)) == 1 for verdict in found)
    assert answers.share([verdict.right[0] for verdict in found]) > 60


def test_photographs_lie_on_their_side_where_they_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SIZE", (64, 48))
    sizes = [pictures.load_image(pictures.photograph(orientation)).size for orientation in (1, pictures.ON_ITS_SIDE)]
    assert sizes == [(64, 48), (48, 64)]
