"""What the structure tests know about the sources: files, and the imports in their syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "behold"


@dataclass(frozen=True)
class Import:
    """One import statement's target. `typing_only`: under `if TYPE_CHECKING`; `lazy`: inside a function."""

    module: str
    line: int
    typing_only: bool
    lazy: bool


def python_files() -> list[Path]:
    """Every Python file of the project."""
    folders = ("src", "tests", "training", "benchmarks", "examples", "scripts", "docs")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file, for every module of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _walk(node: ast.AST, typing_only: bool, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, typing_only, lazy
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for inner in child.body:
                yield from _walk(ast.Module([inner], []), True, lazy)
            for inner in child.orelse:
                yield from _walk(ast.Module([inner], []), typing_only, lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, typing_only, lazy or inside)


def _targets(node: ast.Import | ast.ImportFrom, name: str, is_package: bool) -> list[str]:
    """The modules a statement loads: `from behold.nn import attention` loads behold.nn.attention."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = name.split(".") if is_package else name.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, base]) if base else ".".join(package)
    named = [f"{base}.{alias.name}" for alias in node.names]
    inside = [target for target in named if target in modules()]
    return inside + ([base] if len(inside) < len(named) else [])


def parse_imports(text: str, name: str, *, is_package: bool = False) -> tuple[Import, ...]:
    """Every import in the source of module `name`, in order."""
    return tuple(
        Import(target, node.lineno, typing_only, lazy)
        for node, typing_only, lazy in _walk(ast.parse(text), False, False)
        for target in _targets(node, name, is_package)
    )


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    """Every import in a module of the package, in order."""
    path = modules()[name]
    return parse_imports(path.read_text("utf-8"), name, is_package=path.stem == "__init__")


def inside(target: str) -> bool:
    """Whether an import's target is part of this package."""
    return target == "behold" or target.startswith("behold.")


def third_party(target: str) -> str | None:
    """The top-level name of a package that is neither ours nor Python's own; None for those."""
    top = target.partition(".")[0]
    return None if top in sys.stdlib_module_names or top == "behold" else top


def reachable(name: str) -> dict[str, tuple[str, ...]]:
    """Everything that running `name` can load, ours and third-party, each with the way there.

    The module's own lazy imports count, and so do those of what it imports: "never reaches" means never. Only the
    `__init__` of a parent package counts for what it runs on import alone, as its lazy names are not asked for.
    """
    ways: dict[str, tuple[str, ...]] = {}
    queue = [(name, (name,), True)]
    while queue:
        module, way, with_lazy = queue.pop()
        if module in ways:
            continue
        ways[module] = way
        if module not in modules():
            continue
        parts = module.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            queue.append((parent, (*way, parent), False))
        for item in imports_of(module):
            if not item.typing_only and (with_lazy or not item.lazy):
                queue.append((item.module, (*way, item.module), True))
    return ways
