"""Differentiable operations that keep less for backward than automatic differentiation would.

Under ``torch.compile`` callers use plain operations instead: the compiler makes the same choices by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = [
    "add_thin",
    "beside",
    "compute_dtype",
    "narrowed",
    "outer",
    "own_types",
    "rebuilt_linear",
    "rescale",
    "rescaled_linear",
]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type in which a linear layer multiplies ``x``: that of autocast where it is on, else that of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def own_types(x: Tensor) -> AbstractContextManager[Any]:
    """Where products have the type of what they multiply, whatever autocast says; costs nothing where that is off."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


# rescaling of outputs -----------------------------------------------------------------------------------------


def rescale(out: Tensor, vector: Tensor, bias: Tensor | None) -> Tensor:
    """``(out - bias) * vector + bias`` in place of ``out``; it keeps the result, which the next layer may keep too.

    The gradient of ``vector`` needs ``out - bias``, which is ``(result - bias) / vector``; where an entry of
    ``vector`` is zero, so is its gradient. As ``out * vector + bias (1 - vector)`` it is ``out`` itself, bit by bit,
    where the vector is one.

    Parameters
    ----------
    out : Tensor
        That nobody else needs any more.
    vector, bias : Tensor
        Shaped to be broadcast over ``out``; the bias may be missing.
    """
    if torch.compiler.is_compiling():
        return out * vector if bias is None else out * vector + bias * (1 - vector)
    return _Rescale.apply(out, vector, bias)


class _Rescale(Function):
    @staticmethod
    def forward(out, vector, bias):
        out.mul_(vector)
        return out if bias is None else out.add_(bias * (1 - vector))

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, vector, bias = inputs
        ctx.mark_dirty(out)
        ctx.save_for_backward(output, vector, bias)

    @staticmethod
    def backward(ctx, grad):
        result, vector, bias = ctx.saved_tensors
        needs_out, needs_vector, needs_bias = ctx.needs_input_grad
        total = grad.sum_to_size(vector.shape) if bias is not None else None
        of_vector = None
        if needs_vector:
            product = (grad * result).sum_to_size(vector.shape)
            if bias is not None:
                product = product - bias * total
            of_vector = product / vector.masked_fill(vector == 0, torch.inf)
        of_bias = total * (1 - vector) if needs_bias and total is not None else None
        return grad * vector if needs_out else None, of_vector, of_bias


# low-rank products ----------------------------------------------------------------------------------------------
#
# Every product with a thin factor has the factor, transposed, on the left: (r, n) by (n, k). On CPUs that is up to
# four times faster than (k, n) by (n, r), and automatic differentiation would choose the slow order in backward.


def add_thin(out: Tensor, x: Tensor, factors: tuple[Tensor, ...], scale: float) -> Tensor:
    """``out + scale x (R L^T - R_0 L_0^T)`` in place of ``out``, for factors ``(L, R)`` or ``(L, R, L_0, R_0)``.

    For backward it keeps ``x`` and the r channels ``x R``. The pairs are put side by side for one product each,
    again in backward.

    Parameters
    ----------
    out : Tensor (k, m)
    x : Tensor (k, n)
    factors : tuple of Tensor
        ``L`` and ``L_0`` (m, r), ``R`` and ``R_0`` (n, r); ``L_0`` and ``R_0`` do not train. They are rounded to
        the type of ``out`` for the products.
    scale : float
    """
    if torch.compiler.is_compiling():
        left, right = _beside(factors, out.dtype)
        return out.addmm(x.to(out.dtype) @ right, left.mT, alpha=scale)
    left0, right0 = factors[2:] or (None, None)
    return _AddThin.apply(out, x, *factors[:2], left0, right0, scale)[0]


def _beside(factors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``L`` and ``R``; with a start ``[L - L_0, L_0]`` and ``[R, R - R_0]``, which vanish where nothing moved."""
    left, right, *start = factors
    if start:
        left, right = beside(left, right, *start)
    return left.to(dtype), right.to(dtype)


def beside(left: Tensor, right: Tensor, left0: Tensor, right0: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of ``L R^T - L_0 R_0^T`` without cancellation: exactly zero as long as nothing has moved."""
    return torch.cat((left - left0, left0), -1), torch.cat((right, right - right0), -1)


def _of_left(inner: Tensor, rank: int) -> Tensor:
    """``L^T g^T`` (r, k) from the products with both parts of `_beside`."""
    return inner if len(inner) == rank else inner[:rank] + inner[rank:]


class _AddThin(Function):
    # The channels are a second output that nobody uses, so that a second derivative finds what they came from.

    @staticmethod
    def forward(out, x, left, right, left0, right0, scale):
        with torch.autocast(out.device.type, enabled=False):
            wide_left, wide_right = _beside(_pairs(left, right, left0, right0), out.dtype)
            channels = wide_right.mT @ x.to(out.dtype).mT
            return out.addmm_(channels.mT, wide_left.mT, alpha=scale), channels[: left.shape[1]]

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, x, left, right, left0, right0, ctx.scale = inputs
        ctx.mark_dirty(out)
        ctx.set_materialize_grads(False)
        rows = x if ctx.needs_input_grad[3] else None  # without a gradient of R, nobody asks for x
        ctx.save_for_backward(rows, output[1], left, right, left0, right0)
        ctx.dtypes = x.dtype, out.dtype

    @staticmethod
    def backward(ctx, grad, of_channels):
        rows, channels, left, right, left0, right0 = ctx.saved_tensors
        _, needs_x, needs_left, needs_right, *_ = ctx.needs_input_grad
        x_dtype, dtype = ctx.dtypes
        if grad is None and of_channels is None:
            return None, None, None, None, None, None, None
        wide_left, wide_right = _beside(_pairs(left, right, left0, right0), dtype)
        inner = 0.0 if grad is None else (wide_left.mT @ grad.mT) * ctx.scale
        if of_channels is not None:
            padding = of_channels.new_zeros(wide_left.shape[1] - left.shape[1], of_channels.shape[1])
            inner = inner + torch.cat((of_channels, padding))
        assert isinstance(inner, Tensor)
        of_x = (inner.mT @ wide_right.mT).to(x_dtype) if needs_x else None
        of_left = _left_gradient(channels, grad, ctx.scale, left) if needs_left and grad is not None else None
        of_right = (_of_left(inner, right.shape[1]) @ rows.to(dtype)).mT.to(right.dtype) if needs_right else None
        return grad, of_x, of_left, of_right, None, None, None


def _left_gradient(channels: Tensor, grad: Tensor, scale: float, left: Tensor) -> Tensor:
    return ((channels @ grad) * scale).mT.to(left.dtype)


def _pairs(left: Tensor, right: Tensor, left0: Tensor | None, right0: Tensor | None) -> tuple[Tensor, ...]:
    return (left, right) if left0 is None or right0 is None else (left, right, left0, right0)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """``L R^T`` (m, n) of factors (m, r) and (n, r)."""
    return left @ right.mT if torch.compiler.is_compiling() else _Outer.apply(left, right)


class _Outer(Function):
    @staticmethod
    def forward(left, right):
        return left @ right.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        # autocast may have cast the factors for the product, whose type the gradient has
        of_left = (right.mT.to(grad.dtype) @ grad.mT).mT.to(left.dtype) if needs_left else None
        return of_left, (left.mT.to(grad.dtype) @ grad).mT.to(right.dtype) if needs_right else None


def narrowed(x: Tensor, right: Tensor) -> Tensor:
    """``x R`` (k, r) of activations (k, n) and a thin factor (n, r)."""
    return x @ right if torch.compiler.is_compiling() else _Narrowed.apply(x, right)


class _Narrowed(Function):
    @staticmethod
    def forward(x, right):
        return (right.mT @ x.mT).mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, right = ctx.saved_tensors
        needs_x, needs_right = ctx.needs_input_grad
        of_x = grad @ right.mT if needs_x else None
        return of_x, (grad.mT @ x).mT if needs_right else None


# a low-rank update with rescaled outputs, computed again in backward ----------------------------------------------


def rescaled_linear(
    x: Tensor, seen: Tensor, source: Callable[[], Tensor], factors: tuple[Tensor, ...], scale: float,
    vector: Tensor, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """``(x W^T + scale seen (R L^T - R_0 L_0^T)) * vector + bias``, which keeps nothing but ``x`` and ``seen``.

    The gradient of ``vector`` needs the output before it is rescaled: one more product in backward.

    Parameters
    ----------
    x, seen : Tensor (k, n)
        What the layer and what the update gets; often the same object.
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    factors : tuple of Tensor
        As for `add_thin`.
    scale : float
    vector : Tensor (m,)
    bias : Tensor (m,), optional
    """
    dtype = compute_dtype(x)
    rows, other = x.to(dtype), None if seen is x else seen.to(dtype)
    bias, vector = None if bias is None else bias.to(dtype), vector.to(dtype)
    if torch.compiler.is_compiling():
        out = add_thin(F.linear(rows, source().to(dtype), bias), rows if other is None else other, factors, scale)
        return rescale(out, vector, bias)
    left0, right0 = factors[2:] or (None, None)
    return _RescaledLinear.apply(rows, other, vector, bias, *factors[:2], left0, right0, scale, source)


class _RescaledLinear(Function):
    @staticmethod
    def forward(x, other, vector, bias, left, right, left0, right0, scale, source):
        out = _updated(x, other, _pairs(left, right, left0, right0), scale, source(), bias)[0].mul_(vector)
        return out if bias is None else out.add_(bias * (1 - vector))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, other, vector, _, *factors, ctx.scale, ctx.source = inputs
        ctx.save_for_backward(x, other, vector, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, other, vector, *factors = ctx.saved_tensors
        needs_x, needs_other, needs_vector, needs_bias, needs_left, needs_right, *_ = ctx.needs_input_grad
        left, right = factors[:2]
        weight = ctx.source().to(x.dtype)
        out, channels = _updated(x, other, _pairs(*factors), ctx.scale, weight)
        of_vector = out.mul_(grad).sum(0) if needs_vector else None
        of_bias = grad.sum(0) if needs_bias else None
        grad = grad * vector
        wide_left, wide_right = _beside(_pairs(*factors), x.dtype)
        inner = (wide_left.mT @ grad.mT).mul_(ctx.scale)
        of_x = grad @ weight if needs_x else None
        of_other = None
        if other is None and of_x is not None:
            of_x.addmm_(inner.mT, wide_right.mT)
        elif needs_other:
            of_other = inner.mT @ wide_right.mT
        of_left = _left_gradient(channels[: left.shape[1]], grad, ctx.scale, left) if needs_left else None
        rows = x if other is None else other
        of_right = (_of_left(inner, right.shape[1]) @ rows).mT.to(right.dtype) if needs_right else None
        return of_x, of_other, of_vector, of_bias, of_left, of_right, None, None, None, None


def _updated(
    x: Tensor, other: Tensor | None, factors: tuple[Tensor, ...], scale: float, weight: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output with the update, and its channels (r, k)."""
    with torch.autocast(x.device.type, enabled=False):
        out = F.linear(x, weight.to(x.dtype), bias)
        wide_left, wide_right = _beside(factors, x.dtype)
        channels = wide_right.mT @ (x if other is None else other).mT
        return out.addmm_(channels.mT, wide_left.mT, alpha=scale), channels


# one product with a rebuilt weight ------------------------------------------------------------------------------

Build = Callable[..., Tensor]


def rebuilt_linear(
    x: Tensor,
    source: Callable[[], Tensor],
    bias: Tensor | None,
    build: Build,
    tensors: tuple[Tensor, ...],
    whole: bool = True,
) -> Tensor:
    """``x V^T + bias`` with ``V = build(W, *tensors)``, which is built again in backward and never kept.

    Three products of the size of the layer instead of the two of a frozen one, and nothing kept but ``x``. In
    half precision ``V`` would lose small updates to rounding, so that there ``x W^T + x (V - W)^T`` is computed.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor, optional
    build : callable ``(W, *tensors) -> Tensor (m, n)``
        In at least single precision, differentiable in ``tensors``.
    tensors : tuple of Tensor
        What the gradient is wanted for.
    whole : bool
        Whether ``V`` is near ``W``, rather than a change of it.
    """
    dtype = compute_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    if torch.compiler.is_compiling():
        return F.linear(x.to(dtype), build(source(), *tensors).to(dtype), bias)
    split = whole and dtype in (torch.bfloat16, torch.float16)
    return _Rebuilt.apply(x.to(dtype), bias, source, build, split, *tensors)


class _Rebuilt(Function):
    @staticmethod
    def forward(x, bias, source, build, split, *tensors):
        with torch.autocast(x.device.type, enabled=False):
            weight = source()
            full = build(weight, *tensors)
            if not split:
                return F.linear(x, full.to(x.dtype), bias)
            out = F.linear(x, weight.to(x.dtype), bias)
            return out.addmm_(x, (full - weight).to(x.dtype).mT)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, ctx.source, ctx.build, _, *tensors = inputs
        ctx.save_for_backward(x, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, *tensors = ctx.saved_tensors
        needs_x, needs_bias, _, _, _, *needs = ctx.needs_input_grad
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
            full = ctx.build(ctx.source().detach(), *leaves)
        wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
        of_x = grad @ full.detach().to(grad.dtype) if needs_x else None
        of_bias = grad.sum(0) if needs_bias else None
        found = iter(torch.autograd.grad(full, wanted, (grad.mT @ x).to(full.dtype)) if wanted else ())
        return of_x, of_bias, None, None, None, *[next(found) if need else None for need in needs]
