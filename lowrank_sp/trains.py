"""Tensor trains as lists of cores (..., r, n, r'): sums, orthogonal forms, norms, truncation, conversion."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from . import xp

__all__ = [
    "decompose",
    "difference",
    "frobenius",
    "left_orthogonal",
    "merged",
    "multiplied_out",
    "right_orthogonal",
    "truncated",
]

Array = Any
Cores = list[Array]


def multiplied_out(cores: Sequence[Array]) -> Array:
    """The dense tensor (..., n_1, ..., n_d)."""
    total = cores[0][..., 0, :, :]
    modes = [total.shape[-2]]
    for core in cores[1:]:
        r, n, s = core.shape[-3:]
        total = total @ core.reshape(*core.shape[:-3], r, n * s)
        modes.append(n)
        total = total.reshape(*total.shape[:-2], -1, s)
    return total.reshape(*total.shape[:-2], *modes)


def merged(cores: Sequence[Array]) -> Array:
    """Consecutive cores as one, (..., r, n, r') with the product of their sizes."""
    total = cores[0]
    for core in cores[1:]:
        out = total.reshape(*total.shape[:-3], -1, total.shape[-1]) @ _right(core)
        total = out.reshape(*out.shape[:-2], total.shape[-3], -1, core.shape[-1])
    return total


def left_orthogonal(cores: Sequence[Array]) -> Cores:
    """The same tensor with orthonormal left unfoldings in all cores but the last."""
    out = list(cores)
    for k in range(len(out) - 1):
        q, rest = _qr(_left(out[k]))
        out[k] = q.reshape(*q.shape[:-2], *out[k].shape[-3:-1], q.shape[-1])
        out[k + 1] = _times_left(rest, out[k + 1])
    return out


def right_orthogonal(cores: Sequence[Array]) -> Cores:
    """The same tensor with orthonormal right unfoldings in all cores but the first."""
    out = list(cores)
    for k in range(len(out) - 1, 0, -1):
        q, rest = _qr(_right(out[k]).mT)
        out[k] = q.mT.reshape(*q.shape[:-2], q.shape[-1], *out[k].shape[-2:])
        out[k - 1] = out[k - 1] @ rest.mT[..., None, :, :]
    return out


def truncated(cores: Sequence[Array], ranks: Sequence[int]) -> Cores:
    """The tensor rounded to the ``ranks`` of the d - 1 bonds, in left-orthogonal form.

    Source: :cite:`oseledets2011tt`.
    """
    out = right_orthogonal(cores)
    for k, rank in enumerate(ranks):
        u, s, vh = xp.namespace(out[k]).linalg.svd(_left(out[k]), full_matrices=False)
        u, rest = u[..., :rank], s[..., :rank, None] * vh[..., :rank, :]
        out[k] = u.reshape(*u.shape[:-2], *out[k].shape[-3:-1], u.shape[-1])
        out[k + 1] = _times_left(rest, out[k + 1])
    return out


def decompose(tensor: Array, order: int, ranks: Sequence[int] | None = None) -> Cores:
    """TT-SVD of a dense tensor (..., n_1, ..., n_d), in left-orthogonal form; without ranks exactly, by QR.

    Source: :cite:`oseledets2011tt`.
    """
    batch, modes = tensor.shape[: tensor.ndim - order], tensor.shape[tensor.ndim - order :]
    rest, left, cores = tensor, 1, []
    for k in range(order - 1):
        rest = rest.reshape(*batch, left * modes[k], prod(modes[k + 1 :]))
        if ranks is None:
            q, rest = _qr(rest)
        else:
            q, s, vh = xp.namespace(rest).linalg.svd(rest, full_matrices=False)
            q, rest = q[..., : ranks[k]], s[..., : ranks[k], None] * vh[..., : ranks[k], :]
        cores.append(q.reshape(*batch, left, modes[k], q.shape[-1]))
        left = q.shape[-1]
    return [*cores, rest.reshape(*batch, left, modes[-1], 1)]


def difference(a: Sequence[Array], b: Sequence[Array]) -> Cores:
    """The cores of a - b: block diagonal, so ranks add up."""
    cat = xp.namespace(a[0], b[0]).concatenate
    a, b = _broadcast(a, b)
    out = [cat((a[0], -b[0]), -1)]
    for x, y in zip(a[1:-1], b[1:-1], strict=True):
        out.append(block([[x, None], [None, y]]))
    return [*out, cat((a[-1], b[-1]), -3)]


def block(rows: Sequence[Sequence[Array | None]]) -> Array:
    """A core made of blocks (rows along the first bond, columns along the second); None is a zero block."""
    cat = xp.namespace(*[c for row in rows for c in row if c is not None]).concatenate
    heights = [next(c for c in row if c is not None).shape[-3] for row in rows]
    widths = [next(row[j] for row in rows if row[j] is not None).shape[-1] for j in range(len(rows[0]))]  # pyright: ignore[reportOptionalMemberAccess]
    like = next(c for c in rows[0] if c is not None)
    filled = [
        [_zeros(like, h, w) if core is None else core for core, w in zip(row, widths, strict=True)]
        for row, h in zip(rows, heights, strict=True)
    ]
    return cat([cat(row, -1) for row in filled], -3)


def _zeros(like: Array, height: int, width: int) -> Array:
    shape = (*like.shape[:-3], height, like.shape[-2], width)
    return like.new_zeros(shape) if xp.is_torch(like) else xp.namespace(like).zeros(shape, dtype=like.dtype)


def frobenius(cores: Sequence[Array]) -> Any:
    """``||W||_F`` by QR factorizations only: exact to rounding also where terms cancel."""
    first = right_orthogonal(cores)[0]
    return xp.inner(first, first, 3) ** 0.5


def _broadcast(a: Sequence[Array], b: Sequence[Array]) -> tuple[Cores, Cores]:
    """Both with the batch axes of the one that has more."""
    batch = max(a[0].shape[:-3], b[0].shape[:-3], key=len)
    to = xp.namespace(a[0], b[0]).broadcast_to
    return [to(c, (*batch, *c.shape[-3:])) for c in a], [to(c, (*batch, *c.shape[-3:])) for c in b]


def _left(core: Array) -> Array:
    return core.reshape(*core.shape[:-3], -1, core.shape[-1])


def _right(core: Array) -> Array:
    return core.reshape(*core.shape[:-2], -1)


def _times_left(matrix: Array, core: Array) -> Array:
    out = matrix @ _right(core)
    return out.reshape(*out.shape[:-1], *core.shape[-2:])


def _qr(a: Array) -> tuple[Array, Array]:
    q, r = xp.namespace(a).linalg.qr(a)
    return q, r
