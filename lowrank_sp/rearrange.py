"""Gradients seen otherwise: cut into tiles, rearranged for Kronecker products, sampled at some positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import xp
from .indexing import gather
from .operators import Flipped, ImplicitMatrix, Pattern, SampledMatrix

__all__ = ["Tiling", "as_blocks", "is_array", "locate", "rearrange", "sample_entries", "tiles"]

Array = Any

# Unit columns that a linear operator is multiplied with at a time.
WIDTH = 256


class Tiling(NamedTuple):
    """A grid of ``rows x cols`` tiles, each ``height x width``."""

    rows: int
    cols: int
    height: int
    width: int

    @property
    def transposed(self) -> Tiling:
        return Tiling(self.cols, self.rows, self.width, self.height)


def is_array(a: Any) -> bool:
    """Whether ``a`` is a NumPy array or a torch tensor, rather than sparse or an operator."""
    return isinstance(a, np.ndarray) or xp.is_torch(a)


def as_blocks(a: Array, tiling: Tiling) -> Array:
    """(..., m, n) to (..., rows, cols, height, width), a view."""
    i, j, p, q = tiling
    return a.reshape(*a.shape[:-2], i, p, j, q).swapaxes(-3, -2)


def rearrange(g: Any, tiling: Tiling) -> Any:
    """Van Loan's rearrangement: one row per tile and one column per place in a tile, row-major.

    Arrays and sparse matrices keep their kind; a linear operator is multiplied out to an array of all its
    entries. Source: :cite:`vanloan1993kronecker`.
    """
    i, j, p, q = tiling
    shape = (i * j, p * q)
    if is_array(g):
        return as_blocks(g, tiling).reshape(*g.shape[:-2], *shape)

    def places(rows, cols):
        return rows // p * j + cols // q, rows % p * q + cols % q

    moved = _moved(g, ("kronecker", tiling), shape, places)
    return rearrange(_multiplied_out(g), tiling) if moved is None else moved


def tiles(g: Any, tiling: Tiling, diagonal: bool = False) -> Any:
    """A sparse matrix with the tiles of ``g`` along its diagonal, all or those with equal indices.

    None for a linear operator, which cannot be cut.
    """
    i, j, p, q = tiling
    count = i if diagonal else i * j

    def places(rows, cols):
        a, b = rows // p, cols // q
        tile = a if diagonal else a * j + b
        keep = a == b if diagonal else None
        return tile * p + rows % p, tile * q + cols % q, keep

    return _moved(g, ("diagonal" if diagonal else "grid", tiling), (count * p, count * q), places)


def _moved(g: Any, key: Any, shape: tuple[int, int], places: Callable[..., tuple[Array, ...]]) -> Any:
    """A sparse matrix with its entries at other places (or left out); None for what is not sparse."""
    if isinstance(g, SampledMatrix):
        pattern, order = _moved_pattern(g.pattern, (key, g.transposed), shape, places, g.transposed)
        return SampledMatrix(pattern, g.values[..., order])
    if hasattr(g, "tocoo"):
        coo = g.tocoo()
        rows, cols, *keep = places(coo.row.astype(np.int64), coo.col.astype(np.int64))
        data = coo.data
        if keep and keep[0] is not None:
            rows, cols, data = rows[keep[0]], cols[keep[0]], data[keep[0]]
        from scipy.sparse import csr_array

        return csr_array((data, (rows, cols)), shape=shape)
    return None


def _moved_pattern(pattern: Any, key: Any, shape: Any, places: Any, transposed: bool) -> tuple[Pattern, Array]:
    """The pattern of moved entries and the order of the old ones in it; remembered, for it is asked for often."""
    if key not in pattern.moved:
        rows, cols = (xp.to_numpy(a).astype(np.int64) for a in (pattern.rows, pattern.cols))
        rows, cols, *keep = places(cols, rows) if transposed else places(rows, cols)
        order = np.lexsort((cols, rows))
        if keep and keep[0] is not None:
            order = order[keep[0][order]]
        found = [rows[order], cols[order], order]
        if xp.is_torch(pattern.rows):
            found = [pattern.rows.new_tensor(a) for a in found]
        pattern.moved[key] = Pattern(found[0], found[1], shape), found[2]
    return pattern.moved[key]


def _multiplied_out(g: Any) -> Array:
    """All entries of a linear operator, from products with blocks of the identity."""
    n = int(g.shape[1])
    blocks = [g @ np.eye(n, min(WIDTH, n - k), -k) for k in range(0, n, WIDTH)]
    return np.concatenate(blocks, -1)


def locate(rows: Array, cols: Array, among: tuple[Array, Array], width: int) -> tuple[Array, Array]:
    """Where each position stands among row-sorted ones (at least one), and whether it is there."""
    keys, wanted = _keys(*among, width), _keys(rows, cols, width)
    index = xp.namespace(keys, wanted).searchsorted(keys, wanted)
    index = index * (index < keys.shape[0])
    return index, keys[index] == wanted


def _keys(rows: Array, cols: Array, width: int) -> Array:
    """Positions in row-major order, as 64-bit numbers."""
    return (rows if xp.is_torch(rows) else rows.astype(np.int64)) * width + cols


def sample_entries(g: Any, rows: Array, cols: Array) -> Array:
    """The entries ``g[rows, cols]`` (..., N) of an array, a sparse matrix or a linear operator.

    An operator is multiplied with the unit columns that occur.
    """
    if is_array(g):
        return g[..., rows, cols]
    if isinstance(g, SampledMatrix):
        first, second = (cols, rows) if g.transposed else (rows, cols)
        index, found = locate(first, second, (g.pattern.rows, g.pattern.cols), g.pattern.shape[1])
        return gather(g.values, index) * found
    if hasattr(g, "tocsr"):
        return np.asarray(g.tocsr()[rows, cols]).reshape(-1)
    if isinstance(g, ImplicitMatrix):
        total: Any = -g.weight * _sample_target(g.target, rows, cols) if g.weight else 0.0
        for c, left, right in g.terms:
            total = total + c * (left[rows] * right[cols].conj()).sum(-1)
        return total
    return _sample_operator(g, rows, cols)


def _sample_target(target: Any, rows: Array, cols: Array) -> Array:
    if isinstance(target, Flipped):
        return sample_entries(target.target.matrix, cols, rows).conj()
    return sample_entries(target.matrix, rows, cols)


def _sample_operator(g: Any, rows: Array, cols: Array) -> Array:
    """Entries from products with the unit columns that occur, in blocks."""
    wanted, place = np.unique(cols, return_inverse=True)
    out = np.empty(len(rows), dtype=np.result_type(g.dtype, float))
    for k in range(0, len(wanted), WIDTH):
        part = wanted[k : k + WIDTH]
        units = np.zeros((g.shape[1], len(part)))
        units[part, np.arange(len(part))] = 1.0
        inside = (place >= k) & (place < k + WIDTH)
        out[inside] = (g @ units)[rows[inside], place[inside] - k]
    return out
