"""Tokenizers of toys: typed special tokens, the pipeline of old files, and missing or damaged files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from behold.chat.literals import PRIVATE, RenderedPrompt
from behold.checkpoint.files import CheckpointFiles
from behold.errors import ChatError, CheckpointError, CheckpointNotFoundError
from behold.processing.tokenizer import Tokenizer
from tests import toys

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2")


@functools.cache
def load(name: str) -> Tokenizer:
    return Tokenizer.load(CheckpointFiles.read(toys.checkpoint(name)))


def typed(text: str, *pieces: str) -> RenderedPrompt:
    """The text, with the first occurrence of each piece, in order, marked as typed."""
    ranges, start = [], 0
    for piece in pieces:
        start = text.index(piece, start)
        ranges.append((start, start + len(piece)))
        start += len(piece)
    return RenderedPrompt(text, ranges)


def small(**settings: Any) -> tokenizers.Tokenizer:
    """A byte-level tokenizer of single bytes, with special tokens that strip spaces or want word borders."""
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("[T]", special=True, normalized=False, **settings), AddedToken("[plain]")])
    return backend


# --- typed tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_typed_tokens_are_text_and_the_others_are_not(name: str) -> None:
    tokenizer = load(name)
    image = tokenizer.token_to_id("<image>")
    text = "a <image> b <image> c"
    ids = tokenizer.encode(typed(text, "<image>"), add_special_tokens=False)
    assert ids.count(image) == 1  # type: ignore[arg-type]
    assert tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "") == text.replace(" ", "")
    plain = tokenizer.encode("<x> b", add_special_tokens=False)
    assert tokenizer.encode(typed("<x> b", "<x>"), add_special_tokens=False) == plain


@pytest.mark.parametrize("name", NAMES)
def test_only_what_touches_a_range_is_text(name: str) -> None:
    tokenizer = load(name)
    image = tokenizer.token_to_id("<image>")
    for ranges, count in (([(0, 1)], 1), ([(6, 8)], 0), ([(7, 9)], 1), ([(0, 14)], 0), ([(14, 14)], 2), ([(3, 3)], 1)):
        ids = tokenizer.encode(RenderedPrompt("<image><image>", ranges))
        assert ids.count(image) == count, ranges  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_the_beginning_token_is_added_all_the_same(name: str) -> None:
    tokenizer = load(name)
    bos = tokenizer.encode("")
    assert tokenizer.encode(typed("<image>", "<image>"))[: len(bos)] == bos


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(["<image>", "a", " ", "\n", "é", "</s>", "<|im_end|>", "🙂", "  b"]), max_size=10),
)
def test_a_range_that_touches_no_token_changes_nothing(name: str, pieces: list[str]) -> None:
    tokenizer = load(name)
    text = "x" + "".join(pieces)
    assert tokenizer.encode(RenderedPrompt(text, [(0, 1)])) == tokenizer.encode(text)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.sampled_from(["<image>", "a", " ", "\n", "</s>", "<|im_end|>"]), max_size=8))
def test_all_typed_gives_no_special_token(name: str, pieces: list[str]) -> None:
    tokenizer = load(name)
    text = "".join(pieces)
    ids = tokenizer.encode(RenderedPrompt(text, [(0, len(text))]), add_special_tokens=False)
    assert not tokenizer.special_ids.intersection(ids)


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}], ids=str)
def test_flags_of_special_tokens_are_kept(flags: dict[str, bool]) -> None:
    tokenizer = Tokenizer(small(**flags), {})
    for text in ("a [T] b", "a[T]b", " [T] ", "[T][T] [T]", "x [plain] [T]", "é [T]é"):
        assert tokenizer.encode(RenderedPrompt("!" + text, [(0, 1)])) == tokenizer.encode("!" + text), text
    ids = tokenizer.encode(typed("a [T] b [T]", "[T]"))
    assert ids.count(tokenizer.token_to_id("[T]")) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
def test_pipelines_that_treat_the_first_piece_differently(scheme: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(toys.checkpoint("llava-clip-llama") / "tokenizer.json"))
    if scheme == "prepend":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer = Tokenizer(backend, {})
    for text in ("a <image>b", "<image> b<image>", "a</s> b </s>c"):
        assert tokenizer.encode(RenderedPrompt("!" + text, [(0, 1)])) == tokenizer.encode("!" + text)


def test_nobody_can_type_an_anchor() -> None:
    tokenizer = load("llava-siglip-qwen2")
    tokenizer.encode(typed("<image>", "<image>"))
    for code in (*PRIVATE[-20:], *PRIVATE[:20]):
        text = f"{chr(code)}<image>"
        ids = tokenizer.encode(typed(text, "<image>"), add_special_tokens=False)
        assert not tokenizer.special_ids.intersection(ids)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    with pytest.raises(ChatError, match="private-use"):
        tokenizer.encode(typed("".join(map(chr, PRIVATE)) + "<image>", "<image>"))


def test_half_a_surrogate_pair_is_replaced() -> None:
    tokenizer = load("llava-siglip-qwen2")
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode(typed("\ud800<image>", "<image>")) == tokenizer.encode(typed("\ufffd<image>", "<image>"))


# --- special tokens and the vocabulary ---------------------------------------------------------------------------


def test_roles_and_ids() -> None:
    tokenizer = load("llava-siglip-qwen2")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert tokenizer.bos_token_id is None and tokenizer.unk_token_id is None
    assert tokenizer.eos_token_id == tokenizer.token_to_id("<|im_end|>")
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} <= tokenizer.special_ids
    assert list(tokenizer.special_tokens.values()) == sorted(tokenizer.special_ids)
    assert len(tokenizer) == len(tokenizer.get_vocab()) > tokenizer.vocab_size


def test_tokens_and_ids() -> None:
    tokenizer = load("llava-clip-llama")
    ids = tokenizer.encode("Hi</s>", add_special_tokens=False)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[-1] == "</s>" and tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == tokens[:-1]
    assert tokenizer.convert_ids_to_tokens(2) == "</s>"
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id == 0
    assert load("llava-siglip-qwen2").convert_tokens_to_ids("no such token") is None


def test_decoding_takes_any_sequence() -> None:
    tokenizer = load("llava-siglip-qwen2")
    ids = tokenizer.encode("Which colour?")
    for form in (ids, tuple(ids), np.array(ids), torch.tensor(ids), iter(ids)):
        assert tokenizer.decode(form) == "Which colour?"
    assert tokenizer.decode(ids[0]) == tokenizer.decode([ids[0]])
    assert tokenizer.decode([*ids, 10**6]) == "Which colour?"
    assert tokenizer.batch_decode([ids, ids[:1]]) == ["Which colour?", tokenizer.decode(ids[:1])]


def test_cleaning_up_spaces_is_for_word_pieces_only() -> None:
    words = {word: n for n, word in enumerate(["[UNK]", "it", "'", "s", "n", "t", ".", "a"])}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend, {}, clean_up_tokenization_spaces=True)
    ids = tokenizer.encode("it . a")
    assert tokenizer.decode(ids) == "it. a"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "it . a"
    bpe = load("llava-siglip-qwen2")
    assert bpe.decode(bpe.encode("it . a"), clean_up_tokenization_spaces=True) == "it . a"


def test_padding_and_truncation_in_the_file_are_not_applied() -> None:
    backend = small()
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    assert len(Tokenizer(backend, {}).encode("abcdef")) == 6


# --- files -------------------------------------------------------------------------------------------------------


def edited(tmp_path: Path, name: str = "llava-siglip-qwen2", **changes: Any) -> CheckpointFiles:
    """A copy of a toy with keys of tokenizer_config.json changed (None removes one)."""
    folder = toys.copy(toys.checkpoint(name), tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return CheckpointFiles.read(folder)


def test_tokens_that_only_tokenizer_config_names_are_added(tmp_path: Path) -> None:
    size = len(load("llava-siglip-qwen2"))
    added = {str(size): {"content": "<new>", "special": True, "lstrip": False}, str(size + 1): {"content": "<word>"}}
    files = edited(
        tmp_path,
        added_tokens_decoder=added,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        additional_special_tokens=["<more>", {"content": "<most>"}],
    )
    tokenizer = Tokenizer.load(files)
    assert tokenizer.token_to_id("<new>") == size
    assert tokenizer.token_to_id("<word>") == size + 1
    assert {"<new>", "<video>", "<more>", "<most>"} <= set(tokenizer.special_tokens)
    assert "<word>" not in tokenizer.special_tokens
    assert tokenizer.named_tokens["video_token"] == "<video>"


def test_settings_of_tokenizer_config(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(edited(tmp_path, padding_side="right", model_max_length=77))
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 77)
    assert load("llava-clip-llama").model_max_length is None


def old_pipeline(folder: Path) -> None:
    """Rewrite tokenizer.json as older versions saved it: a normaliser that puts a space before every piece."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["pre_tokenizer"] = None
    data["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("legacy", [None, False, True])
@pytest.mark.parametrize("name", ["idefics2", "llava-clip-llama"])
def test_old_llama_files_read_as_transformers_reads_them(tmp_path: Path, name: str, legacy: bool | None) -> None:
    from transformers import AutoTokenizer

    files = edited(tmp_path, name, legacy=legacy, tokenizer_class="LlamaTokenizer", add_prefix_space=None)
    old_pipeline(files.folder)
    ours, theirs = Tokenizer.load(files), AutoTokenizer.from_pretrained(files.folder)
    for text in ("Hello", " a  b", "<image>In this image</s> we\nsee", "日本<image>語", "</s></s> x"):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    files = edited(tmp_path)
    (files.folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="Download it"):
        Tokenizer.load(files)
    (files.folder / "tokenizer.model").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"tokenizer\.model alone cannot be read; convert once"):
        Tokenizer.load(files)


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "BPE", "vocab": {}}}', "\0"])
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    files = edited(tmp_path)
    (files.folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.load(files)


def test_a_post_processor_decides_about_the_beginning_token(tmp_path: Path) -> None:
    backend = small()
    backend.post_processor = processors.TemplateProcessing("[T] $A", None, [("[T]", 256)])
    tokenizer = Tokenizer(backend, {"bos_token": "[T]"})
    assert tokenizer.encode("a")[0] == 256 and tokenizer.encode("a", add_special_tokens=False)[0] != 256
