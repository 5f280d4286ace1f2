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
            return (_cut(x, len(wide)) @ wide.mT).transpose(0, 1).reshape(x.shape)

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
            together = _together(a.shape[1] // count, count)
            wide = _cut(a, count // together).mT @ _cut(b, count // together)
            parts = wide.unflatten(2, (together, -1)).unflatten(1, (together, -1))
            return parts.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 1).contiguous()

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
    """``x P^T W^T + bias`` for a block diagonal P, the point ``form(*tensors)``.

    The blocks are made in at least single precision. Beside ``x`` they are kept where the form has a closed gradient
    for them; else nothing is, and they are made again in backward.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    form : type of Multiplicative
        Whose ``blocks`` are not None for k rows.
    tensors : tuple of Tensor
        Its arrays.
    """
    return _TurnedLinear.apply(x, None if bias is None else bias.to(x.dtype), source, form, *tensors)


class _TurnedLinear(Function):
    @staticmethod
    def forward(ctx, x, bias, source, form, *tensors):
        with torch.autocast(x.device.type, enabled=False):
            blocks = _blocks(form, tensors, x)
            wide = _widened(blocks.to(x.dtype))
            # As columns, which need not be moved for the product: a narrow block times long columns.
            turned = (wide @ _cut(x, len(wide)).mT).reshape(x.shape[1], len(x)).mT
            out = F.linear(turned, source().to(x.dtype), bias)
        ctx.source, ctx.form = source, form
        ctx.save_for_backward(x, blocks if form.closed else None, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, blocks, *tensors = ctx.saved_tensors
        needs_x, needs_bias, _, _, *needs = ctx.needs_input_grad
        again = torch.is_grad_enabled()
        with torch.autocast(grad.device.type, enabled=False):
            leaves = tensors
            if again or blocks is None:
                leaves = tensors if again else _leaves(tensors, needs)
                with torch.enable_grad():
                    blocks = _blocks(ctx.form, leaves, x)
            inner = grad @ ctx.source().to(grad.dtype)
            cotangent = block_products(inner, x, len(blocks)).to(blocks.dtype) if any(needs) else None
            of_x = None
            if needs_x:
                turn = times_blocks if again else _turn
                of_x = turn(inner, blocks.mT.to(inner.dtype))
            found = _pulled(ctx.form, leaves, needs, blocks, cotangent)
        return of_x, grad.sum(0) if needs_bias else None, None, None, *found


def _leaves(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]


def _pulled(
    form: Any, leaves: Sequence[Tensor], needs: Sequence[bool], blocks: Tensor, cotangent: Tensor | None
) -> list[Tensor | None]:
    """Gradients of the arrays from that of the blocks: by the form where it can, else through the graph."""
    if cotangent is None:
        return [None] * len(needs)
    if not blocks.requires_grad:
        found = form.pull_blocks(blocks, cotangent)
        return [g.to(t.dtype) if need else None for g, t, need in zip(found, leaves, needs, strict=True)]
    wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
    grads = iter(torch.autograd.grad(blocks, wanted, cotangent, create_graph=torch.is_grad_enabled()))
    return [next(grads) if need else None for need in needs]


def _blocks(form: Any, tensors: Any, x: Tensor) -> Tensor:
    """Of the point, in at least single precision."""
    return form(*map(precise, tensors)).blocks(len(x))


def _turn(rows: Tensor, blocks: Tensor) -> Tensor:
    """`times_blocks` in place of the rows, which nobody else needs."""
    wide = _widened(blocks.detach())
    parts = _cut(rows, len(wide))
    return parts.copy_(parts @ wide.mT).transpose(0, 1).reshape(rows.shape)


# blocks -----------------------------------------------------------------------------------------------------------


def _cut(rows: Tensor, count: int) -> Tensor:
    """Rows (k, n) as blocks (count, k, n / count); a view if contiguous."""
    return rows.unflatten(1, (count, -1)).transpose(0, 1)


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
