"""Streamed text equals decoded text, and never shows half a character."""

from __future__ import annotations

import functools

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from behold.checkpoint.files import CheckpointFiles
from behold.processing.detokenizer import Detokenizer
from behold.processing.tokenizer import Tokenizer
from tests import toys

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2", "words")


@functools.cache
def load(name: str) -> Tokenizer:
    if name == "words":
        pieces = {word: n for n, word in enumerate(["[UNK]", "un", "##able", "##s", "do", ".", "able", "<s>"])}
        backend = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return Tokenizer(backend, {"bos_token": "<s>"})
    return Tokenizer.load(CheckpointFiles.read(toys.checkpoint(name)))


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [*(stream.add([identifier]) for identifier in ids), stream.finish()]


TEXTS = (
    "Hello, world! There are three shapes.",
    "naïve café Ünïcode",
    "日本語のテキスト",
    "🙂👨‍👩‍👧 family 🙂",
    "a\n\n\n\nb   c\t ",
    "  leading",
    "� is a real replacement character �� twice",
    "don't . , !",
)


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("text", TEXTS)
def test_texts(name: str, text: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = pieces(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    if "�" not in text:
        assert not any("�" in piece for piece in shown)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_words_come_as_they_are_made(name: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode("There are three shapes", add_special_tokens=False)
    stream = Detokenizer(tokenizer)
    for count in range(1, len(ids) + 1):
        stream.add([ids[count - 1]])
    shown = pieces(tokenizer, ids)
    assert all(shown[:-1]) and shown[-1] == ""


def test_a_character_of_several_ids_comes_whole() -> None:
    for name in ("llava-siglip-qwen2", "llava-clip-llama"):
        tokenizer = load(name)
        ids = tokenizer.encode("x𝄞y", add_special_tokens=False)
        assert len(ids) >= 5
        assert [piece for piece in pieces(tokenizer, ids) if piece in ("𝄞", "𝄞y")]


def test_what_is_unfinished_at_the_end_is_shown_then() -> None:
    tokenizer = load("llava-siglip-qwen2")
    ids = tokenizer.encode("a𝄞", add_special_tokens=False)[:-1]
    stream = Detokenizer(tokenizer)
    assert stream.add(ids) == ""
    assert stream.finish() == tokenizer.decode(ids) == "a�"
    assert stream.finish() == ""


def test_a_newline_written_as_a_byte_can_be_seen_before_it_is_certain() -> None:
    tokenizer = load("llava-clip-llama")
    stream = Detokenizer(tokenizer)
    shown = stream.add(tokenizer.encode("end\n", add_special_tokens=False))
    assert (shown, stream.pending()) == ("", "end\n")
    stream.add([tokenizer.token_to_id("<0xF0>")])  # type: ignore[list-item]
    assert stream.pending() == ""
    assert Detokenizer(tokenizer).pending() == ""


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_in_any_portions(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = load(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=25))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    stream = Detokenizer(tokenizer, skip_special_tokens=skip)
    shown = ""
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        shown += stream.add(ids[start:stop])
        assert tokenizer.decode(ids, skip).startswith(shown), (shown, ids)
    assert shown + stream.finish() == tokenizer.decode(ids, skip)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\xf0", b"\x9f", b"\x99", b"\x82", b"a", b"\xe2", b"\x80", b"\xc3", b"\xff"]), max_size=14
    )
)
@example([b"\xe2", b"\x80", b"a"])
@example([b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xff"])
def test_any_bytes(raw: list[bytes]) -> None:
    byte_level, fallback = load("llava-siglip-qwen2"), load("llava-clip-llama")
    letters = pre_tokenizers.ByteLevel.alphabet()
    assert len(letters) == 256
    from behold.processing.token_bytes import BYTE_OF

    letter_of = {byte: letter for letter, byte in BYTE_OF.items()}
    for tokenizer, ids in (
        (byte_level, [byte_level.token_to_id(letter_of[byte[0]]) for byte in raw]),
        (fallback, [fallback.token_to_id(f"<0x{byte[0]:02X}>") for byte in raw]),
    ):
        assert None not in ids
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("text", ["word ", "\n", "�", " "])
def test_cost_does_not_grow_with_the_answer(name: str, text: str) -> None:
    tokenizer = load(name)
    calls = []

    class Counting(Tokenizer):
        def __init__(self) -> None:
            self.__dict__.update(tokenizer.__dict__)

        def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=None):  # type: ignore[no-untyped-def]
            calls.append(len(ids))
            return super().decode(ids, skip_special_tokens, clean_up_tokenization_spaces)

    ids = tokenizer.encode(text * 400, add_special_tokens=False)
    assert "".join(pieces(Counting(), ids)) == tokenizer.decode(ids)
    if name == "llava-siglip-qwen2" or text in ("word ", " "):
        assert max(calls) < 20
    assert sum(calls) < 20 * len(ids)  # a run of byte tokens is decoded once, at its end
