"""Thin updates whose sides are put together from several arrays, added in place: backward puts them together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lowrank_sp.parameterizations.sided import SideBySide

from .applied import applied, gradients_again
from .thin import own_types

__all__ = ["add_sides"]


def add_sides(out: Tensor, x: Tensor, form: Any, tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """``out + scale x R diag(d) L^T`` in place of ``out``, for the sides ``(L, R)`` of a thin form.

    For backward it keeps ``x``, the r channels ``x R`` and the tensors, and not the sides, which are no smaller than
    those. Forms of columns, `SideBySide`, have numbers d, which meet the channels alone, and need no graph; the sides
    of others are ``product()``.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    form : type of MatrixFactors
        With ``thin``.
    tensors : tuple of Tensor
        Its arrays, which are rounded to the type of ``out`` for the products.
    scale : float
    """
    if torch.compiler.is_compiling():
        return out.add(applied(form, x.to(out.dtype), *tensors), alpha=scale)
    return _AddSides.apply(out, x, form, scale, *tensors)


class _AddSides(Function):
    @staticmethod
    def forward(ctx, out, x, form, scale, *tensors):
        with own_types(out):
            left, right, weights = _parts(form(*tensors), scale, out.dtype)
            channels = right.mT @ x.to(out.dtype).mT
            out.addmm_(_weighted(channels, weights, scale).mT, left.mT)
        ctx.form, ctx.scale = form, scale
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, channels, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, channels, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            found = gradients_again(ctx.form, grad, (x, *tensors), needs, ctx.scale)
        else:
            with own_types(grad):
                found = _gradients(ctx.form, tensors, grad, x, channels, needs, ctx.scale)
        return grad, found[0], None, None, *found[1:]


def _parts(point: Any, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """L, R and ``scale d`` in one type."""
    columns = isinstance(point, SideBySide)
    left, right = point.side_by_side() if columns else point.product()
    weights = point.weights if columns else None
    return left.to(dtype), right.to(dtype), None if weights is None else (scale * weights).to(dtype)


def _weighted(channels: Tensor, weights: Tensor | None, scale: float) -> Tensor:
    """Channels (r, k) times ``scale d``."""
    return channels * (scale if weights is None else weights[:, None])


def _gradients(
    form: Any, tensors: Sequence[Tensor], grad: Tensor, x: Tensor, channels: Tensor, needs: Sequence[bool], scale: float
) -> list[Tensor | None]:
    """Of the input and the arrays: products with the thin factor on the left, and numbers d on channels alone."""
    direct = issubclass(form, SideBySide)
    leaves = tensors if direct else [t.detach().requires_grad_(n) for t, n in zip(tensors, needs[1:], strict=True)]
    point = form(*leaves)
    with torch.set_grad_enabled(not direct):
        left, right, weights = _parts(point, scale, grad.dtype)
    inner = left.detach().mT @ grad.mT
    of_weights = None if weights is None else (inner * channels).sum(1) * scale
    inner = _weighted(inner, weights, scale)
    of_x = (inner.mT @ right.detach().mT).to(x.dtype) if needs[0] else None
    if not any(needs[1:]):
        return [of_x, *[None] * len(tensors)]
    of_left, of_right = (_weighted(channels, weights, scale) @ grad).mT, (inner @ x.to(grad.dtype)).mT
    if not direct:
        return [of_x, *_through_graph((left, right), (of_left, of_right), leaves)]
    found = zip(point.take_apart(of_left, of_right, of_weights), tensors, needs[1:], strict=True)
    return [of_x, *[g.to(t.dtype) if need else None for g, t, need in found]]


def _through_graph(
    sides: tuple[Tensor, Tensor], cotangents: tuple[Tensor, Tensor], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the arrays from those of the sides that they make, by automatic differentiation."""
    pairs = [(side, cotangent) for side, cotangent in zip(sides, cotangents, strict=True) if side.requires_grad]
    wanted, (outputs, given) = [leaf for leaf in leaves if leaf.requires_grad], zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, given, materialize_grads=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]
