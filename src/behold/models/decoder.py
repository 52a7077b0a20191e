"""The one text decoder: Llama, Mistral and Qwen2 differ by flags in TextConfig, never by name.

Pre-norm blocks of rotary grouped-query attention and a gated MLP (Touvron et al. 2023, arxiv.org/abs/2302.13971). Rows
of several sequences are packed without padding; who may see whom is the cache view's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from behold.nn.embedding import embedding
from behold.nn.linear import Linear, product
from behold.nn.mlp import GatedMLP
from behold.nn.norms import RMSNorm
from behold.nn.rotary import Rotary, rotate, rotate_
from behold.quant.head import Int8Head
from behold.quant.joined import Joined
from behold.quant.linear import QuantizedEmbedding
from behold.threads import FEW_ROWS, SHARE

if TYPE_CHECKING:
    from behold.models.config import TextConfig
    from behold.nn.attention import CacheView


class Attention(nn.Module):
    """Grouped-query self-attention of one layer; keys and values live in the cache view."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, config.windows[layer]
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width, q_width, kv_width = config.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(width, q_width, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv_width, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(q_width, width, bias=config.output_bias)
        self._joined = Joined()

    def forward(
        self,
        x: Tensor,
        norm: RMSNorm,
        angles: tuple[Tensor, Tensor],
        cache: CacheView,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """x (N, D) plus its normed rows' attention, (N, D); (R, D) where only the rows `wanted` (R,) are of use."""
        out = cache.attend(self.layer, *self._projected(x, norm, angles), window=self.window)
        out = out.reshape(x.shape[0], self.heads * self.head_dim)
        y: Tensor = self.o_proj(out, x) if wanted is None else self.o_proj(out[wanted], x[wanted])
        return y

    def _projected(self, x: Tensor, norm: RMSNorm, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (N, H, d) and keys (N, Hkv, d), and values as keys."""
        rows, turned = x.shape[0], self.heads + self.kv_heads
        kernel = self._joined.kernel(x, self.q_proj, self.k_proj, self.v_proj)
        if kernel is not None and norm.can_join(x):
            heads = kernel(x, norm=norm.weight, eps=norm.eps).view(rows, turned + self.kv_heads, self.head_dim)
            rotate_(heads, turned, *angles)
            q, k, v = heads.split_with_sizes((self.heads, self.kv_heads, self.kv_heads), dim=1)
            return q, k, v
        x = norm(x)
        q = rotate(self.q_proj(x).view(rows, self.heads, self.head_dim), *angles)
        k = rotate(self.k_proj(x).view(rows, self.kv_heads, self.head_dim), *angles)
        return q, k, self.v_proj(x).view(rows, self.kv_heads, self.head_dim)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        # in this order, in which they are filled: a norm's weights say how layers are to be rounded
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=config.mlp_bias)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], cache: CacheView, wanted: Tensor | None = None
    ) -> Tensor:
        """(N, D) to (N, D), or to (R, D) where only the rows `wanted` (R,) are of use."""
        x = self.self_attn(x, self.input_layernorm, angles, cache, wanted)
        y: Tensor = self.mlp(x, self.post_attention_layernorm, x)
        return y


class Decoder(nn.Module):
    """Token embeddings, layers, final norm and head; a tied head has no weight of its own."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config.rope, config.head_dim)

    def forward(self, embeddings: Tensor, positions: Tensor, cache: CacheView, wanted: Tensor | None = None) -> Tensor:
        """(N, D) embeddings at (N,) positions to (N, D) normalised hidden states.

        wanted: (R,) the rows that are returned, as (R, D); None for all. The last layer spares the others' work.
        """
        angles = self.rotary(positions, embeddings.dtype)
        hidden = embeddings
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            if len(hidden) > FEW_ROWS:
                SHARE.reconsider()
            hidden = layer(hidden, angles, cache, wanted if number == last else None)
        out: Tensor = self.norm(hidden)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) to (R, V)."""
        if self.lm_head is None and isinstance(self.embed_tokens, QuantizedEmbedding):
            return self.embed_tokens.logits(hidden)
        if self.lm_head is None:
            return product(hidden, self.embed_tokens.weight)
        out: Tensor = self.lm_head(hidden)
        return out

    def best(self, hidden: Tensor) -> Tensor | None:
        """(R, D) to the first of the largest logits of each row, (R,) int64.

        UNKNOWN where it was not found, and None where that is so for all: the logits are to be asked.
        """
        head: nn.Module = self.embed_tokens if self.lm_head is None else self.lm_head
        if isinstance(head, QuantizedEmbedding):
            head = head.layer
        return head.best(hidden) if isinstance(head, Int8Head) else None
