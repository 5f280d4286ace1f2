"""The layer whose weight is multiplied entry by entry with one plus a thin product, rebuilt in backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .thin import compute_dtype

__all__ = ["times_linear"]

Source = Callable[[], Tensor]

HALF = (torch.bfloat16, torch.float16)


def times_linear(
    x: Tensor, source: Source, bias: Tensor | None, factors: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    """``x (W o (1 + s L R^T))^T + bias``, which keeps nothing but ``x``.

    The ones are one more column of the factors, so that the matrix takes one thin product and one pass over it; so
    does its part of the gradient. In half precision a small update would be lost in ``W``, so that there
    ``x W^T + x (W o s L R^T)^T`` is computed, from factors that are rounded as autocast rounds them.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    factors : tuple of Tensor
        ``L`` (m, r) and ``R`` (n, r).
    scale : float
        s.
    """
    dtype = compute_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    return _TimesLinear.apply(x.to(dtype), bias, *factors, scale, source)


class _TimesLinear(Function):
    @staticmethod
    def forward(x, bias, left, right, scale, source):
        with torch.autocast(x.device.type, enabled=False):
            weight, (left, right) = source(), _alike(left, right, x.dtype)
            if x.dtype not in HALF:
                return F.linear(x, _times(weight, left, right, scale).to(x.dtype), bias)
            change = (left @ (scale * right).mT).mul_(weight)
            return F.linear(x, weight.to(x.dtype), bias).addmm_(x, change.to(x.dtype).mT)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, left, right, ctx.scale, ctx.source = inputs
        ctx.save_for_backward(x, left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, *factors = ctx.saved_tensors
        needs_x, needs_bias, needs_left, needs_right, *_ = ctx.needs_input_grad
        weight, (left, right) = ctx.source(), _alike(*factors, x.dtype)
        of_x = grad @ _times(weight, left, right, ctx.scale).to(grad.dtype) if needs_x else None
        of_left = of_right = None
        if needs_left or needs_right:
            inner = (grad.mT @ x).to(left.dtype).mul_(weight)  # the gradient of s L R^T
            of_left = (right.mT @ inner.mT).mT.mul_(ctx.scale).to(factors[0].dtype) if needs_left else None
            of_right = (left.mT @ inner).mT.mul_(ctx.scale).to(factors[1].dtype) if needs_right else None
        return of_x, grad.sum(0) if needs_bias else None, of_left, of_right, None, None


def _alike(left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The factors in the type of the input, so that matrices of the size of the layer are no wider; or in their own."""
    wide = dtype if dtype in HALF else torch.promote_types(left.dtype, dtype)
    return left.to(wide), right.to(wide)


def _times(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``W o (1 + s L R^T)`` in the type of the factors."""
    left = torch.cat((left, left.new_ones(len(left), 1)), 1)
    right = torch.cat((right * scale, right.new_ones(len(right), 1)), 1)
    return (left @ right.mT).mul_(weight)
