"""Thin updates whose sides are put together from several arrays, added in place: backward puts them together again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .applied import applied, gradients_again

__all__ = ["add_sides"]


def add_sides(out: Tensor, x: Tensor, form: Any, tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """``out + scale x R L^T`` in place of ``out``, for the sides ``(L, R)`` of a thin form.

    For backward it keeps ``x``, the r channels ``x R`` and the tensors, and not the sides, which are no smaller than
    those.

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
        with torch.autocast(out.device.type, enabled=False):
            left, right = _sides(form, tensors, out.dtype)
            channels = right.mT @ x.to(out.dtype).mT
            out.addmm_(channels.mT, left.mT, alpha=scale)
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
            with torch.autocast(grad.device.type, enabled=False):
                found = _gradients(ctx.form, grad, x, channels, tensors, needs, ctx.scale)
        return grad, found[0], None, None, *found[1:]


def _sides(form: Any, tensors: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``L`` and ``R``, put together in the type of the arrays."""
    left, right = form(*tensors).product()
    return left.to(dtype), right.to(dtype)


def _gradients(
    form: Any, grad: Tensor, x: Tensor, channels: Tensor, tensors: list[Tensor], needs: Any, scale: float
) -> list[Tensor | None]:
    """Products with activations by hand, with the thin factor on the left, and what is as small as it by autograd."""
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs[1:], strict=True)]
    with torch.enable_grad():
        left, right = _sides(form, leaves, grad.dtype)
    inner = (left.detach().mT @ grad.mT).mul_(scale)
    of_x = (inner.mT @ right.detach().mT).to(x.dtype) if needs[0] else None
    pairs = [
        (side, cotangent)
        for side, cotangent in (
            (left, lambda: (channels @ grad).mul_(scale).mT),
            (right, lambda: (inner @ x.to(grad.dtype)).mT),
        )
        if side.requires_grad
    ]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not pairs:
        return [of_x, *[None] * len(leaves)]
    sides, cotangents = [side for side, _ in pairs], [make() for _, make in pairs]
    found = iter(torch.autograd.grad(sides, wanted, cotangents, materialize_grads=True))
    return [of_x, *[next(found) if leaf.requires_grad else None for leaf in leaves]]
