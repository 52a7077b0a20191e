"""`TextStreamer` and `TextIteratorStreamer`: text as it is generated, printed or handed to another thread.

They take what `generate` puts into them: first the prompt's ids, then each new id, then `end()`. Beyond what their
namesakes in transformers do, an error in the generating thread reaches whoever iterates, and `close()` stops the work.
"""

from __future__ import annotations

import unicodedata
from queue import Queue
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from behold.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Streamer(Protocol):
    """Any object that `generate(streamer=)` accepts."""

    def put(self, value: Tensor) -> object:
        """Take ids: once the prompt's (1, T), then new ones (1,)."""

    def end(self) -> object:
        """Generation is over."""


class Decodes(Protocol):
    """What a streamer needs of a tokenizer or processor."""

    def decode(self, token_ids: Sequence[int], **options: object) -> str:
        """The text of these ids."""


class TextStreamer:
    """Prints the answer to stdout, word by word, as it is generated.

    Args:
        tokenizer: a tokenizer or processor; its `decode` is called.
        skip_prompt: leave out the prompt, which `generate` puts in first.
        **decode_kwargs: given to `decode`, for instance `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Decodes, skip_prompt: bool = False, **decode_kwargs: object) -> None:
        if not callable(getattr(tokenizer, "decode", None)):
            raise OptionError(
                f"tokenizer={type(tokenizer).__name__!r} has no decode(); give the processor or processor.tokenizer."
            )
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._ids: list[int] = []
        self._shown = 0

    def put(self, value: Tensor) -> None:
        """Take ids of one sequence, (T,) or (1, T), and show the words that are complete.

        Raises:
            OptionError: several sequences at once; a stream shows one.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise OptionError(f"A streamer shows one sequence, the batch has {value.shape[0]}; generate one by one.")
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self._ids.extend(value.flatten().tolist())
        text = self._decode()
        stop = max(_complete(text), self._shown)
        piece, self._shown = text[self._shown : stop], stop
        if text.endswith("\n") and self.tokenizer.decode(self._ids[-1:], **self.decode_kwargs).endswith("\n"):
            # A new line starts afresh so that decoding stays cheap. Its id stays as context: tokenizers drop the
            # leading space of a text's first token, which would eat the next line's indentation.
            self._ids = self._ids[-1:]
            self._shown = len(self._decode())
        self.on_finalized_text(piece)

    def end(self) -> None:
        """Show what was held back; the streamer is then ready for another answer."""
        piece = self._decode()[self._shown :] if self._ids else ""
        self._reset()
        self.on_finalized_text(piece, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print `text`; override this to send it elsewhere."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _decode(self) -> str:
        return self.tokenizer.decode(self._ids, **self.decode_kwargs)

    def _reset(self) -> None:
        self._ids, self._shown, self.next_tokens_are_prompt = [], 0, True


class TextIteratorStreamer(TextStreamer):
    """An iterator over the text of an answer that another thread generates.

    Args:
        tokenizer, skip_prompt, **decode_kwargs: as in `TextStreamer`.
        timeout: seconds that the iterator waits for the next piece before it raises `queue.Empty`; None waits on.

    An error in the generating thread is raised in the iterating one. `close()`, or leaving a `with` block, stops the
    generation within one step.
    """

    def __init__(
        self, tokenizer: Decodes, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: object
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.cancelled = False
        self._exhausted = False
        self._queue: Queue[str | BaseException | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand `text` to the iterating thread."""
        self._queue.put(text)
        if stream_end:
            self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Called by `generate` in place of `end` when it fails: the iterating thread gets `error`."""
        self._reset()
        self._queue.put(error)

    def close(self) -> None:
        """Stop the generation that feeds this streamer, and the iteration."""
        self.cancelled = True
        self._queue.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        self._exhausted = False
        return self

    def __next__(self) -> str:
        while not self._exhausted and not self.cancelled:
            # Empty pieces come while a word is being put together; they only restart the clock of the timeout.
            item = self._queue.get(timeout=self.timeout)
            if isinstance(item, BaseException):
                self._exhausted = True
                raise item
            if item is None:
                self._exhausted = True
            elif item:
                return item
        raise StopIteration

    def __enter__(self) -> TextIteratorStreamer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _complete(text: str) -> int:
    """How much of `text` cannot change any more: all of it after a line's end or a letter of a script that puts no
    spaces between words, else up to the last space. Half a character is never complete."""
    if text.endswith("\n") or (text and _stands_alone(text[-1])):
        return len(text)
    return text.rfind(" ") + 1


def _stands_alone(letter: str) -> bool:
    return unicodedata.category(letter) == "Lo" and unicodedata.east_asian_width(letter) in ("W", "F")
