"""Updates through tanh and splines of a few channels, added in place: backward keeps the input and some channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .applied import applied, laid_out, pulled_back
from .thin import own_types

__all__ = ["GRID", "ORDER", "add_splines", "spline_basis"]

GRID, ORDER = 5, 3  # intervals of [-1, 1], and the degree of the pieces
PER_UNIT = GRID / 2


def spline_basis(h: Tensor) -> Tensor:
    """Cubic B-splines on five equal intervals of [-1, 1] at every entry of ``h`` (...): an array (..., 8).

    At the distance v from its centre, in intervals, each is ``((2 - v)_+^3 - 4 (1 - v)_+^3) / 6``, the closed form for
    equal intervals of the recursion of Cox and de Boor; zero outside of the extended grid.
    """
    _, wide, narrow = _hats(h, _centers(h))
    return _sixfold(wide, narrow) / 6


def _centers(like: Tensor) -> Tensor:
    """Of the splines, in intervals."""
    first = -(ORDER - 1) / 2 - PER_UNIT
    return torch.arange(first, first + GRID + ORDER, dtype=like.dtype, device=like.device)


def _hats(h: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the centres are from every entry, and ``(2 - v)_+`` and ``(1 - v)_+``, arrays (..., 8)."""
    away = torch.sub(centers, h[..., None], alpha=PER_UNIT)
    wide = (2 - away.abs()).relu()
    return away, wide, F.softshrink(wide, 1.0)


def _sixfold(wide: Tensor, narrow: Tensor) -> Tensor:
    """Six times the splines."""
    return torch.sub(wide**3, narrow**3, alpha=4)


def add_splines(out: Tensor, x: Tensor, point: Any, scale: float) -> Tensor:
    """``out + scale f(x A) B`` in place of ``out``, for a point of `llm_bridge.nonlinear.Aurora`.

    What happens in the r channels has the type of their parameters, and its derivatives are written out. For backward
    it keeps ``x``, the channels before and after, and tanh in between: 3 r numbers for every row.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    point : Aurora
        Whose outer factors are rounded to the type of ``out`` for the products.
    scale : float
    """
    return _AddSplines.apply(out, x, type(point), scale, *point.arrays())


class _AddSplines(Function):
    # Channels are rows here, (r, k), so that thin factors stand on the left of products, where they are fastest.

    @staticmethod
    def forward(ctx, out, x, form, scale, *arrays):
        left, right, core, splines = arrays
        with own_types(out):
            inside = (right.to(out.dtype).mT @ x.to(out.dtype).mT).to(core.dtype)
            smooth = (core.mT @ inside.tanh()).tanh_()
            centers = _centers(inside)
            basis = _sixfold(*_hats(inside, centers)[1:])
            sums = torch.baddbmm(smooth[..., None], basis, splines[..., None], alpha=1 / 6)[..., 0]
            outside = sums.to(out.dtype)
            out.addmm_(outside.mT, left.to(out.dtype).mT, alpha=scale)
        ctx.form, ctx.scale = form, scale
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, inside, smooth, outside, centers, *arrays)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, inside, smooth, outside, centers, *arrays = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]
        with own_types(grad):
            if torch.is_grad_enabled():
                found = _again(ctx, grad, (x, *arrays), needs)
            else:
                found = _gradients(ctx, grad, x, (inside, smooth, outside, centers), arrays, needs)
        return grad, found[0], None, None, *found[1:]


def _gradients(
    ctx: Any, grad: Tensor, x: Tensor, channels: Sequence[Tensor], arrays: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    (inside, smooth, outside, centers), (left, right, core, splines) = channels, arrays
    of_outside = _times(left.to(grad.dtype).mT, grad.mT, ctx.scale).to(core.dtype)
    of_inside, of_core, of_splines = _through(of_outside, inside, smooth, centers, core, splines)
    of_inside = of_inside.to(grad.dtype)
    of_x = (of_inside.mT @ right.to(grad.dtype).mT).to(x.dtype) if needs[0] else None
    of_left = laid_out(_times(outside, grad, ctx.scale), left) if needs[1] else None
    of_right = laid_out(of_inside @ x.to(grad.dtype), right) if needs[2] else None
    return [of_x, of_left, of_right, of_core if needs[3] else None, of_splines if needs[4] else None]


def _through(
    grad: Tensor, inside: Tensor, smooth: Tensor, centers: Tensor, core: Tensor, splines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the channels (r, k) before, of the matrix between the two tanh and of the weights of the splines."""
    backward, first = torch.ops.aten.tanh_backward, inside.tanh()
    of_second = backward(grad, smooth)
    of_inside = backward(core @ of_second, first)
    away, wide, narrow = _hats(inside, centers)
    squares = wide * wide, narrow * narrow
    # Splines fall with the distance, so that the difference of squares has one sign.
    slopes = torch.sub(*squares, alpha=4).copysign_(away)
    of_inside.addcmul_((slopes @ splines[..., None])[..., 0], grad, value=PER_UNIT / 2)
    basis = torch.sub(squares[0].mul_(wide), squares[1].mul_(narrow), alpha=4)
    of_splines = torch.baddbmm(splines[..., None], basis.mT, grad[..., None], beta=0, alpha=1 / 6)[..., 0]
    return of_inside, first @ of_second.mT, of_splines


def _times(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale a b``, in one operation."""
    return torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=scale)


def _again(ctx: Any, grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """By automatic differentiation of the definition, where a second derivative is wanted."""

    def change(x: Tensor, *arrays: Tensor) -> Tensor:
        return ctx.scale * applied(ctx.form, x.to(grad.dtype), *arrays)

    return pulled_back(change, grad, saved, needs)
