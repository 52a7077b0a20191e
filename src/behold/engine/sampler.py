"""From logits to the next id: a chain of small pure functions, and a short cut for plain greedy choice.

The order of the chain and the meaning of each filter are those of transformers (generation/logits_process.py):
repetition, presence and frequency penalties, n-grams, bad words, minimum length; then, for sampling only, temperature,
top-k, top-p, min-p. What a guide forbids goes after the penalties and before the temperature, so log probabilities are
those among the ids that could be chosen. A draw depends on the request's seed and the number of tokens drawn before,
on nothing else, so it is the same whatever else runs, and the same again if a step has to be repeated.

Scores are (V,) float32, one row at a time; the ids of a sequence (T,) int64 are prompt and answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.engine.params import validate
from behold.engine.sequence import Sequence
from behold.types import SamplingParams, TokenLogprob

__all__ = ["Sampled", "Sampler", "processed", "validate"]

TOP_P_FIRST_LOOK = 1024
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Sampled:
    """The id chosen for one sequence, and its log probability where asked for.

    NO_TOKEN where guide and forbidden ids leave none: the guide refuses it, which ends this request and no other.
    """

    id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Chooses the next ids of many sequences. Keeps a sequence's ids as a tensor only where a penalty needs them."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device=device)
        self._device = device
        self._histories: dict[int, Tensor] = {}

    def sample(self, logits: Tensor, sequences: Many[Sequence]) -> list[Sampled]:
        """logits: (R, V), a row for each sequence."""
        plain = [i for i, sequence in enumerate(sequences) if is_plain(sequence)]
        best = likeliest(logits if len(plain) == len(sequences) else logits[plain]) if plain else []
        chosen = {i: token for i, token in zip(plain, best, strict=True) if may_come(token, sequences[i])}
        return [
            Sampled(chosen[i]) if i in chosen else self._choose(logits[i].float(), sequence)
            for i, sequence in enumerate(sequences)
        ]

    def forget(self, sequence: Sequence) -> None:
        self._histories.pop(sequence.key, None)

    def _choose(self, logits: Tensor, sequence: Sequence) -> Sampled:
        params = sequence.params
        history = self._history(sequence) if reads_history(params) else torch.empty(0, dtype=torch.long)
        lengths = {"n_prompt": sequence.n_prompt, "n_new": sequence.n_new}
        scores = processed(logits, history, params, **lengths, eos=sequence.eos)
        if sequence.guide is not None:
            scores = kept(scores, torch.from_numpy(sequence.guide.allowed()).to(scores.device))
            if scores.max() == -torch.inf:
                return Sampled(NO_TOKEN)
        if params.greedy:
            token = int(scores.argmax())
        else:
            self._generator.manual_seed(mixed(sequence.seed, sequence.n_new))
            token = draw(scores, params, self._generator)
        return Sampled(token, None if params.logprobs is None else logprob_of(scores, token, params.logprobs))

    def _history(self, sequence: Sequence) -> Tensor:
        """(T,) ids so far, in a buffer that grows by doubling: a step writes only what is new."""
        length = len(sequence.ids)
        buffer = self._histories.get(sequence.key)
        if buffer is None or buffer.shape[0] < length:
            buffer = torch.zeros(2 * length, dtype=torch.long, device=self._device)
            buffer[:length] = torch.tensor(sequence.ids, device=self._device)
            self._histories[sequence.key] = buffer
        else:
            buffer[length - 1] = sequence.ids[-1]
        return buffer[:length]


def is_plain(sequence: Sequence) -> bool:
    """Whether the id of the largest logit is the answer, if it may come."""
    params = sequence.params
    return params.greedy and params.logprobs is None and sequence.guide is None and not reads_history(params)


def may_come(token: int, sequence: Sequence) -> bool:
    """Whether it does not end an answer that is to be longer."""
    return sequence.n_new >= sequence.params.min_new_tokens or token not in sequence.eos


def reads_history(params: SamplingParams) -> bool:
    """Whether the choice depends on the ids so far."""
    return bool(
        params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.no_repeat_ngram_size
        or params.bad_words_ids
    )


# --- the chain: scores in, new scores out -------------------------------------------------------------------------


def processed(
    scores: Tensor, ids: Tensor, params: SamplingParams, *, n_prompt: int, n_new: int, eos: frozenset[int]
) -> Tensor:
    """Everything that applies to greedy choice, sampling and beams alike."""
    if params.repetition_penalty != 1.0:
        scores = repetition(scores, ids, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        scores = frequency(scores, ids[n_prompt:], params.presence_penalty, params.frequency_penalty)
    if params.no_repeat_ngram_size:
        scores = no_repeat_ngram(scores, ids, params.no_repeat_ngram_size)
    if params.bad_words_ids:
        scores = bad_words(scores, ids, params.bad_words_ids, eos)
    if n_new < params.min_new_tokens and eos:
        scores = banned(scores, sorted(eos))
    return scores


def repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """CTRL (https://arxiv.org/abs/1909.05858): ids that occurred lose: divided where positive, else multiplied."""
    ids = ids[ids < scores.shape[0]]  # a placeholder of pictures may lie beyond what the head can say
    old = scores[ids]
    return scores.index_put((ids,), torch.where(old < 0, old * penalty, old / penalty))


def frequency(scores: Tensor, answer_ids: Tensor, presence: float, each: float) -> Tensor:
    """As in the OpenAI API: minus `presence` once and minus `each` for every occurrence in the answer."""
    counts = torch.bincount(answer_ids, minlength=scores.shape[0])[: scores.shape[0]]
    return scores - presence * (counts > 0) - each * counts


def no_repeat_ngram(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """No run of `size` ids occurs twice, the prompt included."""
    if ids.shape[0] < size:
        return scores
    windows = ids.unfold(0, size, 1)  # (T - size + 1, size)
    ending = ids[ids.shape[0] - size + 1 :]
    return banned(scores, windows[(windows[:, :-1] == ending).all(-1), -1].tolist())


def bad_words(scores: Tensor, ids: Tensor, words: Many[tuple[int, ...]], eos: frozenset[int]) -> Tensor:
    """No such run of ids is completed. A single id that ends the answer is never forbidden."""
    longest = max(len(word) for word in words)
    ending = ids[-(longest - 1) :].tolist() if longest > 1 else []
    forbidden = [
        word[-1]
        for word in words
        if (len(word) == 1 and word[0] not in eos)
        or (1 < len(word) <= len(ending) + 1 and tuple(ending[len(ending) - len(word) + 1 :]) == tuple(word[:-1]))
    ]
    return banned(scores, forbidden)


def banned(scores: Tensor, ids: Many[int]) -> Tensor:
    """These ids cannot be chosen."""
    inside = [i for i in ids if i < scores.shape[0]]
    if not inside:
        return scores
    return scores.index_fill(0, torch.tensor(inside, device=scores.device), -torch.inf)


def kept(scores: Tensor, allowed: Tensor) -> Tensor:
    """Only ids that are allowed (V,) can be chosen."""
    return scores.masked_fill(~allowed, -torch.inf)


# --- sampling ------------------------------------------------------------------------------------------------------


def likeliest(logits: Tensor) -> list[int]:
    """(R, V) to the first largest of each row."""
    if logits.is_cpu and logits.dtype is torch.float32:
        found: list[int] = logits.numpy().argmax(-1).tolist()  # torch takes 15 times as long
        return found
    return logits.argmax(-1).tolist()


def draw(scores: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """One id from the filtered distribution of scores (V,)."""
    assert params.temperature
    cooled = scores / params.temperature
    if not cooled.max() < torch.inf:  # so cold that numbers end: only the likeliest is left
        return int(scores.argmax())
    values, ids = filtered(cooled, params)
    index = int(torch.multinomial(values.softmax(-1), 1, generator=generator))
    return index if ids is None else int(ids[index])


def filtered(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """What top-k, top-p and min-p leave: (values (K,), ids (K,)); ids None means all of the vocabulary, in order."""
    values: Tensor = scores
    ids: Tensor | None = None
    if params.top_k:
        values, ids = top_k(values, params.top_k)
    if params.top_p is not None and params.top_p < 1.0:
        keep = top_p(values, params.top_p)
        values, ids = values[keep], keep if ids is None else ids[keep]
    if params.min_p:
        probabilities = values.softmax(-1)
        keep = (probabilities >= params.min_p * probabilities.max()).nonzero().squeeze(-1)
        values, ids = values[keep], keep if ids is None else ids[keep]
    return values, ids


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values and all that equal the last of them; (values, ids), the highest first but for ties."""
    k = min(k, values.shape[0])
    best, ids = values.topk(k)
    if int((values >= best[-1]).sum()) > k:
        ids = (values >= best[-1]).nonzero().squeeze(-1)
        best = values[ids]
    return best, ids


def top_p(values: Tensor, p: float) -> Tensor:
    """Places of the fewest highest values whose probabilities reach p, the highest first; at least one.

    Sorting a whole vocabulary takes longer than the rest of a step's sampling, so the head of it is tried first.
    """
    probabilities = values.softmax(-1)
    for k in (min(TOP_P_FIRST_LOOK, values.shape[0]), values.shape[0]):
        head, ids = probabilities.topk(k)
        before = head.cumsum(-1) - head
        kept = int((before < p).sum())
        if kept < k or k == values.shape[0]:
            break
    return ids[: max(1, kept)]


def logprob_of(scores: Tensor, token: int, n_top: int) -> TokenLogprob:
    """The chosen id's log probability under scores (V,), and the n_top most likely of those that are possible."""
    logprobs = scores.log_softmax(-1)
    if not n_top:
        return TokenLogprob(token, float(logprobs[token]))
    values, ids = logprobs.topk(min(n_top, logprobs.shape[0]))
    possible = int((values > -torch.inf).sum())
    top = zip(ids[:possible].tolist(), values[:possible].tolist(), strict=True)
    return TokenLogprob(token, float(logprobs[token]), tuple(top))


def mixed(seed: int, draw_number: int) -> int:
    """A generator seed for one draw: splitmix64 of both, so that neighbouring seeds and draws share nothing."""
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + (draw_number + 1) * 0xD1B54A32D192ED03) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1
