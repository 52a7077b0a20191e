"""Rules of the house that a syntax tree can check: sizes, no unsafe calls, no hidden state, no family in the engine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import PACKAGE, ROOT, python_files

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCES = sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8"), str(path)))


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in python_files()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name} ({length} lines)"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_examples_stay_short() -> None:
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in (ROOT / "examples").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length >= 40} == {}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_code_from_a_checkpoint_can_run(path: Path) -> None:
    """No pickle, eval or import by a checkpoint's wish: weights are safetensors, templates run in a sandbox."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in {"eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load"}:
                found.append(f"line {node.lineno}: {name}(…)")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"line {node.lineno}: {n}" for n in names if n.split(".")[0] in {"pickle", "marshal", "shelve"}]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_module_level_state_is_rebound(path: Path) -> None:
    """What a function needs is in its arguments: no `global` anywhere."""
    assert not [node.lineno for node in nodes(path) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine").glob("*.py")), ids=relative)
def test_the_engine_names_no_family(path: Path) -> None:
    """Differences between families reach the engine as data, so none of their names is in its code."""
    families = {p.stem for p in (PACKAGE / "models" / "families").glob("*.py")} - {"__init__"}
    named = [node.lineno for node in nodes(path) if isinstance(node, ast.Constant) and node.value in families]
    assert not named


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_modules_say_what_they_are(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)) or path.name == "_version.py"
