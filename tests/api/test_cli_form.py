"""`behold ask --schema`, `--regex` and `--choice`: answers of a given form on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from behold.api.cli import main
from tests import toys

Run = Callable[..., tuple[int, str, str]]
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["count"],
        "additionalProperties": False,
    }
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Asks a toy; (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        model = toys.checkpoint("llava-siglip-qwen2")
        with pytest.raises(SystemExit) as leaving:
            main(["ask", "How many?", "--model", str(model), "--quiet", *map(str, words)])
        captured = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, captured.out, captured.err

    return run


def test_a_schema_from_a_file_or_written_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    for given in (tmp_path / "schema.json", SCHEMA, "\n" + SCHEMA):
        code, out, err = run("--schema", given)
        assert (code, err) == (0, "")
        assert 0 <= json.loads(out)["count"] <= 9


def test_json_output_has_the_parsed_values(run: Run) -> None:
    record = json.loads(run("--schema", SCHEMA, "--json")[1])
    assert record["parsed"] == json.loads(record["answer"])
    assert "parsed" not in json.loads(run("--choice", "red", "--json")[1])


def test_a_regex_and_choices(run: Run) -> None:
    assert re.fullmatch("[a-c]{3}\n", run("--regex", "[a-c]{3}")[1])
    assert run("--choice", "red", "--choice", "dark green")[1] in ("red\n", "dark green\n")


def test_an_answer_that_is_cut_off_is_an_error(run: Run) -> None:
    code, out, err = run("--schema", SCHEMA, "--max-new-tokens", 3)
    assert code == 1 and out.startswith('{"') and "raise max_new_tokens" in err
    code, out, err = run("--schema", SCHEMA, "--max-new-tokens", 3, "--json")
    assert (code, out) == (1, "") and "raise max_new_tokens" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--schema", "no-such-file.json"], 2, "no-such-file.json cannot be read"),
        (["--schema", "{nonsense"], 2, "it is no JSON"),
        (["--schema", SCHEMA, "--regex", "a"], 1, "schema and regex are both given"),
        (["--regex", "[a"], 1, "regex='[a' cannot be used"),
    ],
)
def test_refused(run: Run, words: list[str], code: int, says: str) -> None:
    found, out, err = run(*words)
    assert (found, out) == (code, "") and says in err
