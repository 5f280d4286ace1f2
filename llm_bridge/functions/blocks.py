"""Products of rows of activations with block diagonal matrices, and frozen layers whose input meets one first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..precision import precise
from .thin import own_types

__all__ = ["block_products", "times_blocks", "turned_linear"]

# Products with narrower blocks take a processor as long: narrow ones are put together into blocks of this side.
NARROW = 16


def times_blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """Rows ``x`` (k, n) times the transposed block diagonal matrix of ``blocks`` (g, b, b): rows again.

    Keeps nothing for backward but ``x`` and the blocks.

    Parameters
    ----------
    x : Tensor (k, n)
        n = g b.
    blocks : Tensor (g, b, b)
        Of the type of ``x``.
    """
    if torch.compiler.is_compiling():
        return (_cut(x, blocks.shape[0]) @ blocks.mT).transpose(0, 1).reshape(x.shape)
    return _TimesBlocks.apply(x, blocks)


def block_products(a: Tensor, b: Tensor, count: int) -> Tensor:
    """The ``count`` diagonal blocks of ``a^T b`` for rows ``a`` and ``b`` (k, n): (count, n / count, n / count)."""
    if torch.compiler.is_compiling():
        return _cut(a, count).mT @ _cut(b, count)
    return _BlockProducts.apply(a, b, count)


class _TimesBlocks(Function):
    @staticmethod
    def forward(x, blocks):
        with torch.autocast(x.device.type, enabled=False):
            wide = _widened(blocks)
            return torch.bmm(_cut(x, len(wide)), wide.mT).transpose(0, 1).reshape(x.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, blocks = ctx.saved_tensors
        needs_x, needs_blocks = ctx.needs_input_grad
        of_x = times_blocks(grad, blocks.mT) if needs_x else None
        return of_x, block_products(grad, x, len(blocks)) if needs_blocks else None


class _BlockProducts(Function):
    @staticmethod
    def forward(a, b, count):
        with torch.autocast(a.device.type, enabled=False):
            wide = count // _together(a.shape[1] // count, count)
            return _narrowed(torch.bmm(_cut(a, wide).mT, _cut(b, wide)), count)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, _ = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        needs_a, needs_b, _ = ctx.needs_input_grad
        return times_blocks(b, grad) if needs_a else None, times_blocks(a, grad.mT) if needs_b else None, None


# before a frozen layer --------------------------------------------------------------------------------------------


def turned_linear(
    x: Tensor, source: Callable[[], Tensor], bias: Tensor | None, form: Any, tensors: tuple[Tensor, ...]
) -> Tensor:
    """``x P^T W^T + bias`` for a block diagonal rotation P, the point ``form(*tensors)``.

    The blocks are made in at least single precision. Beside ``x`` they are kept where the form has a closed gradient
    for them; else nothing is, and they are made again in backward. With more tokens than the layer has outputs the
    blocks turn the weight rather than the activations, except in half precision, where that would round small angles
    away.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    form : type of Multiplicative
        That is ``blocky`` for k rows, with orthogonal ``blocks``.
    tensors : tuple of Tensor
        Its arrays.
    """
    return _TurnedLinear.apply(x, None if bias is None else bias.to(x.dtype), source, form, *tensors)


class _TurnedLinear(Function):
    # Products with activations as columns, which cost least: a narrow block times long columns.

    @staticmethod
    def forward(ctx, x, bias, source, form, *tensors):
        with own_types(x):
            blocks = _blocks(form, tensors, x)
            wide, weight = _widened(blocks.to(x.dtype)), source().to(x.dtype)
            if _turns_weight(x, weight):
                out = F.linear(x, _turned(weight, wide), bias)
            else:
                turned = torch.bmm(wide, _cut(x, len(wide)).mT).flatten(0, 1).mT
                out = F.linear(turned, weight, bias)
        ctx.source, ctx.form = source, form
        ctx.save_for_backward(x, blocks if form.closed else None, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, blocks, *tensors = ctx.saved_tensors
        needs_x, needs_bias, _, _, *needs = ctx.needs_input_grad
        again = torch.is_grad_enabled()
        with own_types(grad):
            leaves = tensors
            if again or blocks is None:
                leaves = tensors if again else _leaves(tensors, needs)
                with torch.enable_grad():
                    blocks = _blocks(ctx.form, leaves, x)
            weight = ctx.source().to(grad.dtype)
            if again:
                inner = grad @ weight
                of_x = times_blocks(inner, blocks.mT.to(inner.dtype)) if needs_x else None
                cotangent = block_products(inner, x, len(blocks)) if any(needs) else None
            else:
                of_x, cotangent = _turned_back(grad, weight, x, blocks.detach(), needs_x, any(needs))
            found = _pulled(ctx.form, leaves, needs, blocks, cotangent)
        return of_x, grad.sum(0) if needs_bias else None, None, None, *found


def _turns_weight(x: Tensor, weight: Tensor) -> bool:
    """Whether to turn the weight, which then is also written and read once more, is cheaper than to turn the rows."""
    return x.dtype in (torch.float32, torch.float64) and 4 * weight.shape[0] <= 3 * x.shape[0]


def _turned(rows: Tensor, blocks: Tensor) -> Tensor:
    """Rows times the block diagonal matrix, in memory of their own."""
    out = rows.new_empty(rows.shape)
    torch.bmm(_cut(rows, len(blocks)), blocks, out=_cut(out, len(blocks)))
    return out


def _turned_back(
    grad: Tensor, weight: Tensor, x: Tensor, blocks: Tensor, needs_x: bool, needs_blocks: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the rows and of the blocks from that of the output."""
    wide, of_x, of_blocks = _widened(blocks.to(grad.dtype)), None, None
    count = len(wide)
    if _turns_weight(x, weight):
        of_x = grad @ _turned(weight, wide)
        if needs_blocks:  # of ``grad W = of_x P^T``
            of_blocks = torch.bmm(wide, torch.bmm(_cut(of_x, count).mT, _cut(x, count)))
    else:
        inner = weight.mT @ grad.mT
        if needs_blocks:  # first, while what it reads is near
            of_blocks = torch.bmm(_cut(inner.mT, count).mT, _cut(x, count))
        of_x = _turned(inner.mT, wide) if needs_x else None
    return of_x, None if of_blocks is None else _narrowed(of_blocks, len(blocks))


def _leaves(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]


def _pulled(
    form: Any, leaves: Sequence[Tensor], needs: Sequence[bool], blocks: Tensor, cotangent: Tensor | None
) -> list[Tensor | None]:
    """Gradients of the arrays from that of the blocks: by the form where it can, else through the graph."""
    if cotangent is None:
        return [None] * len(needs)
    if not blocks.requires_grad:
        found = form.pull_blocks(blocks, cotangent.to(blocks.dtype))
        return [g.to(t.dtype) if need else None for g, t, need in zip(found, leaves, needs, strict=True)]
    wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
    cotangent = cotangent.to(blocks.dtype)
    grads = iter(torch.autograd.grad(blocks, wanted, cotangent, create_graph=torch.is_grad_enabled()))
    return [next(grads) if need else None for need in needs]


def _blocks(form: Any, tensors: Any, x: Tensor) -> Tensor:
    """Of the point, in at least single precision."""
    return form(*map(precise, tensors)).blocks(len(x))


# blocks -----------------------------------------------------------------------------------------------------------


def _cut(rows: Tensor, count: int) -> Tensor:
    """Rows (k, n) as blocks (count, k, n / count); a view if contiguous."""
    return rows.view(rows.shape[0], count, rows.shape[1] // count).transpose(0, 1)


def _together(side: int, count: int) -> int:
    """How many of ``count`` blocks are put together: as few as reach `NARROW`, a divisor of their number."""
    wanted = 1
    while side * wanted < NARROW:
        wanted *= 2
    return gcd(wanted, count)


def _widened(blocks: Tensor) -> Tensor:
    """The same block diagonal matrix with wider blocks where these are narrow."""
    count, side, _ = blocks.shape
    together = _together(side, count)
    if together == 1:
        return blocks
    wide = blocks.new_zeros(count // together, together, side, together, side)
    wide.diagonal(dim1=1, dim2=3).copy_(blocks.unflatten(0, (-1, together)).permute(0, 2, 3, 1))
    return wide.view(-1, together * side, together * side)


def _narrowed(wide: Tensor, count: int) -> Tensor:
    """The ``count`` diagonal blocks of wider ones: what `_widened` put together."""
    together = count // len(wide)
    if together == 1:
        return wide
    parts = wide.unflatten(2, (together, -1)).unflatten(1, (together, -1))
    return parts.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 1).contiguous()
