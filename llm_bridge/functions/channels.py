"""Updates that act through a few channels, added in place: backward keeps the input and, if they are few, these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .applied import add_applied, applied, gradients_again
from .thin import own_types

__all__ = ["add_channels"]

# Channels are kept for backward where they are at most this part of the input; else they are computed again.
KEPT = 1 / 8


def add_channels(out: Tensor, x: Tensor, form: Any, tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """``out + scale x F^T`` in place of ``out``, for a form of `lowrank_sp.parameterizations.Channels`.

    Nothing of the size of the output is formed beside it: the last product adds to the blocks of ``out`` where they
    lie. For backward it keeps ``x``, the tensors, and the channels if they are few; the factors for the blocks are
    made again from the tensors.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    form : type of Channels
    tensors : tuple of Tensor
        Its arrays, which are rounded to the type of ``out`` for the products.
    scale : float
    """
    if torch.compiler.is_compiling():
        return out.add(applied(form, x.to(out.dtype), *tensors), alpha=scale)
    if not out.is_contiguous():  # a hook may have returned any layout, whose blocks are no view
        return add_applied(out, x, form, tensors, scale)
    return _AddChannels.apply(out, x, form, scale, *tensors)


class _AddChannels(Function):
    @staticmethod
    def forward(ctx, out, x, form, scale, *tensors):
        with own_types(out):
            point = form(*[t.to(out.dtype) for t in tensors])
            narrow, widen = point.narrow(), point.widen()
            thin = narrow @ _blocks(x.to(out.dtype), narrow.shape).mT
            _blocks(out, widen.mT.shape).baddbmm_(point.mix(thin).mT, widen.mT, alpha=scale)
        ctx.form, ctx.scale, ctx.few = form, scale, thin.numel() <= KEPT * x.numel()
        ctx.mark_dirty(out)
        ctx.save_for_backward(*([thin] if ctx.few else []), x, *tensors)
        return out

    @staticmethod
    def backward(ctx, grad):
        *kept, x = ctx.saved_tensors[: 1 + ctx.few]
        saved = x, *ctx.saved_tensors[1 + ctx.few :]
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            found = gradients_again(ctx.form, grad, saved, needs, ctx.scale)
        else:
            with own_types(grad):
                found = _gradients(ctx.form, grad, kept, saved, needs, ctx.scale)
        return grad, found[0], None, None, *found[1:]


def _blocks(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows (k, n) as blocks (J, k n / (J q), q) for factors of a ``shape`` (J, R, q); a view if contiguous."""
    return rows.reshape(-1, shape[0], shape[2]).transpose(0, 1)


def _gradients(
    form: Any, grad: Tensor, kept: Sequence[Tensor], saved: Sequence[Tensor], needs: Sequence[bool], scale: float
) -> list[Tensor | None]:
    """Products with activations by hand, and what is as small as the factors or the channels by autograd."""
    x, tensors = saved[0].to(grad.dtype), saved[1:]
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs[1:], strict=True)]
    with torch.enable_grad():
        point = form(*[t.to(grad.dtype) for t in leaves])
        narrow, widen = point.narrow(), point.widen()
    blocks, of_out = _blocks(x, narrow.shape), _blocks(grad, widen.mT.shape)
    thin = (kept[0] if kept else narrow.detach() @ blocks.mT).detach().requires_grad_()
    with torch.enable_grad():
        mixed = point.mix(thin)
    of_mixed = (widen.detach().mT @ of_out.mT).mul_(scale)
    of_thin, *first = _pulled([mixed], [of_mixed], [thin, *leaves])
    assert of_thin is not None
    of_x = _input_gradient(of_thin, narrow.detach(), saved[0]) if needs[0] else None
    sides = [(mixed.detach() @ of_out).mul_(scale).mT, of_thin @ blocks]
    second = _pulled([widen, narrow], sides, leaves)
    return [of_x, *[_sum(a, b, leaf) for a, b, leaf in zip(first, second, leaves, strict=True)]]


def _pulled(outputs: list[Tensor], grads: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients in those inputs that have one."""
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    wanted = [t for t in inputs if t.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    return [next(found) if t.requires_grad else None for t in inputs]


def _sum(a: Tensor | None, b: Tensor | None, leaf: Tensor) -> Tensor | None:
    if not leaf.requires_grad:
        return None
    parts = [t for t in (a, b) if t is not None]
    return sum(parts[1:], start=parts[0]) if parts else torch.zeros_like(leaf)


def _input_gradient(of_thin: Tensor, narrow: Tensor, x: Tensor) -> Tensor:
    """Of the rows (k, n), written block by block where it belongs."""
    of_x = narrow.new_empty(x.shape)
    torch.bmm(of_thin.mT, narrow, out=_blocks(of_x, narrow.shape))
    return of_x.to(x.dtype)
