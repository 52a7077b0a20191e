"""The invariants of every family on this device.

In float32 the ids must be equal. In bfloat16 two orders of the same sums may choose differently between close
candidates, so there the engine's own choices are read back in one uncached pass and their log probabilities compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from behold.nn.attention import AttentionPlan, PlainCache
from behold.types import Completion, Prompt, SamplingParams
from tests import invariants, toys

BF16_TOLERANCE = 0.1  # of a natural log probability; logits of toys are a few units wide, bfloat16 has 8 bits


@functools.cache
def subject(name: str, device: torch.device, dtype: torch.dtype) -> invariants.Subject:
    return invariants.load(toys.checkpoint(name), device=str(device), dtype=dtype)


@pytest.mark.parametrize("check", invariants.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", toys.TOYS)
def test_invariant_in_float32(name: str, check: Callable[[invariants.Subject], None], device: torch.device) -> None:
    check(subject(name, device, torch.float32))


@torch.inference_mode()
def read_back(under_test: invariants.Subject, prompt: Prompt, ids: tuple[int, ...]) -> list[float]:
    """Log probabilities of an answer's ids, from one pass without cache, batch or engine."""
    model, rows, at = under_test.model, None, None
    if prompt.spans:
        pictures = [model.encode_images([image])[0] for image in prompt.images]
        rows = torch.cat([pictures[span.image] for span in prompt.spans])
        at = torch.cat([torch.arange(span.start, span.stop) for span in prompt.spans]).to(model.device)
    everything = torch.tensor([*prompt.ids, *ids[:-1]], device=model.device)
    plan = AttentionPlan((len(everything),), (0,), (0,))
    positions = model.positions(len(everything)).to(model.device)
    hidden = model.hidden(model.embed(everything, rows, at), positions, PlainCache(plan))
    scores = model.logits(hidden[len(prompt.ids) - 1 :]).float().log_softmax(-1)
    return scores[torch.arange(len(ids)), torch.tensor(ids)].tolist()


WAYS: dict[str, dict[str, int]] = {"batched": {}, "two rows": {"max_rows": 2}, "chunked": {"max_step_tokens": 17}}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", toys.TOYS)
def test_choices_read_back_the_same(
    name: str, options: dict[str, int], device: torch.device, dtype: torch.dtype
) -> None:
    under_test = subject(name, device, dtype)
    params = SamplingParams(max_new_tokens=invariants.NEW_TOKENS, logprobs=0)
    done: list[Completion] = under_test.engine(**options).complete([(prompt, params) for prompt in under_test.prompts])
    tolerance = 1e-4 if dtype is torch.float32 else BF16_TOLERANCE
    for prompt, completion in zip(under_test.prompts, done, strict=True):
        found = [token.logprob for token in completion.logprobs]
        assert found == pytest.approx(read_back(under_test, prompt, completion.ids), abs=tolerance)
