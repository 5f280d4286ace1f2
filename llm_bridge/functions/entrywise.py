"""The layer whose weight gets a function of every entry of a thin product, formed again in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .applied import laid_out, pulled_back
from .product import HALF, working_type
from .thin import compute_dtype, own_types

__all__ = ["add_entrywise", "entrywise_linear"]

Source = Callable[[], Tensor]


def entrywise_linear(x: Tensor, source: Source, bias: Tensor | None, point: Any, scale: float) -> Tensor:
    """``x (W + s phi(L R^T))^T + bias`` for a point of an `Elementwise` form, which keeps nothing but ``x``.

    Arrays of the size of the layer have the type of the products. The frequency is part of a thin factor, and the gain
    a factor of sums and products. In half precision a small update would be lost in ``W``, so that there
    ``x W^T + x (s phi(L R^T))^T`` is computed; the gradient of ``x`` takes one product with the sum.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    point : Elementwise
        With ``L`` (m, r) and ``R`` (n, r).
    scale : float
        s.
    """
    dtype = compute_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    return _Entrywise.apply(None, x.to(dtype), bias, point.left, point.right, scale, source, type(point))


def add_entrywise(out: Tensor, x: Tensor, point: Any, scale: float) -> Tensor:
    """``out + x (s phi(L R^T))^T`` in place of ``out``, for another input than the layer gets; keeps only ``x``.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    point : Elementwise
    scale : float
        s.
    """
    return _Entrywise.apply(out, x.to(out.dtype), None, point.left, point.right, scale, None, type(point))


class _Entrywise(Function):
    @staticmethod
    def forward(out, x, bias, left, right, scale, source, form):
        with own_types(x):
            point = form(left, right)
            wide, right = _factors(point, x.dtype)
            u = wide @ right.mT
            change, gain = point.bend(u, u.sin()), scale * point.gain
            if out is None and x.dtype not in HALF:
                return F.linear(x, torch.add(source(), change, alpha=gain).to(x.dtype), bias)
            out = F.linear(x, source().to(x.dtype), bias) if out is None else out
            return out.addmm_(x, change.to(x.dtype).mT, alpha=gain)

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, x, _, left, right, ctx.scale, ctx.source, ctx.form = inputs
        if out is not None:
            ctx.mark_dirty(out)
        ctx.save_for_backward(x, left, right)

    @staticmethod
    def backward(ctx, grad):
        of_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:5]
        with own_types(grad):
            of_x, of_left, of_right = (_again if torch.is_grad_enabled() else _gradients)(ctx, grad, needs)
        return grad if ctx.source is None else None, of_x, of_bias, of_left, of_right, None, None, None


def _factors(point: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``w L`` and ``R``, of which the product is bent."""
    wide = working_type(point.left, dtype)
    return (point.left * point.frequency).to(wide), point.right.to(wide)


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    x, *arrays = ctx.saved_tensors
    point = ctx.form(*arrays)
    wide, right = _factors(point, x.dtype)
    u, gain = wide @ right.mT, ctx.scale * point.gain
    sine, of_x = u.sin(), None
    if needs[0] and ctx.source is None:
        of_x = (grad @ point.bend(u, sine).to(grad.dtype)).mul_(gain)
    elif needs[0]:
        of_x = grad @ torch.add(ctx.source(), point.bend(u, sine), alpha=gain).to(grad.dtype)
    if not any(needs[1:]):
        return [of_x, None, None]
    inner = point.bent((grad.mT @ x).to(u.dtype), u, sine)  # the gradient of u, but for the gain
    of_left = laid_out((right.mT @ inner.mT).mul_(gain * point.frequency), point.left) if needs[1] else None
    of_right = laid_out((wide.mT @ inner).mul_(gain), point.right) if needs[2] else None
    return [of_x, of_left, of_right]


def _again(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """By automatic differentiation of the definition, where a second derivative is wanted."""

    def output(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        change = ctx.scale * ctx.form(left, right).dense()
        return F.linear(x, (change if ctx.source is None else ctx.source() + change).to(x.dtype))

    return pulled_back(output, grad, ctx.saved_tensors, needs)
