"""Who is measured: each row is a library with settings, in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec


@dataclass(frozen=True)
class Formats:
    """In what form a row holds its numbers, by the names of benchmarks.floor.FORMATS. vision: with the connector."""

    text: str
    vision: str
    head: str
    kv: str


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name: as on the command line: a library, then after a colon how its weights are made smaller, or "auto".
    title: as in the table. library: "llama.cpp", or a module with transformers' classes.
    dtype: of the weights; None: what the command line says. quantize: as the library calls it.
    needs: packages that are not always there, by the name each is imported as.
    formats: None where all is of the weights' dtype.
    most_runs, most_loads, most_decode: of a row so slow that it would take most of the time; None: as many as the
        others, and as many loads as runs.
    """

    name: str
    title: str
    library: str
    dtype: str | None = None
    quantize: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    formats: Formats | None = None
    most_runs: int | None = None
    most_loads: int | None = None
    most_decode: int | None = None

    @property
    def ours(self) -> bool:
        return self.library == "behold"

    @property
    def missing(self) -> list[str]:
        """What to install before this row can be measured."""
        return [package for module, package in self.needs.items() if not _is_there(module)]

    def held(self, dtype: str) -> Formats:
        """Its formats, where the weights are of `dtype` unless they were made smaller."""
        return self.formats or Formats(dtype, dtype, dtype, dtype)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is missing
        return False


TRANSFORMERS = {"transformers": "transformers"}
QUANTO = TRANSFORMERS | {"optimum.quanto": "optimum-quanto", "accelerate": "accelerate"}
LOOK_AHEAD = "int4"  # a greedy token reads codes of the head, and few of its integers
LLAMA_CPP = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}

ALL = (
    Row("behold", "behold", "behold"),
    Row(
        "behold:int8",
        "behold, int8",
        "behold",
        quantize="int8",
        formats=Formats("int8", "int8", LOOK_AHEAD, "int8"),
    ),
    Row(
        "behold:int4",
        "behold, int4",
        "behold",
        quantize="int4",
        formats=Formats("int4", "int8", LOOK_AHEAD, "int8"),
    ),
    Row("transformers", "transformers", "transformers", needs=TRANSFORMERS),
    Row(
        "transformers:auto",
        "transformers, as installed",
        "transformers",
        dtype="auto",
        needs=TRANSFORMERS,
        formats=Formats("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
        most_runs=2,
        most_decode=16,
    ),
    Row(
        "transformers:int8",
        "transformers, quanto int8",
        "transformers",
        quantize="int8",
        needs=QUANTO,
        formats=Formats("quanto int8", "quanto int8", "float32", "float32"),
        most_loads=2,  # a load takes twice as long as an answer, and only the answer's time decides a bar
        most_decode=8,
    ),
    Row(
        "llama.cpp:q8_0",
        "llama.cpp, Q8_0",
        "llama.cpp",
        quantize="q8_0",
        needs=LLAMA_CPP,
        formats=Formats("q8_0", "q8_0", "q8_0", "float16"),
    ),
    Row(
        "llama.cpp:q4_0",
        "llama.cpp, Q4_0",
        "llama.cpp",
        quantize="q4_0",
        needs=LLAMA_CPP,
        formats=Formats("q4_0", "float16", "q8_0", "float16"),
    ),
    Row(
        "llama.cpp:f16",
        "llama.cpp, F16",
        "llama.cpp",
        quantize="f16",
        needs=LLAMA_CPP,
        formats=Formats("float16", "float16", "float16", "float16"),
    ),
)
ROWS = {row.name: row for row in ALL}
USUAL = tuple(name for name in ROWS if name != "llama.cpp:f16")  # it only shows that the work is the same
