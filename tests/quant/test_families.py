"""Every family in int8 and int4: which layers are rounded, how far answers move, and answers alone and in company."""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch

from behold.models.base import VisionLanguageModel
from behold.quant.apply import quantize_
from behold.quant.schemes import FULL
from behold.types import Prompt
from tests import invariants, toys
from tests.twins import logits, twin

schemes = pytest.mark.parametrize("scheme", ["int8", "int4"])
families = pytest.mark.parametrize("name", toys.TOYS)

subject = functools.cache(lambda name: invariants.load(toys.checkpoint(name)))

# --- which layers ------------------------------------------------------------------------------------------------

_TOWER = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
_BLOCK = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
_BLOCK += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
_IDEFICS2 = [f"connector.modality_projection.{part}_proj" for part in ("gate", "up", "down")]
_IDEFICS2 += [f"connector.perceiver_resampler.layers.*.{part}" for part in _BLOCK]
# by family: the tower, the connector's layers, the decoder
PARTS = {
    "llava": ("vision_tower", ["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"], "language_model"),
    "idefics2": ("vision_model", _IDEFICS2, "text_model"),
}
STAYS = re.compile(r"norm|layrnorm|patch_embedding|position_embedding|class_embedding|latents")


def expected_layers(name: str, decoder: str) -> dict[str, str]:
    """By the names of a toy's layers, "*" for numbers: how each is stored where the decoder's are `decoder`."""
    tower, connector, text = PARTS[toys.TOYS[name].family]
    eight = [f"{tower}.encoder.layers.*.{part}" for part in _TOWER] + connector + [f"{text}.embed_tokens"]
    eight += [] if toys.TOYS[name].tied else [f"{text}.lm_head"]
    return dict.fromkeys(eight, "int8") | {f"{text}.layers.*.{part}": decoder for part in _BLOCK}


@schemes
@families
def test_exactly_these_layers_are_rounded(name: str, scheme: str) -> None:
    model = copy.deepcopy(subject(name).model)
    names = {name for name, _ in model.named_parameters()}
    layers = quantize_(model, scheme, decoder=model.decoder)
    assert {re.sub(r"\.\d+\.", ".*.", layer.name): layer.scheme for layer in layers} == expected_layers(name, scheme)
    left = {name for name, _ in model.named_parameters()}
    assert left == {name for name in names if STAYS.search(name)}
    assert all(layer.scheme == layer.asked != FULL for layer in layers)


# --- answers -----------------------------------------------------------------------------------------------------

LEAST = {"int8": 0.999, "int4": 0.99}


@functools.cache
def twins(name: str) -> tuple[torch.Tensor, dict[str, VisionLanguageModel]]:
    """(the logits of a toy's twin with full weights, the twin in each scheme)."""
    full = twin(subject(name).model.config)
    models = {scheme: copy.deepcopy(full) for scheme in LEAST}
    for scheme, model in models.items():
        quantize_(model, scheme, decoder=model.decoder)
    return logits(full, asked(name)), models


def asked(name: str) -> list[Prompt]:
    """Text alone, and two pictures."""
    return subject(name).prompts[:3:2]


@schemes
@families
def test_a_random_twin_answers_nearly_the_same_alone_and_in_company(name: str, scheme: str, form: str) -> None:
    exact, models = twins(name)
    model = models[scheme].cpu()  # a move lets go of the kernels of another form
    together = logits(model, asked(name))
    assert float(torch.cosine_similarity(together.flatten(), exact.flatten(), dim=0)) >= LEAST[scheme]
    assert float(torch.cosine_similarity(together, exact, dim=-1).median()) >= LEAST[scheme]
    alone = torch.cat([logits(model, [prompt]) for prompt in asked(name)])
    if form == "plain torch":  # floats are added up in another order
        torch.testing.assert_close(together, alone, rtol=0, atol=0.02 * float(exact.std()))
    else:
        assert torch.equal(together, alone)
    assert not torch.equal(together, exact)
