"""What sits between a vision tower and the decoder: a two-layer MLP, or a gated MLP with a perceiver resampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.nn.linear import Linear
from behold.nn.mlp import GatedMLP, activation
from behold.nn.norms import RMSNorm


class MLPProjector(nn.Module):
    """linear, activation, linear (LLaVA 1.5, Liu et al. 2023, arxiv.org/abs/2310.03744)."""

    def __init__(self, vision_width: int, text_width: int, act: str, *, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = Linear(vision_width, text_width, bias=bias)
        self.linear_2 = Linear(text_width, text_width, bias=bias)
        self.act = activation(act)

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, vision width) to (B, n, text width)."""
        out: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return out


@dataclass(frozen=True, slots=True)
class ResamplerConfig:
    """A perceiver resampler: `n_latents` learned queries read any number of patches in `depth` blocks."""

    hidden_size: int
    n_latents: int
    depth: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float


class PerceiverAttention(nn.Module):
    """Latents attend to the patches and to themselves."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        width = config.hidden_size
        self.q_proj = Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = Linear(self.heads * self.head_dim, width, bias=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """latents (B, L, D) and context (B, n, D) to (B, L, D)."""
        batch, length, _ = latents.shape
        seen = torch.cat((context, latents), dim=1)
        q = self.q_proj(latents).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(seen).view(batch, seen.shape[1], self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(seen).view(batch, seen.shape[1], self.kv_heads, self.head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.heads != self.kv_heads)
        y: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))
        return y


class PerceiverLayer(nn.Module):
    """One block: cross-attention and a gated MLP on the latents."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_latents_norm = RMSNorm(width, eps)
        self.input_context_norm = RMSNorm(width, eps)
        self.self_attn = PerceiverAttention(config)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = GatedMLP(width, 4 * width, config.hidden_act)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """latents (B, L, D) and context (B, n, D) to (B, L, D)."""
        latents = latents + self.self_attn(self.input_latents_norm(latents), self.input_context_norm(context))
        out: Tensor = latents + self.mlp(self.post_attention_layernorm(latents))
        return out


class PerceiverResampler(nn.Module):
    """Any number of patches to a fixed number of latents (Jaegle et al. 2021, arxiv.org/abs/2103.03206; Flamingo)."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.n_latents, config.hidden_size))
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, context: Tensor) -> Tensor:
        """(B, n, D) to (B, L, D)."""
        latents = self.latents.expand(context.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, context)
        out: Tensor = self.norm(latents)
        return out


class ResamplingConnector(nn.Module):
    """A gated MLP into the text width, then the resampler (Laurençon et al. 2024, arxiv.org/abs/2405.02246)."""

    def __init__(self, vision_width: int, inner: int, text_act: str, config: ResamplerConfig) -> None:
        super().__init__()
        self.modality_projection = GatedMLP(vision_width, inner, text_act, out=config.hidden_size)
        self.perceiver_resampler = PerceiverResampler(config)

    def forward(self, features: Tensor) -> Tensor:
        """(B, n, vision width) to (B, L, text width)."""
        out: Tensor = self.perceiver_resampler(self.modality_projection(features))
        return out
