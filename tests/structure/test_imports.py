"""Who may import whom: each floor stands on the ones below it. docs/architecture.md says why."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

import pytest

from tests.structure.sources import Import, imports_of, inside, modules, parse_imports, reachable, third_party

GROUND = (
    "behold.types",
    "behold.errors",
    "behold.device",
    "behold.threads",
    "behold.pages",
    "behold.pixels",
    "behold.collector",
    "behold._version",
)
FLOOR_1 = (
    "behold.nn*",
    "behold.kernels*",
    "behold.quant.schemes",
    "behold.quant.linear",
    "behold.quant.float8",
    "behold.quant.head",
    "behold.quant.joined",
    "behold.quant.integers",
    "behold.quant.rounding",
    "behold.checkpoint*",
    "behold.chat*",
)
PROCESSING = ("behold.processing*",)

# The first pattern that fits a module says what it may import of ours, beside the ground floor and its own package
# (families: not even that). Typing-only imports obey the same rule.
RULES: dict[str, tuple[str, ...]] = {
    "behold": ("behold.api.*",),
    "behold.__main__": ("behold.api.cli*",),
    "behold.types": (),
    "behold.errors": (),
    "behold._version": (),
    "behold.device": ("behold.errors",),
    "behold.threads": ("behold.errors",),
    "behold.pages": (),
    "behold.pixels": ("behold.pages",),
    "behold.collector": (),
    "behold.nn*": ("behold.nn.linear", "behold.nn.norms", "behold.kernels*", "behold.quant.joined"),
    "behold.kernels*": ("behold.kernels.native", "behold.kernels.rows"),
    "behold.quant.schemes": ("behold.nn*", "behold.kernels*"),
    "behold.quant.joined": ("behold.kernels*", "behold.quant.linear"),
    "behold.quant.float8": ("behold.quant.linear",),
    "behold.quant.head": ("behold.kernels*", "behold.quant.linear"),
    "behold.quant.linear": ("behold.kernels*", "behold.quant.integers", "behold.quant.rounding"),
    "behold.quant.integers": ("behold.quant.rounding",),
    "behold.quant.rounding": (),
    "behold.quant.cache": (),
    "behold.quant*": (*FLOOR_1, "behold.quant.apply", "behold.quant.cache", "behold.quant.weights_file"),
    "behold.checkpoint*": (),
    "behold.chat*": (),
    "behold.processing*": ("behold.chat*", "behold.checkpoint.files", "behold.nn*", "behold.kernels.resample"),
    "behold.models.registry": ("behold.models.base", "behold.checkpoint*"),
    "behold.models.load": (
        "behold.models.base",
        "behold.models.config",
        "behold.models.registry",
        "behold.checkpoint*",
        "behold.quant*",
        "behold.kernels.native",
    ),
    "behold.models.families*": (
        "behold.models.config",
        "behold.models.decoder",
        "behold.models.towers*",
        "behold.models.connectors",
        "behold.models.base",
        "behold.checkpoint.rename",
        "behold.checkpoint.files",
        "behold.nn*",
        *PROCESSING,
    ),
    "behold.models*": (
        "behold.models.config",
        "behold.models.decoder",
        "behold.models.towers*",
        "behold.models.connectors",
        "behold.models.base",
        "behold.nn*",
        "behold.quant.linear",
        "behold.quant.head",
        "behold.quant.joined",
        "behold.quant.schemes",
        "behold.checkpoint.files",
        "behold.checkpoint.rename",
        "behold.processing.layout",
    ),
    "behold.engine*": (
        "behold.models.base",
        "behold.models.config",
        "behold.nn.attention",
        "behold.kernels*",
        "behold.processing.detokenizer",
        "behold.processing.tokenizer",
    ),
    "behold.api*": (
        "behold.engine*",
        "behold.models.load",
        "behold.models.registry",
        "behold.models.base",
        "behold.chat*",
        "behold.checkpoint*",
        "behold.quant.schemes",
        "behold.quant.cache",
        "behold.quant.report",
        "behold.nn.attention",
        *PROCESSING,
    ),
}

# What `behold serve` stands on, brought by the extra [server]; the whole package is for those who have it.
SERVER_PACKAGES = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "anyio"}

# One package, for the rule "own package": families are strangers to each other, and models.* is spelled out above.
STRANGERS = ("behold.models", "behold.quant", "behold.nn", "behold.kernels")
DOORS = ("behold.api.cli", "behold.api.server")

TORCH_FREE = (
    "behold",
    "behold.collector",
    "behold.types",
    "behold.errors",
    "behold.engine.scheduler",
    "behold.engine.blocks",
    "behold.engine.sequence",
    "behold.engine.loops",
    "behold.engine.stops",
    "behold.checkpoint.rename",
    "behold.checkpoint.files",
    "behold.checkpoint.hub",
    "behold.quant.schemes",
    "behold.quant.cache",
    "behold.chat.messages",
    "behold.chat.template",
)

REQUIRED_PACKAGES = {"torch", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "PIL", "numpy", "typer", "rich"}
# What the required packages bring along and we may name: typer stands on click.
BROUGHT_ALONG = {"click"}


def served(name: str, package: str) -> bool:
    """Whether it is one of the server's packages inside the server, which is only ever imported on use."""
    return package in SERVER_PACKAGES and fnmatchcase(name, "behold.api.server*")


def package_of(name: str) -> str:
    return ".".join(name.split(".")[:2])


def forbidden(name: str, imports: Iterable[Import]) -> list[str]:
    """The imports that module `name` should not have."""
    rule = next((allowed for pattern, allowed in RULES.items() if fnmatchcase(name, pattern)), None)
    assert rule is not None, f"{name} is on no floor: give it a rule"
    allowed, problems = (*rule, *GROUND), []
    own = package_of(name)
    for item in imports:
        if not inside(item.module) or any(fnmatchcase(item.module, pattern) for pattern in allowed):
            continue
        if item.module == "behold" or (own not in STRANGERS and package_of(item.module) == own and own not in GROUND):
            continue
        problems.append(f"{name}:{item.line} imports {item.module}")
    return problems


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    assert not forbidden(name, imports_of(name))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("behold.engine.scheduler", "from behold.models.families import llava"),
        ("behold.engine.runner", "from behold.models.decoder import Decoder"),
        ("behold.chat.media", "if TYPE_CHECKING:\n    from behold.processing.images import resize"),
        ("behold.models.families.llava", "from behold.models.families.idefics2 import Idefics2"),
        ("behold.models.families.llava", "from .idefics2 import Idefics2"),
        ("behold.models.decoder", "def build():\n    from behold.quant.apply import quantize_"),
        ("behold.processing.images", "import behold.engine.engine"),
        ("behold.types", "from behold import engine"),
        ("behold.checkpoint.weights", "from ..nn import attention"),
    ],
)
def test_an_import_upwards_is_found(name: str, source: str) -> None:
    assert forbidden(name, parse_imports(source, name))


@pytest.mark.parametrize("name", [n for n in sorted(modules()) if n.startswith("behold.models.families.")])
def test_no_family_imports_another(name: str) -> None:
    others = [i.module for i in imports_of(name) if i.module.startswith("behold.models.families.")]
    assert not others


def test_doors_are_not_imported_by_what_they_open() -> None:
    """Nothing below the command line and the server knows of them."""
    callers = [
        f"{name}:{item.line}"
        for name in modules()
        if not name.startswith(DOORS) and name not in ("behold", "behold.__main__")
        for item in imports_of(name)
        if item.module.startswith(DOORS)
    ]
    assert not callers


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_free_modules_never_reach_torch(name: str) -> None:
    ways = reachable(name)
    assert "torch" not in ways, " → ".join(ways["torch"])


def test_torch_free_modules_load_without_torch() -> None:
    """The syntax trees say so; a real interpreter agrees."""
    code = "import importlib, sys\n"
    code += f"for name in {TORCH_FREE!r}: importlib.import_module(name)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optional_packages_are_imported_in_one_file_each() -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for name in modules():
        for item in imports_of(name):
            package = third_party(item.module)
            if not package or item.typing_only or served(name, package):
                continue
            if package not in REQUIRED_PACKAGES | BROUGHT_ALONG:
                users[package].add(name)
    assert {package: names for package, names in users.items() if len(names) > 1} == {}


def test_optional_packages_are_imported_on_use() -> None:
    eager = [
        f"{name}:{item.line} imports {item.module}"
        for name in modules()
        for item in imports_of(name)
        if (package := third_party(item.module)) not in {None, *REQUIRED_PACKAGES, *BROUGHT_ALONG}
        and not item.typing_only
        and not item.lazy
        and not served(name, package)
    ]
    assert not eager


def test_the_server_is_imported_on_use() -> None:
    """Its packages are optional, so nothing outside may load it by being imported."""
    eager = [
        f"{name}:{item.line} imports {item.module}"
        for name in modules()
        if not name.startswith("behold.api.server")
        for item in imports_of(name)
        if item.module.startswith("behold.api.server") and not item.typing_only and not item.lazy
    ]
    assert not eager


@pytest.mark.parametrize("name", ["transformers", "training", "tests", "benchmarks", "torchvision", "accelerate"])
def test_the_package_never_imports(name: str) -> None:
    users = [m for m in modules() for item in imports_of(m) if item.module.partition(".")[0] == name]
    assert not users
