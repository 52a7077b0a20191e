"""The one vision transformer: CLIP (class token, first norm), SigLIP (neither), idefics2 (pictures of any size).

Sources: Dosovitskiy et al. 2020, arxiv.org/abs/2010.11929; CLIP, arxiv.org/abs/2103.00020; SigLIP,
arxiv.org/abs/2303.15343; positions for any size after NaViT, arxiv.org/abs/2307.06304. B pictures, n patches, D width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.nn.all_to_all import AllToAll
from behold.nn.embedding import embedding
from behold.nn.linear import Linear
from behold.nn.mlp import MLP
from behold.nn.norms import LayerNorm
from behold.nn.seldom import Seldom

if TYPE_CHECKING:
    from behold.models.config import VisionConfig


PIECE_ROWS = 256


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, done as one matrix product over unfolded patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.num_channels, side, side))
        # CLIP's patches have no bias: its class token and first norm take that place
        self.bias = None if config.class_token else nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), sides at least one patch, to (B, n, D) row by row; an incomplete last patch is cut off."""
        batch, channels, side = pixels.shape[0], self.weight.shape[1], self.weight.shape[2]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        patches = pixels[:, :, : rows * side, : columns * side].reshape(batch, channels, rows, side, columns, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * side * side)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class Embeddings(nn.Module):
    """Patches (and the class token) with learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = embedding(config.num_positions, config.hidden_size)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if config.class_token else None

    def forward(self, pixels: Tensor, positions: Tensor | None) -> Tensor:
        """(B, C, H, W) and (n,) rows of the position table (None: all, in order) to (B, n, D)."""
        patches = self.patch_embedding(pixels)
        if self.class_embedding is not None:
            patches = torch.cat((self.class_embedding.expand(patches.shape[0], 1, -1), patches), dim=1)
        table = self.position_embedding.weight
        out: Tensor = patches + (table if positions is None else table[positions])
        return out


class SelfAttention(nn.Module):
    """Multi-head attention of all patches of a picture among themselves."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)
        self.attention = AllToAll(config.num_attention_heads)

    def steps(self, x: Tensor, norm: LayerNorm) -> Generator[None, None, Tensor]:
        """(B, n, D) plus attention of its normed rows, (B, n, D), in pieces."""
        attend = self.attention.rows_of(x, norm, self.q_proj, self.k_proj, self.v_proj)
        yield
        out = torch.empty_like(x)
        for rows in pieces(x.shape[1], n_pieces(x)):
            self.out_proj(attend(rows), x[:, rows].contiguous(), out[:, rows])
            yield
        return out


class EncoderLayer(Seldom):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        # in this order, in which they are filled: a norm's weights say how layers are to be rounded
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    def steps(self, x: Tensor) -> Generator[None, None, Tensor]:
        """(B, n, D) to (B, n, D), in pieces."""
        x = yield from self.self_attn.steps(x, self.layer_norm1)
        out = torch.empty_like(x)
        plain, done = x.flatten(0, 1), out.flatten(0, 1)
        for rows in pieces(len(plain), n_pieces(x)):
            self.mlp(plain[rows], self.layer_norm2, plain[rows], done[rows])
            yield
        self.through()
        return out


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))


class VisionTransformer(nn.Module):
    """Pictures of one size to hidden states; families choose which layers they want, normalised or not."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        # spelled as in CLIP's weights
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else None
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def steps(
        self, pixels: Tensor, layers: Sequence[int], positions: Tensor | None = None
    ) -> Generator[None, None, list[Tensor]]:
        """Hidden states (B, n, D) after the given numbers of layers, 0 being the encoder's input; pauses often.

        pixels: (B, C, H, W) in the tower's dtype. Layers above the last one asked for are not computed.
        """
        x = self.embeddings(pixels, positions)
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        states = {0: x}
        for number, layer in enumerate(self.encoder.layers[: max(layers)], start=1):
            assert isinstance(layer, EncoderLayer)
            x = yield from layer.steps(x)
            if number in layers:
                states[number] = x
        return [states[number] for number in layers]


def n_pieces(x: Tensor) -> int:
    """Into how many parts work on x (B, n, D) is cut, so that what waits for its end on a CPU does not wait long.

    Products of a few hundred rows are as fast as larger ones there; a GPU is through with any before it matters.
    """
    return -(-x.shape[0] * x.shape[1] // PIECE_ROWS) if x.device.type == "cpu" else 1


def pieces(length: int, count: int) -> Iterator[slice]:
    """`length` rows in so many parts."""
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def bucketed_positions(rows: int, columns: int, side: int) -> Tensor:
    """(rows · columns,) entries of a side × side position table for a picture of any shape (NaViT's fractions).

    Each axis is spread evenly over the table: patch i of n takes the bucket that holds i / n.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)

    def buckets(count: int) -> Tensor:
        fractions = (torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))).clamp(max=1.0 - 1e-6)
        return torch.bucketize(fractions, boundaries, right=True)

    return (buckets(rows)[:, None] * side + buckets(columns)[None, :]).flatten()
