"""Single ids as bytes: what they join to is the text, also where one character takes several ids."""

from __future__ import annotations

import pytest

from behold.checkpoint.files import CheckpointFiles
from behold.processing.token_bytes import TokenBytes
from behold.processing.tokenizer import Tokenizer
from tests import toys

TEXTS = ("What do we see?", "naïve café, 日本語 🙂", "two  spaces\n\tand a tab", "Ünïcode ∑ 𝄞")


@pytest.fixture(scope="module", params=["llava-siglip-qwen2", "llava-clip-llama", "idefics2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(CheckpointFiles.read(toys.checkpoint(request.param)))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_ids_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(token_bytes(identifier) for identifier in ids).decode()
    assert joined.removeprefix(" ") == text  # a metaspace tokenizer writes a space before the first word


def test_a_character_of_several_ids_is_given_in_pieces(tokenizer: Tokenizer) -> None:
    token_bytes = TokenBytes(tokenizer)
    pieces = [token_bytes(identifier) for identifier in tokenizer.encode("𝄞", add_special_tokens=False)]
    assert b"".join(pieces).strip() == "𝄞".encode()
    assert any(piece and b"\x80" <= piece[:1] < b"\xc0" for piece in pieces)  # the middle of a character


def test_special_tokens_are_their_names_and_ids_beyond_the_vocabulary_nothing(tokenizer: Tokenizer) -> None:
    token_bytes = TokenBytes(tokenizer)
    image = tokenizer.token_to_id("<image>")
    assert image is not None
    assert token_bytes(image) == b"<image>"
    assert token_bytes(len(tokenizer) + 3) == b""
