"""A tiny vision-language model with random weights, made here, so that the engine is tested without any checkpoint."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from behold.models.base import VisionLanguageModel
from behold.nn.attention import AttentionPlan, CacheView, PlainCache
from behold.types import ImageInput, ImageSpan, Prompt

VOCABULARY = 61
PICTURE = 60


class FakeDecoder(nn.Module):
    """Attention with grouped heads, additive positions and an MLP; `window` on the odd layers."""

    def __init__(
        self, *, layers: int = 2, width: int = 32, heads: int = 4, kv_heads: int = 2, window: int | None = None
    ):
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.window = heads, kv_heads, width // heads, window
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.q = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.kv = nn.ModuleList(nn.Linear(width, 2 * kv_heads * self.dim) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("waves", torch.randn(width) * 3)

    def forward(self, embeddings: Tensor, positions: Tensor, cache: CacheView, wanted: Tensor | None = None) -> Tensor:
        x = embeddings + torch.sin(positions[:, None] * self.waves)
        for layer, (q, kv, up) in enumerate(zip(self.q, self.kv, self.up, strict=True)):
            keys, values = kv(x).view(len(x), 2, self.kv_heads, self.dim).unbind(1)
            window = self.window if layer % 2 else None
            seen = cache.attend(layer, q(x).view(len(x), self.heads, self.dim), keys, values, window=window)
            x = x + 2 * seen.reshape(len(x), -1)
            x = x + torch.tanh(up(x))
        x = self.norm(x)
        return x if wanted is None else x[wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        return 4 * self.head(hidden)

    def best(self, hidden: Tensor) -> None:
        """All logits are as soon computed."""


class FakeModel(VisionLanguageModel):
    """Counts the pictures it encodes; `fail_next` makes the next pass raise."""

    def __init__(self, *, seed: int = 0, window: int | None = None, context: int = 256, **sizes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._decoder = FakeDecoder(window=window, **sizes)
        text = SimpleNamespace(
            num_hidden_layers=len(self._decoder.q),
            num_key_value_heads=self._decoder.kv_heads,
            head_dim=self._decoder.dim,
            hidden_size=self._decoder.norm.weight.shape[0],
            vocab_size=VOCABULARY,
            max_position_embeddings=context,
        )
        self.config: Any = SimpleNamespace(text=text)
        self.encoded: list[list[str]] = []
        self.passes: list[int] = []
        self.fail_next: BaseException | None = None
        self.eval().requires_grad_(requires_grad=False)

    @property
    def decoder(self) -> Any:
        return self._decoder

    def encoding(self, images: Sequence[ImageInput]) -> Generator[None, None, list[Tensor]]:
        yield
        self.encoded.append([image.digest for image in images])
        return [torch.from_numpy(image.pixels) for image in images]

    def hidden(self, embeddings: Tensor, positions: Tensor, cache: CacheView, wanted: Tensor | None = None) -> Tensor:
        self.passes.append(len(embeddings))
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        return super().hidden(embeddings, positions, cache, wanted)


class Parrot(FakeModel):
    """Says 5, 6, 7 in turn, whatever it was asked: what comes next depends on the last token alone."""

    def hidden(self, embeddings: Tensor, positions: Tensor, cache: CacheView, wanted: Tensor | None = None) -> Tensor:
        del positions, cache
        return embeddings if wanted is None else embeddings[wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        last = torch.cdist(hidden, self.decoder.embed_tokens.weight).argmin(-1)
        turn = torch.tensor([{5: 6, 6: 7}.get(token, 5) for token in last.tolist()])
        return torch.nn.functional.one_hot(turn, VOCABULARY).float()


def picture(seed: int, n_tokens: int = 5) -> ImageInput:
    """`pixels` are the embeddings themselves."""
    pixels = np.random.default_rng(seed).normal(size=(n_tokens, 32)).astype(np.float32)
    return ImageInput(pixels, n_tokens, f"picture-{seed}-{n_tokens}")


def prompt(seed: int, length: int = 12, pictures: Sequence[ImageInput] = (), *, bidirectional: bool = False) -> Prompt:
    """Random text with pictures at even distances."""
    rng = np.random.default_rng(1000 + seed)
    ids: list[int] = []
    spans = []
    for index, image in enumerate(pictures):
        ids += rng.integers(2, PICTURE, 3).tolist()
        spans.append(ImageSpan(len(ids), image.n_tokens, index, bidirectional))
        ids += [PICTURE] * image.n_tokens
    ids += rng.integers(2, PICTURE, max(1, length - len(ids))).tolist()
    return Prompt(tuple(ids), tuple(pictures), tuple(spans))


@torch.inference_mode()
def next_logits(model: FakeModel, asked: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """(V,) what follows prompt and answer, computed in one pass without the engine."""
    ids = [*asked.ids, *answer]
    spans = tuple((span.start, span.stop) for span in asked.spans if span.bidirectional)
    rows = [torch.from_numpy(asked.images[span.image].pixels) for span in asked.spans]
    at = [torch.arange(span.start, span.stop) for span in asked.spans]
    embeddings = model.embed(torch.tensor(ids), torch.cat(rows) if rows else None, torch.cat(at) if at else None)
    plan = AttentionPlan((len(ids),), (0,), (0,), (spans,))
    hidden = model.decoder(embeddings, model.positions(len(ids)), PlainCache(plan))
    return model.logits(hidden[-1:])[0]


def greedy(model: FakeModel, asked: Prompt, n_new: int, eos: frozenset[int] = frozenset()) -> tuple[int, ...]:
    """The answer by definition: every token from a pass over all before it."""
    answer: list[int] = []
    while len(answer) < n_new and not (answer and answer[-1] in eos):
        answer.append(int(next_logits(model, asked, answer).argmax()))
    return tuple(answer)


class FakeTokenizer:
    """Every id is one letter, but for PICTURE which is silent; stands in where only text matters."""

    def letter(self, token: int) -> str:
        return "" if token == PICTURE else chr(ord("A") + token)

    def text(self, ids: Sequence[int]) -> str:
        return "".join(map(self.letter, ids))


class FakeDetokenizer:
    """Shows a letter one token late, as a real one holds back half characters."""

    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer, self._held = tokenizer, ""

    def add(self, ids: Sequence[int]) -> str:
        shown, self._held = self._held, ""
        for token in ids:
            shown, self._held = shown + self._held, self._tokenizer.letter(token)
        return shown

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held
