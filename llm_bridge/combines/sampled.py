"""Weights plus values at fixed places or frequencies, whose gradient is a product sampled there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lowrank_sp.parameterizations import Fourier

from ..functions import add_thin, compute_dtype
from ..layers import CONV1D, LINEAR, LayerType
from .base import Combine, Formed

__all__ = ["Placed", "Waves", "mode_products", "placed_sum", "sampled_product", "samples", "summed_linear"]

# How much faster a processor is at products of matrices than at products sampled at single places.
DENSE_SPEED = 8


@dataclass(frozen=True)
class Placed(Combine):
    """``W + s F`` for forms with values at single places, and perhaps a low-rank part beside them.

    As `Formed`: the sum is formed for one product and again in backward, where the gradient of the values is the
    product of the gradient of the output with the input, at the places alone. The low-rank part acts on the
    activations. Layers other than linear ones, half precision and dropout take the way of `Formed`.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _direct(kind, layer, x, adapter):
            return Formed().forward(kind, layer, x, adapter)
        rows, point, scale = kind.rows(layer, x), adapter.point(), _scale(adapter)
        places = point.places
        out = summed_linear(
            rows, lambda: kind.weight(layer), layer.bias, point.values,
            lambda weight, values: placed_sum(weight, values, places, scale),
            lambda grad, seen: sampled_product(grad, seen, places).mul_(scale),
        )  # fmt: skip
        if "left" in point.names:
            out = add_thin(out, rows, (point.left, point.right), scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return weight + update


@dataclass(frozen=True)
class Waves(Combine):
    """``W + s F`` for `Fourier`: the gradient of its coefficients comes from transforms of the activations.

    As `Placed`, in the frequencies: the gradient of the output and the input are transformed row by row, and their
    product is sampled at the modes. That is cheaper than the transform of their product by all of this product.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _direct(kind, layer, x, adapter):
            return Formed().forward(kind, layer, x, adapter)
        form, modes, scale = adapter.form, adapter.modes, _scale(adapter)
        out = summed_linear(
            kind.rows(layer, x), lambda: kind.weight(layer), layer.bias, adapter.values,
            lambda weight, values: weight.add(form(values, modes).dense(), alpha=scale),
            lambda grad, seen: mode_products(grad, seen, modes).mul_(scale),
        )  # fmt: skip
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return weight + update


def _scale(adapter: Any) -> float:
    return adapter.scale * adapter.noise.gate(adapter.training)


def _direct(kind: LayerType, layer: Any, x: Tensor, adapter: Any) -> bool:
    """Whether the layer is a plain frozen product in one precision, whose input the update sees as it is."""
    noisy = adapter.training and adapter.noise.on_input and adapter.noise.rate > 0
    exact = kind in (LINEAR, CONV1D) and layer.weight.dtype in (torch.float32, torch.float64)
    exact = exact and not layer.weight.requires_grad
    same = exact and compute_dtype(x) == x.dtype == layer.weight.dtype == adapter.values.dtype
    return same and not noisy and not adapter.shifted and not torch.compiler.is_compiling()


def summed_linear(
    x: Tensor,
    source: Callable[[], Tensor],
    bias: Tensor | None,
    values: Tensor,
    add: Callable[[Tensor, Tensor], Tensor],
    adjoint: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """``x add(W, values)^T + bias`` with a sum that is formed again in backward; keeps nothing but ``x``.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    values : Tensor (s,)
    add : callable ``(W, values) -> Tensor (m, n)``
        W and what is linear in the values.
    adjoint : callable ``(grad, x) -> Tensor (s,)``
        The gradient of the values from that of the output (k, m), without the product ``grad^T x`` if it can.
    """
    return _Summed.apply(x, bias, values, source, add, adjoint)


class _Summed(Function):
    @staticmethod
    def forward(x, bias, values, source, add, adjoint):
        return F.linear(x, add(source(), values), bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, values, *ctx.functions = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, values), (source, add, adjoint) = ctx.saved_tensors, ctx.functions
        needs_x, needs_bias, needs_values, *_ = ctx.needs_input_grad
        of_x = grad @ add(source(), values) if needs_x else None
        of_values = adjoint(grad, x) if needs_values else None
        return of_x, grad.sum(0) if needs_bias else None, of_values, None, None, None


# values at places -------------------------------------------------------------------------------------------------


def placed_sum(weight: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
    """``W + scale S`` with the entries ``values`` of S at places ``row n + col``: a matrix of its own."""
    formed = weight.clone(memory_format=torch.contiguous_format)
    formed.view(-1).index_add_(0, places, values, alpha=scale)
    return formed


def samples(m: int, n: int, count: int) -> bool:
    """Whether ``count`` entries of an m x n product are cheaper one by one than the whole product.

    One entry costs as many multiplications either way, k for k tokens, but a processor is about eight times faster at
    whole products: entries alone are cheaper up to ``m n / 8`` of them.
    """
    return DENSE_SPEED * count <= m * n


def sampled_product(left: Tensor, right: Tensor, places: Tensor) -> Tensor:
    """Entries (s,) of ``left^T right`` (m, n) at places ``row n + col``, increasing, for (k, m) and (k, n).

    By the product of sampled entries that torch has for sparse matrices on processors, which forms nothing of size
    (m, n) or (s, k), where `samples` says so; else, and on other devices, the product is formed and read.
    """
    m, n = left.shape[1], right.shape[1]
    if left.device.type != "cpu" or not samples(m, n, len(places)):
        return (left.mT @ right).view(-1)[places]
    _quiet()
    starts = torch.searchsorted(places, torch.arange(0, m * n + 1, n))
    # Without a check of what the form guarantees, which would cost more than the product.
    pattern = torch.sparse_csr_tensor(starts, places % n, right.new_zeros(len(places)), (m, n), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left.mT.contiguous(), right.contiguous(), beta=0.0).values()


# coefficients of waves --------------------------------------------------------------------------------------------


def mode_products(left: Tensor, right: Tensor, modes: Tensor) -> Tensor:
    """Products (s,) of ``left^T right`` (m, n) with the cosine modes ``u n + v``, for (k, m) and (k, n).

    That is the real part of the product of their transforms, ``Re l Re r - Im l Im r`` for every row, at the places
    of the modes in the halves that transforms of real rows have; a mirrored wave has the conjugate transform.
    Where `samples` prefers whole products, ``left^T right`` is formed and transformed.
    """
    m, n = left.shape[1], right.shape[1]
    if left.device.type != "cpu" or not samples(m, n, 2 * len(modes)):
        return Fourier.for_shape((m, n))(modes, modes).partial(0, left.mT @ right)
    u, v = modes // n, modes % n
    mirrored = (2 * u > m) ^ (2 * v > n)
    folded = torch.minimum(u, m - u) * (n // 2 + 1) + torch.minimum(v, n - v)
    places, back = folded.unique(return_inverse=True)
    first, second = torch.fft.rfft(left), torch.fft.rfft(right)
    real, imaginary = (
        sampled_product(a, b, places)[back] for a, b in ((first.real, second.real), (first.imag, second.imag))
    )
    return (real - torch.where(mirrored, -imaginary, imaginary)) / (m * n) ** 0.5


@cache
def _quiet() -> None:
    """Let torch say once, to nobody, that its sparse matrices are young: later ones say nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)
