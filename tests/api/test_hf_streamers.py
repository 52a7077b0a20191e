"""Streamers alone: words, lines, scripts without spaces, half characters, errors from another thread, closing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence

import pytest
import torch

from behold import AutoProcessor
from behold.api.hf.streamers import TextIteratorStreamer, TextStreamer
from behold.errors import OptionError
from tests import toys


class Bytes:
    """A tokenizer of UTF-8 bytes: ids below 256 are bytes, 256 is a special token."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        data = b"".join(bytes([i]) if i < 256 else b"" if skip_special_tokens else b"<end>" for i in token_ids)
        return data.decode("utf-8", errors="replace")


def ids(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()))


def feed(streamer: TextStreamer, prompt: str, answer: Iterable[int]) -> None:
    streamer.put(ids(prompt)[None])
    for token in answer:
        streamer.put(torch.tensor([token]))
    streamer.end()


def pieces(answer: str, *, skip_prompt: bool = True) -> list[str]:
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=skip_prompt)
    feed(streamer, "Hi ", answer.encode())
    return list(streamer)


def test_words_come_whole() -> None:
    assert pieces("a red square") == ["a ", "red ", "square"]


def test_a_line_end_lets_everything_out() -> None:
    assert pieces("one\n  two") == ["one\n", " ", " ", "two"]


def test_scripts_without_spaces_come_letter_by_letter() -> None:
    assert pieces("日本語") == ["日", "本", "語"]


@pytest.mark.parametrize("text", ["naïve café 🙂🙂 ok", "日本 🙂\nmañana", "  a  b ", "", "🙂"])
def test_the_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    found = pieces(text)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "llava-clip-llama", "idefics2"])
@pytest.mark.parametrize(
    "text",
    [
        "A red square.\n  - indented\n\n\tand 日本語 and 🙂\n🙂 end",
        " leading",
        "a\n b",
        "x<image>\n <image> y",
        "naïve\n",
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_real_tokenizers_token_by_token(name: str, text: str, skip: bool) -> None:
    tokenizer = AutoProcessor.from_pretrained(toys.checkpoint(name)).tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=skip)
    tokens = tokenizer.encode(text)
    streamer.put(torch.tensor([[1]]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    found = list(streamer)
    assert "".join(found) == tokenizer.decode(tokens, skip_special_tokens=skip)
    assert not any("\ufffd" in piece for piece in found)


def test_the_prompt_is_shown_unless_skipped() -> None:
    assert "".join(pieces("a", skip_prompt=False)) == "Hi a"
    assert "".join(pieces("a")) == "a"


def test_decode_kwargs_reach_the_tokenizer() -> None:
    for skip, expected in ((True, "a"), (False, "a<end>")):
        streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, skip_special_tokens=skip)
        feed(streamer, "Hi", [97, 256])
        assert "".join(streamer) == expected


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    feed(TextStreamer(Bytes(), skip_prompt=True), "Hi", b"a red square")
    assert capsys.readouterr().out == "a red square\n"


def test_on_finalized_text_can_be_overridden() -> None:
    class Collect(TextStreamer):
        def __init__(self) -> None:
            super().__init__(Bytes(), skip_prompt=True)
            self.seen: list[tuple[str, bool]] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.seen.append((text, stream_end))

    streamer = Collect()
    feed(streamer, "Hi", b"a b")
    assert "".join(text for text, _ in streamer.seen) == "a b"
    assert [end for _, end in streamer.seen] == [False, False, False, True]


def test_a_streamer_serves_one_answer_after_another() -> None:
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True)
    for answer in ("first answer", "second"):
        feed(streamer, "Hi", answer.encode())
        assert "".join(streamer) == answer


def test_an_exhausted_iterator_stays_so() -> None:
    streamer = TextIteratorStreamer(Bytes())
    feed(streamer, "Hi", b"a")
    iterator = iter(streamer)
    assert list(iterator) == ["Hia"]
    with pytest.raises(StopIteration):
        next(iterator)


def test_several_sequences_are_refused() -> None:
    with pytest.raises(OptionError, match="one sequence, the batch has 2"):
        TextStreamer(Bytes()).put(torch.zeros(2, 3, dtype=torch.long))


def test_no_decode_is_refused() -> None:
    with pytest.raises(OptionError, match="has no decode"):
        TextStreamer(object())  # type: ignore[arg-type]


def test_the_timeout_ends_the_wait() -> None:
    streamer = TextIteratorStreamer(Bytes(), timeout=0.01)
    with pytest.raises(queue.Empty):
        next(streamer)


def test_an_error_is_raised_where_the_text_is_read() -> None:
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=10)

    def work() -> None:
        streamer.put(ids("Hi")[None])
        streamer.put(ids("one two"))
        streamer.fail(RuntimeError("out of ink"))

    thread = threading.Thread(target=work)
    thread.start()
    assert next(streamer) == "one "
    with pytest.raises(RuntimeError, match="out of ink"):
        next(streamer)
    thread.join()
    feed(streamer, "Hi", b"again")
    assert list(streamer) == ["again"], "what the failed answer left behind is forgotten"


def test_closing_ends_the_iteration_and_tells_the_generator() -> None:
    with TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=10) as streamer:
        streamer.put(ids("Hi")[None])
        streamer.put(ids("one two three "))
        assert next(streamer) == "one two three "
        assert not streamer.cancelled
    assert streamer.cancelled
    assert list(streamer) == []
