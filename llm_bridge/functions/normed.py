"""Thin updates of normed directions less their start, added in place: backward keeps the input and the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .applied import laid_out, pulled_back
from .thin import beside, own_types

__all__ = ["add_normed"]


def add_normed(out: Tensor, x: Tensor, point: Any, start: Any, scale: float) -> Tensor:
    """``out + scale x (F - F_0)^T`` in place of ``out``, for two points of `lowrank_sp.parameterizations.DeLoRA`.

    With ``F = A R^T`` for ``A = L diag(d)``, ``d_i = l / (r |x_i| |y_i|)`` and ``R = diag(w) Y``, the difference is
    ``-(A_0 - A) R^T - A_0 (R_0 - R)^T``, exactly zero as long as nothing has moved. For backward it keeps ``x``, the
    channels ``x [R, R_0 - R]`` and the 2 r lengths and d; the sides are put together again.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    point, start : DeLoRA
        Of the same shape and rank; the norms and the start get no gradient. Both are rounded to the type of ``out``
        for the products.
    scale : float
    """
    return _AddNormed.apply(out, x, type(point), scale, *point.arrays(), *start.arrays())


class _AddNormed(Function):
    @staticmethod
    def forward(ctx, out, x, form, scale, *arrays):
        with own_types(out):
            lengths, shares = _shares(arrays)
            left, right = _sides(arrays, shares, out.dtype)
            channels = right.mT @ x.to(out.dtype).mT
            ctx.form, ctx.scale, ctx.rank = form, scale, arrays[0].shape[1]
            out.addmm_(channels.mT, left.mT, alpha=-scale / ctx.rank)
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, channels, lengths, shares, *arrays)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, channels, lengths, shares, *arrays = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:7]
        with own_types(grad):
            if torch.is_grad_enabled():
                found = _again(ctx, grad, x, arrays, needs)
            else:
                found = _gradients(ctx, grad, x, channels, lengths, shares, arrays, needs)
        return grad, found[0], None, None, *found[1:], *(None,) * 5


def _shares(arrays: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lengths of the columns (2 points, 2 sides, r), away from zero, and ``r d`` (2 points, r)."""
    left, right, strength, _, left0, right0, strength0, _ = arrays
    lengths = left.new_empty(2, 2, left.shape[1])
    for sides, into in zip(((left, right), (left0, right0)), lengths, strict=True):
        for side, length in zip(sides, into, strict=True):
            torch.linalg.vector_norm(side, dim=0, out=length)
    # Far enough from zero that l over two of them is finite, and so is what that is times zero.
    shares = lengths.clamp_min_(torch.finfo(lengths.dtype).tiny ** 0.4).prod(1)
    torch.div(strength, shares[0], out=shares[0])
    torch.div(strength0, shares[1], out=shares[1])
    return lengths, shares


def _sides(arrays: Sequence[Tensor], shares: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``r [A_0 - A, A_0]`` and ``[R, R_0 - R]``; the differences are rounded once they have been taken."""
    left, right, _, norms, left0, right0, _, norms0 = arrays
    rank = left.shape[1]
    lefts, rights = (side.new_empty(len(side), 2 * rank, dtype=dtype) for side in (left, right))
    first = left0 * shares[1]
    torch.sub(first, left * shares[0], out=lefts[:, :rank])
    lefts[:, rank:].copy_(first)
    weighted = right * norms[:, None]
    rights[:, :rank].copy_(weighted)
    torch.sub(right0 * norms0[:, None], weighted, out=rights[:, rank:])
    return lefts, rights


def _gradients(
    ctx: Any, grad: Tensor, x: Tensor, channels: Tensor, lengths: Tensor, shares: Tensor, arrays: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    left, right, _, norms, *_ = arrays
    scale, rank = ctx.scale / ctx.rank, ctx.rank
    lefts, rights = _sides(arrays, shares, grad.dtype)
    inner = (lefts.mT @ grad.mT).mul_(-scale)
    of_x = (inner.mT @ rights.mT).to(x.dtype) if needs[0] else None
    if not any(needs[1:]):
        return [of_x, None, None, None]
    of_a = laid_out(channels[:rank] @ grad, left).mul_(scale)
    along = (of_a * left).sum(0)  # the gradient of r d
    pulls = along * shares[0] / lengths[0].square()  # of the lengths, over these
    of_left = of_right = of_strength = None
    if needs[1]:
        of_left = (of_a * shares[0]).addcmul_(left, pulls[0], value=-1)
    if needs[2]:
        of_r = laid_out((inner[:rank] - inner[rank:]) @ x.to(grad.dtype), right)
        of_right = (of_r * norms[:, None]).addcmul_(right, pulls[1], value=-1)
    if needs[3]:
        of_strength = (along / lengths[0].prod(0)).sum(0, keepdim=True)
    return [of_x, of_left, of_right, of_strength]


def _again(ctx: Any, grad: Tensor, x: Tensor, arrays: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """By automatic differentiation of the definition, where a second derivative is wanted."""
    _, _, _, norms, *start = arrays

    def change(x: Tensor, *moving: Tensor) -> Tensor:
        left, right = beside(*ctx.form(*moving, norms).product(), *ctx.form(*start).product())
        return ctx.scale * (x.to(grad.dtype) @ right.to(grad.dtype)) @ left.to(grad.dtype).mT

    return pulled_back(change, grad, [x, *arrays[:3]], needs)
