"""Keeps answers to a schema, a pattern, a grammar or a choice; the one place that knows the llguidance library.

A grammar is compiled once and kept for the next request with the same constraint. For every token the library says
which ids keep the text on a way that the grammar can finish, so an answer can only be cut off, never be wrong.

Texts are as `processing.tokenizer` decodes them. Where a decoder drops the space that a text begins with (metaspace
tokenizers: "▁yes" at the start is "yes"), a first id with that space is let through and counted as dropped.

JSON has one fixed spacing, that of Python's json.dumps: a model cannot fill its answer with blanks.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from behold.errors import MissingDependencyError, OptionError, StructuredOutputError
from behold.types import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from behold.processing.tokenizer import Tokenizer

T = TypeVar("T")

KEPT_GRAMMARS = 64
MAX_CHARACTERS = {"json_schema": 65_536, "regex": 16_384, "grammar": 32_768, "choice": 65_536}
FIELDS = {
    "json_schema": "schema",
    "json_object": "json_object",
    "regex": "regex",
    "grammar": "grammar",
    "choice": "choices",
}

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
# The library's own limits, some lowered: they bound the time and memory of one grammar and of one step.
_LIMITS = {"max_grammar_size": 100_000, "max_lexer_states": 50_000, "step_max_items": 20_000, "verbose_errors": False}
# The library recurses once for every reference or rule that leads to the next, and an overflow would end the process.
# With the longest source allowed it was seen to need up to 64 MiB; only what is used is taken.
_STACK_BYTES = 256 << 20
_STACK_SIZE = threading.Lock()
_MESSAGE_CHARACTERS = 300
_DIGITS = {"d": "[0-9]", "D": "[^0-9]"}


class Guides:
    """Makes the guides of one tokenizer. May be called from any thread.

    vocab_size: V, the width of the logits; ids beyond the tokenizer's are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[Constraint, tuple[LLMatcher, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def guide(self, constraint: Constraint, eos: frozenset[int]) -> GrammarGuide:
        """A fresh guide; `eos` are the ids that end the answer, allowed where the grammar may end and nowhere else.

        Raises:
            OptionError: the constraint is malformed, or says more than the library can enforce or afford.
            MissingDependencyError: the library is not installed.
        """
        if not eos:
            raise OptionError(f"{_shown(constraint)} needs an id that ends an answer, and this checkpoint names none")
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
            known = self._compiled.get(constraint)
            if known is not None:
                self._compiled.move_to_end(constraint)
        matchers = known or self._vocabulary.compile(constraint)
        with self._lock:
            self._compiled[constraint] = matchers
            while len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        guide = GrammarGuide(self._vocabulary, [matcher.deep_copy() for matcher in matchers], eos)
        if not guide.allowed().any():
            reason = guide.problem or "no token of this checkpoint can begin it"
            raise OptionError(f"{_shown(constraint)} allows no answer at all: {reason}")
        return guide


class Vocabulary:
    """A tokenizer as the library needs it, and what the library does not know about it.

    plain (V,): ids that are text: special ids and those without a token are not.
    dropping (V,): ids that begin with a space which decoding drops at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Takes one to two seconds for a vocabulary of 150,000."""
        library = _library()
        ids = np.array(sorted(set(tokenizer.get_vocab().values()) - tokenizer.special_ids), dtype=np.int64)
        # What ends an answer differs between requests and is seen to here; the library gets any id that is no text.
        end = min(tokenizer.special_ids, default=None)
        self._tokens: Any = library.LLTokenizer(tokenizer.backend.to_str(), eos_token=end)
        self._limits: Any = library.LLParserLimits(**_LIMITS)
        self.size = vocab_size
        self.plain = np.zeros(vocab_size, dtype=bool)
        self.plain[ids[ids < vocab_size]] = True
        spaced = [i for i in np.flatnonzero(self.plain).tolist() if self._tokens.decode_bytes([i])[:1] == b" "]
        self.dropping = np.zeros(vocab_size, dtype=bool)
        for i in spaced:
            self.dropping[i] = tokenizer.decode([i]).encode() == self._tokens.decode_bytes([i])[1:]

    def compile(self, constraint: Constraint) -> tuple[LLMatcher, ...]:
        """The matcher of a constraint, and a second one that begins with a dropped space where there is such a thing.

        Raises:
            OptionError: see Guides.guide.
        """
        _check_size(constraint)
        try:
            grammar = _grammar(constraint)
        except ValueError as error:  # a schema that is no JSON, or nested too deeply to be read
            raise OptionError(f"{_shown(constraint)} cannot be used: {_brief(str(error))}") from error
        grammars = [grammar, _after_space(grammar)] if self.dropping.any() else [grammar]
        matchers = with_deep_stack(lambda: tuple(self._matcher(each) for each in grammars))
        for matcher in matchers:
            if matcher.is_error():
                raise OptionError(f"{_shown(constraint)} cannot be used: {_brief(matcher.get_error())}")
        return matchers

    def _matcher(self, grammar: str) -> LLMatcher:
        matcher: LLMatcher = _library().LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # may go as deep, or find that a limit is too low
        return matcher

    def mask(self, matcher: LLMatcher) -> np.ndarray:
        """(V,) ids of text that may come next; none after an error."""
        mask = np.zeros(self.size, dtype=bool)
        if matcher.is_error():
            return mask
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if not matcher.is_error():
            found = np.unpackbits(bits, count=min(self.size, 8 * bits.size), bitorder="little").view(bool)
            mask[: found.size] = found
            mask &= self.plain
        return mask


class GrammarGuide:
    """The guide of one answer; see sequence.Guide."""

    def __init__(self, vocabulary: Vocabulary, matchers: list[LLMatcher], eos: frozenset[int]) -> None:
        self._vocabulary = vocabulary
        self._matchers = matchers  # two only until the first id says whether a space was dropped
        self._eos = eos
        self._eos_ids = [i for i in sorted(eos) if i < vocabulary.size]
        self._ended = False
        self._mask: np.ndarray | None = None

    def allowed(self) -> np.ndarray:
        if self._mask is None:
            mask, *after_space = [self._vocabulary.mask(matcher) for matcher in self._matchers]
            if after_space:
                dropping = self._vocabulary.dropping
                mask[dropping] = after_space[0][dropping]
            mask[self._eos_ids] = self.may_end
            self._mask = mask
        return self._mask

    def accept(self, token: int) -> None:
        if token < 0 or not self.allowed()[token]:
            reason = self.problem or "no token is left that keeps to it and that no other option forbids"
            raise StructuredOutputError(f"the answer cannot go on under its constraint: {reason}")
        if token in self._eos:
            self._ended = True
            return
        if len(self._matchers) > 1:
            self._matchers = [self._matchers[int(self._vocabulary.dropping[token])]]
        self._mask = None
        if not self._matchers[0].consume_token(token) or self._matchers[0].is_error():
            raise StructuredOutputError(f"the answer cannot go on under its constraint: {self.problem}")

    @property
    def may_end(self) -> bool:
        matcher = self._matchers[0]
        return self._ended or (not matcher.is_error() and matcher.is_accepting())

    @property
    def over(self) -> bool:
        matcher = self._matchers[0]
        return self._ended or (not matcher.is_error() and matcher.is_stopped() and matcher.is_accepting())

    @property
    def problem(self) -> str:
        """What the library says went wrong; "" while nothing did."""
        return " ".join(_brief(matcher.get_error()) for matcher in self._matchers if matcher.is_error())


# --- constraints as grammars --------------------------------------------------------------------------------------


def _grammar(constraint: Constraint) -> str:
    """The library's own JSON form of a constraint."""
    matcher = _library().LLMatcher
    source = constraint.source
    grammar: str
    if constraint.kind in ("json_schema", "json_object"):
        schema = source if constraint.kind == "json_schema" else '{"type": "object"}'
        grammar = matcher.grammar_from_json_schema(schema, overrides=_SPACING)
    elif constraint.kind == "regex":
        # Else \d would be any of Unicode's digits, some of which neither people nor int() expect.
        plain = re.sub(r"\\(.)", lambda escape: _DIGITS.get(escape[1], escape[0]), str(source), flags=re.DOTALL)
        grammar = matcher.grammar_from_regex(plain)
    else:
        lark = source if isinstance(source, str) else "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, source))
        grammar = json.dumps({"grammars": [{"name": "lark", "lark_grammar": lark}]})
    return grammar


def _after_space(grammar: str) -> str:
    (inner,) = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": 'start: " " @inner'}, {**inner, "name": "inner"}]})


def _check_size(constraint: Constraint) -> None:
    limit = MAX_CHARACTERS.get(constraint.kind)
    length = sum(map(len, constraint.source))
    if limit is not None and length > limit:
        raise OptionError(f"{FIELDS[constraint.kind]} has {length:,} characters; up to {limit:,} can be enforced")


def with_deep_stack(work: Callable[[], T]) -> T:
    """`work()`, in a thread whose stack no source of an allowed size overflows."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with _STACK_SIZE:
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="behold-grammar", daemon=True).start()
        finally:
            threading.stack_size(before)
    return done.result()


def _shown(constraint: Constraint) -> str:
    source = constraint.source if isinstance(constraint.source, str) else list(constraint.source)
    shown = f"{source!r:.80}" + ("…" if len(repr(source)) > 80 else "")
    return FIELDS[constraint.kind] + (f"={shown}" if constraint.source else "")


def _brief(message: str) -> str:
    """The library's message in one line, without the marks of what it leaves out."""
    line = " ".join(message.replace("<non-verbose/>", "").split())
    return line if len(line) <= _MESSAGE_CHARACTERS else line[:_MESSAGE_CHARACTERS] + "…"


def _library() -> Any:  # noqa: ANN401 - a module
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            "answers that keep to a schema, regex, grammar or choices need llguidance: "
            "pip install 'behold-vlm[structured]'"
        ) from error
    return llguidance
