"""Quantisation as a module swap: layers are replaced one by one, models know nothing of it.

A layer's stored form is chosen by where it is (schemes.py) and checked at once: its output on a few random rows is
compared with the full weights', and where it is further off than its gate, a safer form takes its place. So it is on
rows with loud channels, where the norm before the layer makes some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.quant.float8 import Float8Linear
from behold.quant.head import LEAST_WEIGHTS, Int8Head
from behold.quant.linear import Int4Linear, Int8Linear, QuantizedEmbedding, QuantizedLinear, Rows
from behold.quant.schemes import FULL, GATES, PACKED, SAFER, Layer, find_scheme

_LINEARS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear, "float8": Float8Linear}
_PROBE_ROWS = 8
_PIECE = 1 << 20  # weights that are widened at a time
_LOUD = 8.0  # a norm's weight that is so much above or below its others makes a channel loud or quiet
_NORMED = {  # by the ends of layers' names: what their norms are called in the block that has both
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("input_layernorm", "layer_norm1")),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.fc1"), ("post_attention_layernorm", "layer_norm2")),
}

Quantized = QuantizedLinear | QuantizedEmbedding


class Quantizer:
    """The hook of `load_weights` that replaces each layer of one model as soon as it is filled.

    layers: what became of each, in the order in which they came.
    """

    def __init__(
        self,
        scheme: str,
        model: nn.Module,
        *,
        decoder: nn.Module | None = None,
        skip: tuple[str, ...] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        arrived: Mapping[str, int] | None = None,
    ) -> None:
        """decoder: the part of `model` (None: all of it) that holds the text decoder. skip: ends of names that stay.

        device, dtype: where and as what a layer goes on (None: as it came); it is rounded where it is.
        arrived: the bytes of weights that came quantized by another program, by their layers' names.

        Raises:
            OptionError: no such scheme.
        """
        chosen = find_scheme("int8" if scheme == PACKED else scheme)
        self.layers: list[Layer] = []
        self._model, self._device, self._dtype = model, device, dtype
        self._asked: dict[str, str] = {}
        self._arrived = arrived or {}
        self._head = ""
        inside = {id(module) for module in (model if decoder is None else decoder).modules()}
        for name, module in model.named_modules():
            last, is_text = name.rpartition(".")[2], id(module) in inside
            if is_text and (last == "lm_head" or (last == "embed_tokens" and not self._head)):
                self._head = name  # a table serves as one where there is no other
            wanted = isinstance(module, nn.Linear) or (
                isinstance(module, nn.Embedding) and is_text and last == "embed_tokens"
            )
            if scheme == PACKED and name not in self._arrived:
                continue
            if wanted and not name.endswith(skip or "\n"):
                in_text = {"lm_head": chosen.head, "embed_tokens": chosen.table}.get(last, chosen.decoder)
                asked = in_text if is_text else chosen.elsewhere
                if asked != FULL:
                    self._asked[name] = asked

    def takes(self, name: str) -> bool:
        """Whether the submodule of this name is replaced, so that its weight may come in any type."""
        return name in self._asked

    def __call__(self, name: str, module: nn.Module, weight: Rows | None = None) -> Quantized | None:
        """Replaces a filled submodule; returns what took its place, None where it stays.

        weight: in place of the module's own, which may still be missing; it is filled where the module stays.
        """
        asked = self._asked.get(name)
        if asked is None:
            return None
        assert isinstance(module, nn.Linear | nn.Embedding)
        full = module.weight.detach() if weight is None else weight
        dtype = self._dtype or full.dtype
        on_cpu = (self._device or full.device).type == "cpu"
        channels = _channels_before(self._model, name)
        is_head = on_cpu and name == self._head
        small, layer = round_layer(name, module, asked, head=is_head, channels=channels, weight=full)
        if name in self._arrived:
            before = layer.bytes_before - full.nbytes + self._arrived[name]
            layer = replace(layer, bytes_before=before)
        self.layers.append(layer)
        if small is None:
            if weight is not None:
                module.weight = nn.Parameter(weight[:], requires_grad=False)
            module.to(device=self._device, dtype=dtype)
            return None
        small.to(device=self._device, dtype=dtype)
        _put(self._model, name, small)
        return small


def quantize_(
    model: nn.Module, scheme: str, *, decoder: nn.Module | None = None, skip: tuple[str, ...] = ()
) -> list[Layer]:
    """Replaces every layer that `scheme` replaces, in place, but for names that end with one of `skip`.

    Raises:
        OptionError: no such scheme.
    """
    quantizer = Quantizer(scheme, model, decoder=decoder, skip=skip)
    for name in [name for name, _ in model.named_modules() if quantizer.takes(name)]:
        quantizer(name, model.get_submodule(name))
    return quantizer.layers


@torch.no_grad()
def round_layer(
    name: str,
    module: nn.Linear | nn.Embedding,
    asked: str,
    *,
    head: bool = False,
    channels: Tensor | None = None,
    weight: Rows | None = None,
) -> tuple[Quantized | None, Layer]:
    """(the layer in the first form from `asked` on that keeps its gate, None where none does; what became of it).

    head: it chooses among ids, on a CPU. channels: (K,) how loud the layer's inputs are, where some are louder or
    quieter than the rest. weight: in place of the module's own, which may be missing.
    """
    weight = module.weight.detach() if weight is None else weight
    bias = module.bias if isinstance(module, nn.Linear) else None
    before = weight.nbytes + (0 if bias is None else bias.nbytes)
    if bias is not None:
        bias.data = bias.data.float()  # as the probe's rows are
    refused: dict[str, float] = {}
    scheme = asked
    while scheme != FULL:
        int8 = Int8Head if head and weight.shape.numel() >= LEAST_WEIGHTS else Int8Linear
        if isinstance(module, nn.Embedding):
            small: Quantized = QuantizedEmbedding.of(module, int8, weight)
        else:
            small = (int8 if scheme == "int8" else _LINEARS[scheme]).of(module, weight)
        error = probe_error(small, weight, bias)
        if channels is not None and isinstance(small, QuantizedLinear):
            rows = _signs(weight.shape[1]) * channels
            error = max(error, relative_error(_wide_product(rows, small), full_product(rows, weight)))
        if error <= GATES[scheme]:
            return small, Layer(name, asked, scheme, before, small.n_bytes, error, refused)
        refused[scheme] = error
        scheme = SAFER[scheme]
    return None, Layer(name, asked, FULL, before, before, 0.0, refused)


def probe_error(small: Quantized, weight: Rows, bias: Tensor | None) -> float:
    """The relative error of a layer's output, without bias, on the same few rows of random signs for every layer.

    Such rows are as good as any others without a direction, and their own rounding is exact: what shows is that of the
    weights alone. weight: (N, K) before it was rounded, in any type.
    """
    rows = _signs(weight.shape[1])
    if isinstance(small, QuantizedEmbedding):
        ours = small.logits(rows)
    else:
        ours = small(rows) if bias is None else small(rows) - bias
    return relative_error(ours, full_product(rows, weight))


def _signs(width: int) -> Tensor:
    signs = torch.randint(0, 2, (_PROBE_ROWS, width), generator=torch.Generator().manual_seed(0))
    return signs.float().mul_(2).sub_(1)


def _channels_before(model: nn.Module, name: str) -> Tensor | None:
    """(K,) the weights of the norm before a layer, float32, where channels stand out of it; None for other layers."""
    *block, part, last = ["", "", *name.split(".")]
    norms = _NORMED.get(f"{part}.{last}", ())
    around = model.get_submodule(".".join(block[2:])) if norms else model
    weights = [getattr(around, norm).weight for norm in norms if hasattr(around, norm)]
    if not weights or weights[0].is_meta:
        return None
    channels: Tensor = weights[0].detach().float().cpu()
    sizes = channels.abs()
    middle = float(sizes.median())
    return channels if float(sizes.max()) > _LOUD * middle or float(sizes.min()) * _LOUD < middle else None


def full_product(x: Tensor, weight: Rows) -> Tensor:
    """x (M, K) float32 times weight (N, K) of any type, (M, N) float32; the weight is widened a piece at a time."""
    wide = torch.empty(0, dtype=torch.float32, device=x.device)

    def piece(start: int, stop: int) -> Tensor:
        """All into the same place: the heap would grow by each, as what is kept of the one before lies behind it."""
        rows = weight[start:stop]
        return wide.resize_(rows.shape).copy_(rows)

    return _by_pieces(x, weight.shape[0], piece)


def _wide_product(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """As full_product, with the weights that a layer uses; x is not rounded."""
    return _by_pieces(x, layer.out_features, layer.wide)


@torch.no_grad()
def _by_pieces(x: Tensor, n: int, piece: Callable[[int, int], Tensor]) -> Tensor:
    """x (M, K) times the float32 rows, n in all, of which `piece` gives those from one number up to another."""
    out = torch.empty(len(x), n, dtype=torch.float32, device=x.device)
    at_once = max(_PIECE // x.shape[1], 1)
    for start in range(0, n, at_once):
        stop = min(start + at_once, n)
        out[:, start:stop] = F.linear(x, piece(start, stop))
    return out


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """||ours - exact|| / ||exact||; what is 0 exactly must be so here, too."""
    off, size = float((ours.float() - exact).norm()), float(exact.norm())
    return off / size if size else (0.0 if not off else float("inf"))


# --- kept weights ------------------------------------------------------------------------------------------------


def tensors_of(name: str, module: nn.Module) -> dict[str, Tensor]:
    """What one submodule (without those below it) is made of, by names that `restore` understands."""
    own = module.state() if isinstance(module, Quantized) else dict(module.named_parameters(recurse=False))
    return {f"{name}.{key}" if name else key: tensor for key, tensor in own.items()}


def restore(model: nn.Module, layers: Sequence[Layer], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Fills a model on the meta device from what `tensors_of` gave for all of its modules; False where some is missing.

    Tensors are taken as they are: they may be views of a mapped file.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, key = name.rpartition(".")
        parts.setdefault(prefix, {})[key] = tensor
    modules = dict(model.named_modules())  # looked up once: torch goes down a name step by step
    try:
        for layer in layers:
            if layer.scheme != FULL:
                parent, _, attribute = layer.name.rpartition(".")
                small = _restored(modules[layer.name], layer, parts.pop(layer.name), dtype)
                setattr(modules[parent], attribute, small)
        for prefix, own in parts.items():
            module = modules[prefix]
            for key, tensor in own.items():
                if module.get_parameter(key).shape != tensor.shape:
                    return False
                setattr(module, key, nn.Parameter(tensor, requires_grad=False))
    except (KeyError, AttributeError, ValueError, RuntimeError):
        return False
    return not any(parameter.is_meta for parameter in model.parameters())


def _restored(module: nn.Module, layer: Layer, state: dict[str, Tensor], dtype: torch.dtype) -> Quantized:
    int8 = Int8Head if "errors" in state else Int8Linear
    if isinstance(module, nn.Embedding):
        size = {"num_embeddings": module.num_embeddings, "embedding_dim": module.embedding_dim}
        return QuantizedEmbedding.from_state(state, **size, kind=int8).to(dtype)
    assert isinstance(module, nn.Linear)
    kind = int8 if layer.scheme == "int8" else _LINEARS[layer.scheme]
    return kind.from_state(state, in_features=module.in_features, out_features=module.out_features)


def _put(model: nn.Module, name: str, module: Any) -> None:  # noqa: ANN401 - what nn.Module's setattr takes
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)
