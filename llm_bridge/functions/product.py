"""The layer whose weight is multiplied entry by entry with one plus a thin product, rebuilt in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .applied import laid_out, pulled_back
from .thin import compute_dtype, own_types

__all__ = ["HALF", "add_times", "times_linear", "working_type"]

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
    return _TimesLinear.apply(None, x.to(dtype), bias, *factors, scale, source)


def add_times(out: Tensor, x: Tensor, source: Source, factors: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """``out + x (W o s L R^T)^T`` in place of ``out``, for another input than the layer gets; keeps only ``x``.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    source, factors, scale
        As for `times_linear`.
    """
    return _TimesLinear.apply(out, x.to(out.dtype), None, *factors, scale, source)


class _TimesLinear(Function):
    @staticmethod
    def forward(out, x, bias, left, right, scale, source):
        with own_types(x):
            weight, (left, right) = source(), _alike(left, right, x.dtype)
            if out is None and x.dtype not in HALF:
                return F.linear(x, _times(weight, left, right, scale).to(x.dtype), bias)
            change = (left @ (scale * right).mT).mul_(weight)
            out = F.linear(x, weight.to(x.dtype), bias) if out is None else out
            return out.addmm_(x, change.to(x.dtype).mT)

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, x, _, left, right, ctx.scale, ctx.source = inputs
        ctx.beside = out is not None
        if out is not None:
            ctx.mark_dirty(out)
        ctx.save_for_backward(x, left, right)

    @staticmethod
    def backward(ctx, grad):
        of_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:5]
        with own_types(grad):
            of_x, of_left, of_right = (_again if torch.is_grad_enabled() else _gradients)(ctx, grad, needs)
        return grad if ctx.beside else None, of_x, of_bias, of_left, of_right, None, None


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    x, *factors = ctx.saved_tensors
    weight, (left, right) = ctx.source(), _alike(*factors, x.dtype)
    of_x = None
    if needs[0]:
        whole = (left @ (ctx.scale * right).mT).mul_(weight) if ctx.beside else _times(weight, left, right, ctx.scale)
        of_x = grad @ whole.to(grad.dtype)
    if not any(needs[1:]):
        return [of_x, None, None]
    inner = (grad.mT @ x).to(left.dtype).mul_(weight)  # the gradient of s L R^T
    of_left = laid_out((right.mT @ inner.mT).mul_(ctx.scale), factors[0]) if needs[1] else None
    of_right = laid_out((left.mT @ inner).mul_(ctx.scale), factors[1]) if needs[2] else None
    return [of_x, of_left, of_right]


def _again(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """By automatic differentiation of the definition, where a second derivative is wanted."""

    def output(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        weight = ctx.source()
        change = ctx.scale * weight * (left @ right.mT)
        return F.linear(x, (change if ctx.beside else weight + change).to(x.dtype))

    return pulled_back(output, grad, ctx.saved_tensors, needs)


def working_type(factor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """That of arrays of the size of the layer: of the products in half precision, else no less than the factors'."""
    return dtype if dtype in HALF else torch.promote_types(factor.dtype, dtype)


def _alike(left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wide = working_type(left, dtype)
    return left.to(wide), right.to(wide)


def _times(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """``W o (1 + s L R^T)`` in the type of the factors."""
    left = torch.cat((left, left.new_ones(len(left), 1)), 1)
    right = torch.cat((right * scale, right.new_ones(len(right), 1)), 1)
    return (left @ right.mT).mul_(weight)
