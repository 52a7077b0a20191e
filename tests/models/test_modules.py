"""The parts of a model on their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from behold.models.base import drained
from behold.models.config import read_text_config, read_vision_config
from behold.models.decoder import Decoder
from behold.models.towers.vit import PatchEmbedding, VisionTransformer, bucketed_positions
from behold.nn.attention import AttentionPlan, PlainCache
from behold.nn.mlp import activation
from behold.nn.rotary import RopeConfig, Rotary, rotate

TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
}


def randomised(module: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval()


@pytest.fixture
def decoder() -> Decoder:
    decoder: Decoder = randomised(Decoder(read_text_config(TEXT, default_type="mistral", tied=True)))
    return decoder


@pytest.fixture
def tower() -> VisionTransformer:
    tower: VisionTransformer = randomised(VisionTransformer(read_vision_config(VISION, model_type="clip_vision_model")))
    return tower


@torch.inference_mode()
def run(decoder: Decoder, rows: list[torch.Tensor]) -> torch.Tensor:
    lengths = tuple(map(len, rows))
    positions = torch.cat([torch.arange(length) for length in lengths])
    view = PlainCache(AttentionPlan(lengths, (0,) * len(rows), tuple(range(len(rows)))))
    return decoder.logits(decoder(decoder.embed_tokens(torch.cat(rows)), positions, view))


def test_packed_rows_equal_rows_alone(decoder: Decoder) -> None:
    rows = [torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6]), torch.tensor([7, 8, 9])]
    torch.testing.assert_close(run(decoder, rows), torch.cat([run(decoder, [row]) for row in rows]))


def test_a_later_token_changes_nothing_before_it(decoder: Decoder) -> None:
    first, second = run(decoder, [torch.tensor([1, 2, 3, 4])]), run(decoder, [torch.tensor([1, 2, 3, 9])])
    torch.testing.assert_close(first[:3], second[:3])
    assert (first[3] - second[3]).abs().max() > 1e-3


def test_a_window_hides_what_is_far_back() -> None:
    config = read_text_config(TEXT | {"sliding_window": 2, "num_hidden_layers": 1}, default_type="mistral", tied=True)
    decoder = randomised(Decoder(config))
    first, second = run(decoder, [torch.tensor([1, 2, 3, 4])]), run(decoder, [torch.tensor([9, 2, 3, 4])])
    torch.testing.assert_close(first[2:], second[2:])
    assert (first[1] - second[1]).abs().max() > 1e-3


def test_the_decoder_is_differentiable(decoder: Decoder) -> None:
    embeddings = torch.randn(4, 32, requires_grad=True)
    decoder(embeddings, torch.arange(4), PlainCache(AttentionPlan((4,), (0,), (0,)))).sum().backward()
    assert embeddings.grad is not None and bool(embeddings.grad.abs().sum() > 0)


def test_rotation_depends_on_the_distance_only() -> None:
    rotary = Rotary(RopeConfig(theta=100.0), 8)
    q, k = torch.randn(1, 2, 8), torch.randn(1, 2, 8)

    def score(one: int, other: int) -> torch.Tensor:
        rotated = [
            rotate(x, *rotary(torch.tensor([position]), torch.float32)) for x, position in ((q, one), (k, other))
        ]
        return (rotated[0] * rotated[1]).sum(-1)

    torch.testing.assert_close(score(5, 2), score(105, 102), atol=1e-4, rtol=0)
    assert (score(5, 2) - score(6, 2)).abs().max() > 1e-3


def test_frequencies_keep_their_precision_when_the_type_changes() -> None:
    rotary = Rotary(RopeConfig(), 8)
    before = rotary.frequencies.clone()
    rotary.to(torch.bfloat16)
    assert rotary.frequencies.dtype is torch.float32
    assert torch.equal(rotary.frequencies, before)


def test_frequencies_are_real_when_the_model_is_built_without_memory() -> None:
    with torch.device("meta"):
        rotary = Rotary(RopeConfig(), 8)
    assert torch.equal(rotary.frequencies, Rotary(RopeConfig(), 8).frequencies)


@pytest.mark.parametrize("size", [(28, 28), (30, 20), (7, 13)])
def test_patches_are_the_convolution_they_replace(size: tuple[int, int]) -> None:
    patches = randomised(PatchEmbedding(read_vision_config(VISION, model_type="siglip_vision_model")))
    pixels = torch.randn(2, 3, *size)
    expected = F.conv2d(pixels, patches.weight, patches.bias, stride=7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(pixels), expected, atol=1e-5, rtol=1e-5)


def test_layers_above_the_last_one_asked_for_are_not_computed(tower: VisionTransformer) -> None:
    pixels = torch.randn(1, 3, 28, 28)
    whole = drained(tower.steps(pixels, (1, 2, 3)))
    tower.encoder.layers[2].layer_norm1.weight.data.fill_(float("nan"))
    torch.testing.assert_close(drained(tower.steps(pixels, (2,)))[0], whole[1])
    assert drained(tower.steps(pixels, (3,)))[0].isnan().any()


def test_the_tower_is_differentiable(tower: VisionTransformer) -> None:
    pixels = torch.randn(2, 3, 28, 28, requires_grad=True)
    drained(tower.steps(pixels, (3,)))[0].sum().backward()
    assert pixels.grad is not None and bool((pixels.grad.abs().sum((1, 2, 3)) > 0).all())


def test_hidden_states_come_in_the_order_asked_for(tower: VisionTransformer) -> None:
    pixels = torch.randn(1, 3, 28, 28)
    zero, two = drained(tower.steps(pixels, (0, 2)))
    again_two, again_zero = drained(tower.steps(pixels, (2, 0)))
    assert torch.equal(zero, again_zero) and torch.equal(two, again_two)
    assert zero.shape == (1, 17, 24), "16 patches and the class token"


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (2, 2, [0, 2, 8, 10]),  # each patch of a half-size picture stands for two buckets
        (1, 4, [0, 1, 2, 3]),
        (4, 1, [0, 4, 8, 12]),
        (1, 3, [0, 1, 2]),  # a third and two thirds of four buckets
    ],
)
def test_bucketed_positions(rows: int, columns: int, expected: list[int]) -> None:
    assert bucketed_positions(rows, columns, 4).tolist() == expected


@pytest.mark.parametrize("side", [8, 70])
def test_bucketed_positions_of_a_full_picture_are_all_of_them(side: int) -> None:
    positions = bucketed_positions(side, side, side)
    assert len(positions) == side * side and int(positions.max()) < side * side
    # float32 fractions may fall one bucket short, as they do in the reference; none skips two
    assert (positions.view(side, side)[0] - torch.arange(side)).abs().max() <= 1


def test_the_fast_gelu_is_the_tanh_gelu() -> None:
    x = torch.linspace(-30, 30, 20_001)
    with torch.inference_mode():
        fast = activation("gelu_pytorch_tanh")(x)
    torch.testing.assert_close(fast, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-6)
