"""Updates of any form added in place: backward keeps the input, and applies them once more for what lies between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .thin import own_types

__all__ = ["add_applied", "applied", "gradients_again", "laid_out", "pulled_back"]


def applied(form: Any, x: Tensor, *tensors: Tensor) -> Tensor:
    """``x F^T`` for the point with these arrays, computed in the type of ``x``; indices stay what they are."""
    return form(*[t.to(x.dtype) if t.is_floating_point() else t for t in tensors]).apply(x)


def add_applied(out: Tensor, x: Tensor, form: Any, tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """``out + scale x F^T`` in place of ``out``.

    For backward it keeps ``x`` and ``tensors`` and applies the form once more, so that nobody keeps what lies
    between. That costs as much as the forward pass of the update, which is small beside the layer.

    Parameters
    ----------
    out : Tensor (k, m)
        That nobody else needs any more.
    x : Tensor (k, n)
    form : type of MatrixFactors
    tensors : tuple of Tensor
        Its arrays.
    scale : float
    """
    if torch.compiler.is_compiling():
        return out.add(applied(form, x.to(out.dtype), *tensors), alpha=scale)
    return _AddApplied.apply(out, x, form, scale, *tensors)


class _AddApplied(Function):
    @staticmethod
    def forward(ctx, out, x, form, scale, *tensors):
        ctx.form, ctx.scale = form, scale
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, *tensors)
        with own_types(out):
            return out.add_(applied(form, x.to(out.dtype), *tensors), alpha=scale)

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]
        found = gradients_again(ctx.form, grad, ctx.saved_tensors, needs, ctx.scale)
        return grad, found[0], None, None, *found[1:]


def gradients_again(
    form: Any, grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool], scale: float
) -> list[Tensor | None]:
    """Gradients of ``scale <grad, x F^T>`` in the saved ``x, *tensors``, where needed, by applying F again.

    Where a second derivative is wanted, what was saved stays in its graph.
    """
    found = pulled_back(lambda x, *tensors: applied(form, x.to(grad.dtype), *tensors), grad, saved, needs)
    return found if scale == 1 else [None if f is None else f * scale for f in found]


def laid_out(rows: Tensor, like: Tensor) -> Tensor:
    """The transpose of a gradient (r, m) in the type and layout of its factor, so that nobody copies it again."""
    return rows.mT.to(like.dtype, memory_format=torch.contiguous_format)


def pulled_back(
    function: Callable[..., Tensor], grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of ``<grad, function(*saved)>`` in what was saved, where needed, by automatic differentiation.

    Where a second derivative is wanted, that is, where gradients are enabled, what was saved stays in its graph.
    """
    again = torch.is_grad_enabled()
    inputs = saved if again else [t.detach().requires_grad_(need) for t, need in zip(saved, needs, strict=True)]
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    if not wanted:
        return [None] * len(needs)
    with torch.enable_grad(), own_types(grad):
        output = function(*inputs)
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=again, materialize_grads=True))
    return [next(found) if need else None for need in needs]
