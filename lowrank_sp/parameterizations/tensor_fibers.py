"""Sampled entries and gradients of tensor forms by way of the fibers along one mode, which share most of the work."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .. import xp
from ..constants import identity, triangle
from ..tensors import SampledTensor, TensorPattern, unpacked
from .bm import sampled_product

__all__ = ["Heads", "fiber_grams", "fiber_partials", "sampled_sum", "split"]

Array = Any
Heads = dict[tuple[int, ...], Array]

# Fibers for every sample, up to which those that hold none do not outweigh what the others save.
MOST = 2
# Numbers that heads, or their products with each other, may have beyond those of the samples.
LARGEST = 1 << 24


class Split(NamedTuple):
    """A point with F(x) unfolded along one mode as ``heads rows^T``."""

    index: int
    mode: int
    rows: Array
    """(..., n_mode, width): the array number ``index``, which is the only one with places in the mode."""
    rest: Any
    """The point with the identity in its place, whose dense tensor holds the heads."""

    def heads(self) -> Array:
        """(..., fibers, width)"""
        order, dense = len(self.rest.shape), self.rest.dense()
        moved = xp.namespace(dense).moveaxis(dense, dense.ndim - order + self.mode, -1)
        return moved.reshape(*moved.shape[: moved.ndim - order], -1, moved.shape[-1])

    def unfolded(self, matrix: Array) -> Array:
        """A matrix like the heads as a tensor like the dense one of ``rest``."""
        sizes = [n for k, n in enumerate(self.rest.shape) if k != self.mode]
        tensor = matrix.reshape(*matrix.shape[:-2], *sizes, matrix.shape[-1])
        return xp.namespace(tensor).moveaxis(tensor, -1, tensor.ndim - len(sizes) - 1 + self.mode)


def split(point: Any, count: int, wanted: int | None = None) -> Split | None:
    """The split that takes least for ``count`` samples, or that of the array ``wanted``.

    None where its fibers outnumber the samples too far.
    """
    shape, costs = point.shape, {}
    for index, array in enumerate(point.arrays()):
        if wanted not in (None, index):
            continue
        mode = point.mode_of(index)
        if mode is not None:
            size = prod(array.shape[array.ndim - point.ndims[index] :])
            fibers = prod(shape) // shape[mode]
            costs[(fibers + count) * size // shape[mode], -mode] = index  # the last of equals: its fibers are in order
    index = costs[min(costs)]
    mode = point.mode_of(index)
    fibers, rows = prod(shape) // shape[mode], point.as_rows(index, point.arrays()[index])
    if fibers > MOST * count or fibers * rows.shape[-1] > max(LARGEST, MOST * count):
        return None
    eye = identity(rows.shape[-1], rows)
    if rows.ndim > 2:
        eye = xp.namespace(rows).broadcast_to(eye, (*rows.shape[:-2], *eye.shape))
    return Split(index, mode, rows, point.with_array(index, point.from_rows(index, eye)))


def sampled_sum(points: Sequence[Any], pattern: TensorPattern, known: Heads) -> Array:
    """``F(x_1) + F(x_2) + ...`` at the positions of a pattern, (..., N).

    Points that share the array of the mode are added up before anything is sampled. ``known`` remembers heads by
    the arrays they are made of, for as long as those live.
    """
    sums: dict[int, dict[int, list[Any]]] = {}
    for point in points:
        part = split(point, pattern.count)
        if part is None:
            return sum((p.entries(*pattern.indices) for p in points[1:]), points[0].entries(*pattern.indices))
        arrays = point.arrays()
        key = (part.index, *(id(a) for k, a in enumerate(arrays) if k != part.index))
        if key not in known:
            known[key] = part.heads()
        pair = sums.setdefault(part.mode, {}).setdefault(id(arrays[part.index]), [0.0, part.rows])
        pair[0] = pair[0] + known[key]
    return sum(_sampled(pattern, mode, list(pairs.values())) for mode, pairs in sums.items())


def _sampled(pattern: TensorPattern, mode: int, pairs: list[list[Any]]) -> Array:
    """The sum of ``heads rows^T`` over pairs, at the positions."""
    cat = xp.namespace(pairs[0][0]).concatenate
    heads, rows = pairs[0] if len(pairs) == 1 else [cat(arrays, -1) for arrays in zip(*pairs, strict=True)]
    matrix, moved = pattern.fibers(mode)
    values = sampled_product(heads, rows.conj(), matrix.rows, matrix.cols)
    return values if moved is None else values[..., moved[1]]


def fiber_partials(pairs: Sequence[tuple[Any, int]], g: SampledTensor) -> list[Array] | None:
    """The gradients of ``Re <G, F>`` for points and the number of an array of each.

    None where there are too few samples for that. Points that share the array of the mode share the work.
    """
    inner: dict[int, Array] = {}
    out = []
    for point, i in pairs:
        part = split(point, g.pattern.count)
        if part is None:
            return None
        matrix, key = g.fibers(part.mode), id(point.arrays()[part.index])
        if i == part.index:
            out.append(point.from_rows(i, (matrix.adjoint() @ part.heads()).conj()))
            continue
        if key not in inner:
            inner[key] = part.unfolded(matrix @ part.rows.conj())
        out.append(part.rest.contract(i, inner[key]))
    return out


def fiber_grams(point: Any, index: int, pattern: TensorPattern) -> Array | None:
    """Sums of ``conj(h) h^T`` over the samples at every place of the mode of an array, for the heads h of their fibers.

    (n_mode, width, width), or None where there are too few samples for that.
    """
    part = split(point, pattern.count, index)
    if part is None:
        return None
    heads, matrix = part.heads(), pattern.fibers(part.mode)[0]
    first, second = triangle(heads.shape[-1], heads, 0)
    if heads.shape[0] * first.shape[0] > LARGEST:
        return None
    ones = xp.asarray_like(np.ones(pattern.count), heads)
    return unpacked(matrix.multiply(ones, heads[:, first].conj() * heads[:, second], True), first, second)
