"""Guides: whatever is chosen of what they allow, the text keeps to the constraint, with every kind of tokenizer."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from behold.checkpoint.files import CheckpointFiles
from behold.engine import guides
from behold.engine.guides import GrammarGuide, Guides
from behold.errors import MissingDependencyError, OptionError, StructuredOutputError
from behold.processing.tokenizer import Tokenizer
from behold.types import Constraint
from tests import toys

# byte-level BPE; metaspace with byte fallback, once with idefics2's extra special tokens
NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2")
INVOICE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "paid": {"type": "boolean"},
        "lines": {"type": "array", "items": {"enum": ["café", "日本語", "🙂 x"]}, "minItems": 1, "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 6},
    },
    "required": ["number", "paid", "lines"],
    "additionalProperties": False,
}


@cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.load(CheckpointFiles.read(toys.checkpoint(name)))


@cache
def shared(name: str) -> Guides:
    return Guides(tokenizer(name), vocab_size=len(tokenizer(name)) + 5)


def eos(name: str) -> frozenset[int]:
    found = tokenizer(name).eos_token_id
    assert found is not None
    return frozenset({found})


def guide(name: str, constraint: Constraint) -> GrammarGuide:
    return shared(name).guide(constraint, eos(name))


def walk(name: str, constraint: Constraint, seed: int, longest: int = 400) -> str | None:
    """The text of a random way through the guide; None if it was too long."""
    chance, made, ids = random.Random(seed), guide(name, constraint), list[int]()
    while len(ids) < longest:
        token = chance.choice(np.flatnonzero(made.allowed()).tolist())
        made.accept(token)
        if token not in eos(name):
            ids.append(token)
        if token in eos(name) or made.over:
            assert made.may_end and made.over
            return tokenizer(name).decode(ids)
    return None


def encoded(name: str, text: str) -> list[int]:
    return tokenizer(name).encode(text, add_special_tokens=False)


def keeps_to(name: str, constraint: Constraint, ids: list[int]) -> bool:
    """Whether the guide lets these ids through and may end after them."""
    made = guide(name, constraint)
    for token in ids:
        if not made.allowed()[token]:
            return False
        made.accept(token)
    return made.may_end


# --- whatever is chosen, the text keeps to it ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_always_gives_values_that_it_allows(name: str) -> None:
    constraint = Constraint("json_schema", json.dumps(INVOICE))
    texts = [walk(name, constraint, seed) for seed in range(60)]
    for text in texts:
        assert text is not None  # bounded everywhere, blanks included
        value = json.loads(text)
        assert text == json.dumps(value, ensure_ascii=False) or "\\" in text  # one spacing only
        assert re.fullmatch("[A-Z]{2}-[0-9]{3}", value["number"]) and isinstance(value["paid"], bool)
        assert 1 <= len(value["lines"]) <= 3 and set(value["lines"]) <= {"café", "日本語", "🙂 x"}
        assert value.keys() <= INVOICE["properties"].keys()
        note = value.get("note")
        assert note is None or (isinstance(note, str) and len(note) <= 6)
    assert len(set(texts)) > 30


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["[a-c]{2,5}", "(é|日本|🙂| x|a| ){1,5}", " ?yes|no ", r"[\d.]{3}-\d\\d", "  +a"])
def test_a_regex_is_matched_as_a_whole(name: str, pattern: str) -> None:
    texts = {walk(name, Constraint("regex", pattern), seed) for seed in range(40)} - {None}
    assert texts
    assert [text for text in texts if text is None or not re.fullmatch(pattern, text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_can_be_made_and_nothing_else(name: str) -> None:
    choices = ("yes", "yes, please", " no", "  two blanks", "日本語 🙂", 'a "quoted" \\ one\n', "é")
    constraint = Constraint("choice", choices)
    assert {walk(name, constraint, seed) for seed in range(300)} == set(choices)
    assert all(keeps_to(name, constraint, encoded(name, text)) for text in ("yes", "yes, please", "é"))
    assert not keeps_to(name, constraint, encoded(name, "ye"))


@pytest.mark.parametrize("name", NAMES)
def test_a_grammar(name: str) -> None:
    constraint = Constraint("grammar", 'start: sum\nsum: N ("+" N)*\nN: /[1-9][0-9]{0,2}/')
    texts = {walk(name, constraint, seed, 60) for seed in range(30)} - {None}
    assert len(texts) > 5
    assert all(text is not None and re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})*", text) for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_any_json_object(name: str) -> None:
    texts = {walk(name, Constraint("json_object"), seed) for seed in range(60)} - {None}
    assert len(texts) > 1
    assert all(isinstance(json.loads(text or ""), dict) for text in texts)


@pytest.mark.parametrize("name", ["llava-clip-llama", "idefics2"])
def test_a_first_word_may_be_said_with_the_space_that_decoding_drops(name: str) -> None:
    vocabulary = tokenizer(name).get_vocab()
    made = guide(name, Constraint("choice", ("the", "are")))
    assert made.allowed()[vocabulary["▁the"]] and made.allowed()[vocabulary["are"]]
    made.accept(vocabulary["▁the"])
    assert made.over
    twice = guide(name, Constraint("regex", "the( the)?"))
    twice.accept(vocabulary["▁the"])
    assert twice.may_end and twice.allowed()[vocabulary["▁the"]] and not twice.allowed()[vocabulary["are"]]


# --- what is never allowed, and where an answer ends ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_and_ids_without_a_token_are_never_allowed(name: str) -> None:
    allowed = guide(name, Constraint("regex", r"(.|\n)*")).allowed()
    known = tokenizer(name)
    assert allowed.shape == (len(known) + 5,) and allowed.dtype == bool
    special = sorted(known.special_ids - eos(name))
    assert not allowed[special].any() and not allowed[len(known) :].any()
    assert allowed[sorted(eos(name))].all() and allowed.sum() > 200


def test_a_head_narrower_than_the_tokenizer() -> None:
    name = NAMES[0]
    made = Guides(tokenizer(name), vocab_size=100).guide(Constraint("regex", "[a-z]+"), frozenset({7, 320}))
    assert made.allowed().shape == (100,) and not made.allowed()[7]


def test_all_ids_that_end_are_allowed_exactly_where_the_grammar_may_end() -> None:
    name = NAMES[0]
    letter_b = encoded(name, "b")[0]
    ends = frozenset({320, 321, letter_b})
    made = shared(name).guide(Constraint("regex", "ab?c"), ends)
    made.accept(encoded(name, "a")[0])
    assert not made.allowed()[sorted(ends)].any()  # "b" ends answers here, so it is no text
    made.accept(encoded(name, "c")[0])
    assert np.flatnonzero(made.allowed()).tolist() == sorted(ends) and made.over


def test_asking_changes_nothing() -> None:
    made = guide(NAMES[0], Constraint("json_schema", json.dumps(INVOICE)))
    for token in encoded(NAMES[0], '{"number": "AB-1'):
        first = made.allowed().copy()
        assert (made.allowed() == first).all() and not made.may_end and not made.over
        made.accept(token)


@pytest.mark.parametrize("token", [-1, 0, 322])
def test_what_is_not_allowed_is_refused(token: int) -> None:
    made = guide(NAMES[0], Constraint("regex", "[0-9]"))
    with pytest.raises(StructuredOutputError, match="cannot go on under its constraint: no token is left"):
        made.accept(token)


def test_a_limit_that_is_met_on_the_way_ends_the_answer_with_the_librarys_words() -> None:
    made = guide(NAMES[0], Constraint("regex", "[ab]?" * 3000))

    def go_on() -> None:
        for _ in range(20):
            made.accept(int(np.flatnonzero(made.allowed())[0]) if made.allowed().any() else -1)

    with pytest.raises(StructuredOutputError, match=r"under its constraint: (?!no token)\w"):
        go_on()
    assert made.problem and not made.may_end and not made.over and not made.allowed().any()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint("json_schema", '{"type": "foo"}'), r"schema=.*foo.* cannot be used: Invalid type"),
        (Constraint("json_schema", '{"not": {}}'), r"Unimplemented keys: \[\"not\"\]"),
        (Constraint("json_schema", "{"), "schema='{' cannot be used"),
        (Constraint("json_schema", '{"minimum": 3, "maximum": 1, "type": "integer"}'), "Unsatisfiable"),
        (Constraint("json_schema", '{"$ref": "http://example.com/schema"}'), "not present in a registry"),
        (Constraint("regex", "[a"), r"regex='\[a' cannot be used.*unclosed"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("grammar", 'begin: "a"'), "grammar=.*no start rule"),
        (Constraint("grammar", "start: start"), "grammar='start: start'"),
        (Constraint("grammar", "start: <|im_start|>"), "allows no answer at all"),
    ],
)
def test_a_constraint_that_cannot_be_enforced(constraint: Constraint, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        guide(NAMES[0], constraint)


def test_without_an_id_that_ends_an_answer() -> None:
    with pytest.raises(OptionError, match="regex='a' needs an id that ends"):
        shared(NAMES[0]).guide(Constraint("regex", "a"), frozenset())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'behold-vlm\[structured\]'"):
        Guides(tokenizer(NAMES[0]), vocab_size=330).guide(Constraint("regex", "a"), eos(NAMES[0]))


def chained(link: Callable[[str], str], limit: int = 65_000) -> str:
    """The longest allowed schema in which every definition refers to the next."""
    parts, length = ['"$ref": "#/0"'], 40
    while length < limit:
        part = f'"{len(parts) - 1:x}":' + link(f'{{"$ref":"#/{len(parts):x}"}}')
        parts.append(part)
        length += len(part) + 1
    return "{" + ",".join([*parts, f'"{len(parts) - 1:x}":{{}}']) + "}"


def nested(opening: str, closing: str, n: int = 50) -> Callable[[str], str]:
    return lambda inner: opening * n + inner + closing * n


HOSTILE = {
    "references": Constraint("json_schema", chained(lambda inner: '{"items":' + inner + "}")),
    "bare references": Constraint("json_schema", chained(lambda inner: inner)),
    "nested references": Constraint("json_schema", chained(nested('{"anyOf":[', "]}"))),
    "nested objects": Constraint("json_schema", chained(nested('{"properties":{"a":', "}}", 30))),
    "brackets": Constraint("json_schema", '{"items":' * 7000 + "{}" + "}" * 7000),
    "too long": Constraint("json_schema", json.dumps({"enum": [f"value {i}" for i in range(9000)]})),
    "all of any": Constraint(
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"const": 1}}} for j in range(6)]} for i in range(12)]}
        ),
    ),
    "counted": Constraint("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "groups": Constraint("regex", "(" * 8000 + "a" + ")" * 8000),
    "optional": Constraint("regex", "[ab]?" * 3000),
    "rules": Constraint(
        "grammar", "start: r0\n" + "\n".join(f"r{i:x}: (((r{i + 1:x})*)?)*" for i in range(1300)) + '\nr514: "a"'
    ),
    "doubling": Constraint(
        "grammar", "start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)) + '\nT60: "a"'
    ),
    "parentheses": Constraint("grammar", "start: " + "(" * 16000 + '"a"' + ")" * 16000),
}


def test_no_hostile_constraint_hangs_or_ends_the_process() -> None:
    """In a process of its own, as an overflow of the stack ends it; and in a thread, which has less stack than most."""
    code = (
        "import sys, threading; from tests.engine.test_guides import hostile; threading.stack_size(512 << 10); "
        "thread = threading.Thread(target=hostile, args=sys.argv[1:]); thread.start(); thread.join()"
    )
    command = [sys.executable, "-c", code, str(toys.checkpoint(NAMES[0]))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    outcomes = dict(line.split(": ") for line in done.stdout.splitlines())
    assert done.returncode == 0, (outcomes, done.stderr)
    assert outcomes.keys() == HOSTILE.keys()
    assert {"brackets", "too long", "all of any", "groups", "doubling", "parentheses"} <= {
        kind for kind, outcome in outcomes.items() if outcome == "OptionError"
    }


def hostile(folder: str) -> None:
    """Compile each of HOSTILE and take a few steps; prints what came of it."""
    known = Tokenizer.load(CheckpointFiles.read(Path(folder)))
    kept = Guides(known, vocab_size=len(known))
    for kind, constraint in HOSTILE.items():
        outcome = "answers"
        try:
            made = kept.guide(constraint, frozenset({320}))
            for _ in range(20):
                if not made.over:
                    made.accept(int(np.flatnonzero(made.allowed())[0]) if made.allowed().any() else -1)
        except (OptionError, StructuredOutputError) as error:
            outcome = type(error).__name__
        print(f"{kind}: {outcome}", flush=True)


# --- the cache -----------------------------------------------------------------------------------------------------


def test_a_constraint_is_compiled_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guides, "KEPT_GRAMMARS", 2)
    compiled: list[str] = []
    plain = guides.Vocabulary.compile

    def counted(self: Any, constraint: Constraint) -> Any:
        compiled.append(str(constraint.source))
        return plain(self, constraint)

    monkeypatch.setattr(guides.Vocabulary, "compile", counted)
    kept = Guides(tokenizer(NAMES[0]), vocab_size=330)
    for source in ("a", "b", "a", "c", "a", "b"):
        made = kept.guide(Constraint("regex", source), eos(NAMES[0]))
        made.accept(encoded(NAMES[0], source)[0])
        assert made.over
    assert compiled == ["a", "b", "c", "b"]


def test_many_threads_may_ask() -> None:
    kept, wrong = Guides(tokenizer(NAMES[1]), vocab_size=450), list[str]()

    def ask(seed: int) -> None:
        word = "abc"[seed % 3]
        made = kept.guide(Constraint("regex", word * 3), eos(NAMES[1]))
        while not made.over:
            made.accept(int(np.flatnonzero(made.allowed())[-1]))
            if not made.may_end and made.over:
                wrong.append(word)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong and not any(thread.is_alive() for thread in threads)
