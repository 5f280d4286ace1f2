"""Products of a trained factor and a fixed one with many columns, added to the weight or to the output."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lowrank_sp.parameterizations.sided import FixedSide
from lowrank_sp.spaces import FIXED

from ..functions import compute_dtype
from ..layers import CONV1D, LINEAR, LayerType, hooked
from .base import Additive, Combine

__all__ = ["OneSided", "channels", "fixed_left_linear", "fixed_right_linear", "formed_is_cheaper"]

_LAST = local()

# A pass over a matrix takes a processor as long as so many multiplications for each of its entries.
PASS = 40
# Up to so many columns a factor is thin.
THIN = 16


@dataclass(frozen=True)
class OneSided(Combine):
    """``W + s L R^T`` where one of the two sides is fixed and both have many columns: VeRA, RandLoRA.

    As `Additive`, for ranks that are not small beside the layer. What trains, a few numbers in the other side, is kept
    instead of the side, which is built again in backward. With more tokens than the layer has inputs or outputs
    `formed_is_cheaper` adds the product to the weight rather than to the output. The channels ``x R`` of a fixed
    right side are computed once for all layers that see the same input, and are kept in place of the input. Layers
    other than linear ones, layers with hooks or with a weight that trains, recipes that train what the form fixes, and
    dropout on the input take the way of `Additive`.
    """

    additive = True

    def forward(self, kind, layer, x, adapter):
        if not _one_sided(adapter) or not _direct(kind, layer, x, adapter):
            return Additive().forward(kind, layer, x, adapter)
        rows, point = kind.rows(layer, x).to(compute_dtype(x)), adapter.point()
        scale = adapter.scale * adapter.noise.gate(adapter.training)
        fixed = point.fixed()
        keep = adapter.noise.components(fixed.shape[1], fixed, adapter.training)

        def source() -> Tensor:
            return kind.weight(layer)

        if point.fixed_side == 0:
            out = fixed_left_linear(rows, source, layer.bias, fixed, point, keep, scale)
        else:
            seen = channels(x, rows, fixed)
            out = fixed_right_linear(rows, source, layer.bias, fixed, seen, point, keep, scale)
        return kind.restore(layer, x, out)

    def meet(self, weight, update, extras):
        return weight + update


def _one_sided(adapter: Any) -> bool:
    """Whether the form fixes a side, and the recipe trains nothing that the form fixes."""
    form = adapter.form
    fixed = (name for name, space in zip(form.names, form.spaces, strict=True) if space is FIXED)
    return issubclass(form, FixedSide) and not any(name in adapter.trains for name in fixed)


def _direct(kind: LayerType, layer: Any, x: Tensor, adapter: Any) -> bool:
    """Whether the layer is a plain frozen product that nobody watches, whose input the update sees as it is."""
    noisy = adapter.training and adapter.noise.on_input and adapter.noise.rate > 0
    plain = kind in (LINEAR, CONV1D) and layer.weight.is_floating_point() and not layer.weight.requires_grad
    watched = hooked(layer) or layer._forward_pre_hooks
    return plain and not watched and not noisy and not adapter.shifted and not torch.compiler.is_compiling()


# what layers with one input share ---------------------------------------------------------------------------------


@dataclass
class _Shared:
    """The last channels, and what they were made of; all three tensors may be gone."""

    source: weakref.ref[Tensor]
    fixed: weakref.ref[Tensor]
    state: tuple[Any, ...]
    channels: weakref.ref[Tensor]


def channels(x: Tensor, rows: Tensor, fixed: Tensor) -> Tensor:
    """``rows fixed`` (k, r) without a graph, once for all who ask in turn with the same ``x`` and the same matrix.

    Parameters
    ----------
    x : Tensor
        The input of a layer, by identity, such as the one of the query, key and value projections.
    rows : Tensor (k, n)
        The same, flat and in the type of the product.
    fixed : Tensor (n, r)
        As it is stored, of any type: a copy would be another matrix every time.
    """
    if x.is_inference() or fixed.is_inference():  # without versions, and then nobody keeps anything to share
        return rows @ fixed.to(rows.dtype)
    made_of = fixed.data_ptr(), fixed.dtype, fixed.shape, fixed.stride(), fixed._version
    state, last = (x._version, rows.dtype, *made_of), getattr(_LAST, "entry", None)
    # The address says which matrix it is as long as the one that was there is.
    if last is not None and last.source() is x and last.state == state and last.fixed() is not None:
        found = last.channels()
        if found is not None:
            return found
    with torch.no_grad():
        made = _narrowed(rows, fixed.to(rows.dtype))
    _LAST.entry = _Shared(weakref.ref(x), weakref.ref(fixed), state, weakref.ref(made))
    return made


# the two products -------------------------------------------------------------------------------------------------


def formed_is_cheaper(k: int, shape: tuple[int, int], r: int, sides: int, dtype: torch.dtype) -> bool:
    """Whether forming ``W + s L R^T`` costs no more than products of the activations with the sides.

    Forming takes ``m n r`` multiplications and a pass over the weight, and then the product with the weight does for
    both. A product of k tokens with the left side takes ``k m r``, one with the right side ``k n r``; ``sides`` adds up
    m and n for all those that the sum makes superfluous. In half precision the sum would round small updates away, so
    that it is never formed.
    """
    m, n = shape
    return dtype in (torch.float32, torch.float64) and m * n * (r + PASS) <= k * sides * r


def fixed_right_linear(
    x: Tensor, source: Callable[[], Tensor], bias: Tensor | None, right: Tensor, seen: Tensor, point: Any,
    keep: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """``x (W + scale L R^T)^T + bias`` for a point with a fixed right side ``R`` (n, r).

    Keeps the channels ``seen = x R`` (k, r), which the gradient of ``L`` needs, and not ``x``; and the sum of the
    weights where it was formed and is no larger than ``x``, the matrix that LoRA keeps.

    Parameters
    ----------
    x : Tensor (k, n)
    source : callable ``() -> Tensor (m, n)``
        W, which gets no gradient.
    bias : Tensor (m,), optional
    right, seen : Tensor (n, r), (k, r)
        The side may be of another type, and is kept as it is.
    point : FixedSide
        Of whose arrays those that move get a gradient.
    keep : Tensor (r,), optional
        A factor for every column.
    scale : float
    """
    bias = None if bias is None else bias.to(x.dtype)
    return _FixedRight.apply(x, bias, right, seen, keep, source, type(point), scale, *point.arrays())[0]


class _FixedRight(Function):
    @staticmethod
    def forward(x, bias, right, seen, keep, source, form, scale, *arrays):
        with torch.autocast(x.device.type, enabled=False):
            weight, left = source().to(x.dtype), _moving(form, arrays, keep, x.dtype)
            (k, n), m = x.shape, len(left)
            kept = m <= k
            if formed_is_cheaper(k, (m, n), right.shape[1], 2 * m + n if kept else m, x.dtype):
                full = torch.addmm(weight, left, right.to(x.dtype).mT, alpha=scale)
                return F.linear(x, full, bias), full if kept else None
            return F.linear(x, weight, bias).addmm_(seen, left.mT, alpha=scale), None

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, right, seen, keep, ctx.source, ctx.form, ctx.scale, *arrays = inputs
        if output[1] is not None:
            ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(right, seen, keep, output[1] if ctx.needs_input_grad[0] else None, *arrays)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        right, seen, keep, full, *arrays = ctx.saved_tensors
        needs_x, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            of_x = None
            if needs_x and full is not None:
                of_x = grad @ full
            elif needs_x:
                left = _moving(ctx.form, arrays, keep, grad.dtype)
                of_x = _input_gradient(ctx, grad, left, right.to(grad.dtype), None)
            found = _pulled(ctx, arrays, keep, _narrowed(grad.mT, seen).mul_(ctx.scale))
        return of_x, grad.sum(0) if needs_bias else None, *(None,) * 6, *found


def fixed_left_linear(
    x: Tensor, source: Callable[[], Tensor], bias: Tensor | None, left: Tensor, point: Any, keep: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """``x (W + scale L R^T)^T + bias`` for a point with a fixed left side ``L`` (m, r); keeps nothing but ``x``.

    The other arguments are those of `fixed_right_linear`.
    """
    bias = None if bias is None else bias.to(x.dtype)
    return _FixedLeft.apply(x, bias, left, keep, source, type(point), scale, *point.arrays())


class _FixedLeft(Function):
    @staticmethod
    def forward(x, bias, left, keep, source, form, scale, *arrays):
        with torch.autocast(x.device.type, enabled=False):
            weight, right = source().to(x.dtype), _moving(form, arrays, keep, x.dtype)
            (k, n), m, left = x.shape, len(left), left.to(x.dtype)
            if formed_is_cheaper(k, (m, n), right.shape[1], m + n, x.dtype):
                return F.linear(x, torch.addmm(weight, left, right.mT, alpha=scale), bias)
            return F.linear(x, weight, bias).addmm_(_narrowed(x, right), left.mT, alpha=scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, left, keep, ctx.source, ctx.form, ctx.scale, *arrays = inputs
        ctx.save_for_backward(x, left, keep, *arrays)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, left, keep, *arrays = ctx.saved_tensors
        needs_x, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            left = left.to(grad.dtype)
            inner, of_x = _narrowed(grad, left), None
            if needs_x:
                right = _moving(ctx.form, arrays, keep, grad.dtype)
                of_x = _input_gradient(ctx, grad, left, right, inner)
            found = _pulled(ctx, arrays, keep, _narrowed(x.mT, inner).mul_(ctx.scale))
        return of_x, grad.sum(0) if needs_bias else None, *(None,) * 5, *found


def _narrowed(a: Tensor, thin: Tensor) -> Tensor:
    """``a thin`` for (p, q) and (q, r), with the factor on the left where it is thin, which is faster on processors."""
    return a @ thin if thin.shape[1] > THIN else (thin.mT @ a.mT).mT


def _moving(form: Any, arrays: Sequence[Tensor], keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The side that trains, with the components that are kept, in the type of the product."""
    side = form(*arrays).moving()
    return (side if keep is None else side * keep).to(dtype)


def _pulled(ctx: Any, arrays: Sequence[Tensor], keep: Tensor | None, cotangent: Tensor) -> list[Tensor | None]:
    """Gradients of the arrays that need one, from that of the side."""
    needs = ctx.needs_input_grad[-len(arrays) :]
    if not any(needs):
        return [None] * len(arrays)
    point = ctx.form(*arrays)
    precise = cotangent.to(next(a.dtype for a, need in zip(arrays, needs, strict=True) if need))
    found = point.pull_moving(precise if keep is None else precise * keep)
    return [g if need else None for g, need in zip(found, needs, strict=True)]


def _input_gradient(ctx: Any, grad: Tensor, left: Tensor, right: Tensor, inner: Tensor | None) -> Tensor:
    """``grad (W + scale L R^T)`` from a sum that is formed again, or from ``inner = grad L``."""
    k, m, n = len(grad), len(left), len(right)
    weight = ctx.source().to(grad.dtype)
    if formed_is_cheaper(k, (m, n), left.shape[1], m + n if inner is None else n, grad.dtype):
        return grad @ torch.addmm(weight, left, right.mT, alpha=ctx.scale)
    inner = _narrowed(grad, left) if inner is None else inner
    return (grad @ weight).addmm_(inner, right.mT, alpha=ctx.scale)
