"""Layer types: how a layer stores its matrix ``W`` (out, in), and how activations meet another one."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_backward_hooks, _global_backward_pre_hooks, _global_forward_hooks

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations.channels import Channels

from .dequantize import dequantized, is_quantized
from .functions import (
    add_applied,
    add_channels,
    add_thin,
    applied,
    beside,
    outer,
    rebuilt_linear,
    rescale,
    rescaled_linear,
    times_linear,
)

__all__ = [
    "CONV",
    "CONV1D",
    "EMBEDDING",
    "LINEAR",
    "PART",
    "PROJECTION",
    "QUANTIZED",
    "LayerType",
    "hooked",
    "layer_type",
    "supported_layers",
]


class LayerType(ABC):
    """What the adapters need to know about a kind of layer. ``W`` is always (out, in), as in ``nn.Linear``.

    ``single`` says that the layer is never called: a module around it takes its weight, and nothing else.
    """

    single: ClassVar[bool] = False

    @abstractmethod
    def shape(self, layer: Any) -> tuple[int, int]:
        """``(out, in)``."""

    @abstractmethod
    def weight(self, layer: Any) -> Tensor:
        """``W``: a view of the stored weight where there is one."""

    @abstractmethod
    def stored(self, layer: Any, weight: Tensor) -> Tensor:
        """``W`` in the layout in which the layer stores it."""

    @abstractmethod
    def run(self, layer: Any, x: Any, weight: Tensor, bias: bool = True) -> Tensor:
        """What the layer would return with another ``W``."""

    @abstractmethod
    def rows(self, layer: Any, x: Any) -> Any:
        """The input as the layer likes it best: flat where that is free."""

    @abstractmethod
    def restore(self, layer: Any, x: Any, out: Tensor) -> Tensor:
        """Output for `rows` back in the shape for ``x``."""

    @abstractmethod
    def narrow(self, layer: Any, x: Any, right: Tensor) -> Tensor:
        """``x right`` for ``right`` (in, r): an activation with r channels."""

    @abstractmethod
    def widen(self, layer: Any, h: Tensor, left: Tensor, out: Tensor, scale: float) -> Tensor:
        """``out + scale h left^T`` for ``left`` (out, r); may overwrite ``out``."""

    @abstractmethod
    def apply(self, layer: Any, x: Any, point: Any) -> Tensor:
        """``x F^T`` for a point of any form."""

    @abstractmethod
    def by_channel(self, out: Tensor, vector: Tensor) -> Tensor:
        """A vector (out,) shaped to multiply the output of the layer."""

    def __reduce__(self) -> str:
        """Copies and pickles are the constant itself: others ask whether a type *is* `LINEAR`."""
        return next(name for name, kind in vars(sys.modules[type(self).__module__]).items() if kind is self)

    def bias(self, layer: Any) -> Tensor | None:
        return getattr(layer, "bias", None)

    def replace(self, layer: Any, stored: Tensor) -> Tensor:
        """Give the layer another weight, as `stored` lays it out; returns what brings the old one back."""
        old = layer.weight
        layer.weight = stored if isinstance(stored, nn.Parameter) else nn.Parameter(stored, requires_grad=False)
        return old

    # what follows from these ------------------------------------------------------------------------------
    def fresh(self, layer: Any, rows: Any) -> Tensor:
        """The output of the layer itself for `rows`, in memory that nobody else looks at."""
        out = layer(rows)
        return out.clone() if _kept(layer) else out

    def rebuilt(self, layer: Any, rows: Any, build: Any, arrays: tuple[Tensor, ...], whole: bool = True) -> Tensor:
        """The output with ``build(W, *arrays)`` in place of ``W``; without the bias if that is no ``whole`` weight."""
        weight = build(self.weight(layer), *arrays)
        return self.run(layer, rows, weight, bias=whole)

    def times(self, layer: Any, rows: Any, factors: tuple[Tensor, Tensor], scale: float) -> Tensor:
        """The output with ``W o (1 + scale L R^T)`` in place of ``W``."""

        def build(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return weight + weight * outer(left * scale, right)

        return self.rebuilt(layer, rows, build, factors)

    def add(self, layer: Any, rows: Any, out: Tensor, factors: tuple[Tensor, ...], scale: float) -> Tensor:
        """``out + scale x (R L^T - R_0 L_0^T)`` for ``(L, R)`` or ``(L, R, L_0, R_0)``; may overwrite ``out``."""
        left, right, *start = factors
        if start:
            left, right = beside(left, right, *start)
        return self.widen(layer, self.narrow(layer, rows, right), left, out, scale)

    def accumulate(self, layer: Any, rows: Any, out: Tensor, point: Any, scale: float) -> Tensor:
        """``out + scale x F^T`` for a point of any form; may overwrite ``out``."""
        return out + scale * self.apply(layer, rows, point).to(out.dtype)

    def rescaled(
        self, layer: Any, rows: Any, seen: Any, factors: tuple[Tensor, ...], scale: float, vector: Tensor
    ) -> Tensor:
        """The output with a low-rank update of ``seen``, all but the bias channel by channel times ``vector``."""
        out = self.add(layer, seen, self.fresh(layer, rows), factors, scale)
        return self.rescale(layer, out, vector)

    def rescale(self, layer: Any, out: Tensor, vector: Tensor) -> Tensor:
        """An output, all but its bias channel by channel times ``vector`` (out,); may overwrite it."""
        bias = self.bias(layer)
        return rescale(out, self.by_channel(out, vector), None if bias is None else self.by_channel(out, bias))


class _Dense(LayerType):
    """Layers that multiply rows of activations by a matrix."""

    def rows(self, layer, x):
        return x.reshape(-1, x.shape[-1])

    def restore(self, layer, x, out):
        return out.view(*x.shape[:-1], out.shape[-1])

    def narrow(self, layer, x, right):
        return x @ right.to(x.dtype)

    def widen(self, layer, h, left, out, scale):
        # In place on the fresh output of the base: one pass less over it, and nothing more to keep for backward.
        return out.addmm_(h.to(out.dtype), left.to(out.dtype).mT, alpha=scale)

    def apply(self, layer, x, point):
        return applied(type(point), x, *point.arrays())

    def by_channel(self, out, vector):
        return vector.to(out.dtype)


class _Matrix(_Dense):
    """Layers that compute ``x W^T + bias``."""

    def run(self, layer, x, weight, bias=True):
        return F.linear(x, weight.to(x.dtype), layer.bias if bias else None)

    def rebuilt(self, layer, rows, build, arrays, whole=True):
        if layer.weight.requires_grad:
            return super().rebuilt(layer, rows, build, arrays, whole)
        bias = layer.bias if whole else None
        return rebuilt_linear(rows, lambda: self.weight(layer), bias, build, arrays, whole)

    def add(self, layer, rows, out, factors, scale):
        return add_thin(out, rows, factors, scale)

    def times(self, layer, rows, factors, scale):
        if torch.compiler.is_compiling() or layer.weight.requires_grad:
            return super().times(layer, rows, factors, scale)
        return times_linear(rows, lambda: self.weight(layer), layer.bias, factors, scale)

    def accumulate(self, layer, rows, out, point, scale):
        form = type(point)
        add = add_channels if issubclass(form, Channels) else add_applied
        return add(out, rows, form, point.arrays(), scale)

    def rescaled(self, layer, rows, seen, factors, scale, vector):
        if layer.weight.requires_grad:
            return super().rescaled(layer, rows, seen, factors, scale, vector)
        return rescaled_linear(rows, seen, lambda: self.weight(layer), factors, scale, vector, layer.bias)


class _Linear(_Matrix):
    def shape(self, layer):
        return layer.out_features, layer.in_features

    def weight(self, layer):
        return layer.weight

    def stored(self, layer, weight):
        return weight


class _Projection(_Linear):
    """A linear layer that its host never calls."""

    single = True


class _Part(_Projection):
    """Rows of a parameter of a host, `llm_bridge.parts.Part`."""

    def shape(self, layer):
        return tuple(layer.weight.shape)

    def replace(self, layer, stored):
        return layer.replace(stored)


@covers("P112", "A01")
class _Quantized(_Linear):
    """A linear layer with a quantized weight: bitsandbytes in 4 or 8 bits, or a tensor of torchao.

    The layer itself computes its output; ``W`` is dequantized where it is needed, never kept for backward.
    """

    def weight(self, layer):
        return dequantized(layer)

    def fresh(self, layer, rows):
        return layer(rows).clone()  # their kernels may return a view, which must not be overwritten

    def stored(self, layer, weight):
        raise ValueError(
            f"the weight of this {type(layer).__name__} is quantized; merging would round the update away. "
            "Dequantize the base model first, or keep the adapter beside it (save, export_lora)"
        )


class _Conv1D(_Matrix):
    """The linear layer of GPT-2 in transformers, which stores ``W`` transposed."""

    def shape(self, layer):
        return layer.weight.shape[1], layer.weight.shape[0]

    def weight(self, layer):
        return layer.weight.mT

    def stored(self, layer, weight):
        return weight.mT.contiguous()

    def fresh(self, layer, rows):
        # Its own forward returns a view, and writing into a view costs a copy of it in backward.
        return layer(rows).clone() if _kept(layer) else self.run(layer, rows, self.weight(layer))


class _Embedding(_Dense):
    """A table of rows, read as the layer that maps one-hot vectors: ``W`` is (dim, vocabulary).

    As in the layer itself, the row of ``padding_idx`` gets no gradient.
    """

    def shape(self, layer):
        return layer.embedding_dim, layer.num_embeddings

    def weight(self, layer):
        return layer.weight.mT

    def stored(self, layer, weight):
        return weight.mT.contiguous()

    def run(self, layer, x, weight, bias=True):
        return F.embedding(x, weight.mT, layer.padding_idx)

    def rows(self, layer, x):
        return x.reshape(-1)

    def restore(self, layer, x, out):
        return out.view(*x.shape, out.shape[-1])

    def narrow(self, layer, x, right):
        return F.embedding(x, right, layer.padding_idx)

    def apply(self, layer, x, point):
        m = layer.embedding_dim
        channels = torch.arange(m, device=x.device)
        cols = x.reshape(-1)
        values = point.entries(channels.repeat(len(cols)), cols.repeat_interleave(m)).view(*x.shape, m)
        if layer.padding_idx is None:
            return values
        return torch.where((x == layer.padding_idx)[..., None], values.detach(), values)

    def bias(self, layer):
        return None


@covers("P11")
class _Conv(LayerType):
    """Convolutions of one to three dimensions: ``W`` is (out, in * kernel size)."""

    def shape(self, layer):
        return layer.weight.shape[0], layer.weight[0].numel()

    def weight(self, layer):
        return layer.weight.flatten(1)

    def stored(self, layer, weight):
        return weight.reshape(layer.weight.shape)

    def run(self, layer, x, weight, bias=True):
        kernel = weight.to(x.dtype).reshape(-1, *layer.weight.shape[1:])
        return layer._conv_forward(x, kernel, layer.bias if bias else None)

    def rows(self, layer, x):
        return x

    def restore(self, layer, x, out):
        return out

    def narrow(self, layer, x, right):
        return self.run(layer, x, right.mT, bias=False)

    def widen(self, layer, h, left, out, scale):
        return out + scale * _mix(left.to(h.dtype), h)

    def apply(self, layer, x, point):
        """Patches as rows: whatever the form can apply to a matrix, it can apply to a convolution."""
        eye = torch.eye(self.shape(layer)[1], device=x.device, dtype=x.dtype)
        patches = self.run(layer, x, eye, bias=False)
        rows = patches.flatten(2).mT
        out = point.map(lambda a: a.to(x.dtype) if a.is_floating_point() else a).apply(rows)
        return out.mT.reshape(x.shape[0], -1, *patches.shape[2:])

    def by_channel(self, out, vector):
        return vector.to(out.dtype).view(-1, *(1,) * (out.ndim - 2))


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix (out, r) applied to the channels of ``x`` (batch, r, ...)."""
    return (matrix @ x.flatten(2)).unflatten(2, x.shape[2:])


def hooked(layer: Any) -> bool:
    """Whether the layer has hooks of its own: on what it returns, or on gradients."""
    return bool(layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _kept(layer: Any) -> bool:
    """Whether a hook may keep what the layer returns, or return a view of it, as those on gradients do."""
    everywhere = _global_forward_hooks or _global_backward_hooks or _global_backward_pre_hooks
    return bool(everywhere) or hooked(layer)


LINEAR, CONV1D, EMBEDDING, CONV = _Linear(), _Conv1D(), _Embedding(), _Conv()
PROJECTION, PART, QUANTIZED = _Projection(), _Part(), _Quantized()


def layer_type(layer: nn.Module) -> LayerType | None:
    """The type of a layer, or None where it has no matrix that an adapter could meet.

    A subclass counts as its base only if it computes the same thing, that is, keeps the base's ``forward``.
    """
    own = type(layer).forward
    if is_quantized(layer):
        return QUANTIZED
    if own is nn.Linear.forward:
        return LINEAR
    if own is nn.Embedding.forward and layer.max_norm is None:
        return EMBEDDING
    if own in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward) and layer.groups == 1:
        return CONV
    return CONV1D if _is_conv1d(layer) else None


def _is_conv1d(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def supported_layers() -> str:
    """For error messages."""
    return (
        "Linear (also quantized by bitsandbytes or torchao), Embedding, Conv1d to Conv3d with one group, "
        "MultiheadAttention, LSTM, GRU, RNN and transformers' Conv1D"
    )
