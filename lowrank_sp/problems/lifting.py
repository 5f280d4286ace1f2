"""Rank-one sensing lifted to Kronecker powers, where spurious minima become saddles."""

from __future__ import annotations

from .. import xp
from ..coverage import covers
from ..parameterizations import SymmetricBurerMonteiro
from .ensembles import DenseEnsemble
from .sensing import MatrixSensing

__all__ = ["lifted", "lowered"]

LARGEST = 1 << 27  # entries of the lifted matrices


@covers("S18", "P81")
def lifted(problem: MatrixSensing, order: int) -> MatrixSensing:
    """The sensing problem of ``w w^H`` with ``w = x (x) ... (x) x`` from the products of all measurements.

    With ``y_i = <M_i, x x^H>`` the N^l numbers ``y_i y_j ...`` are measurements of ``w w^H`` by ``M_i (x) M_j (x) ...``
    and w is free in n^l numbers instead of n. So there is more room to move: a local minimum x of the original problem
    that is none of its solutions is a saddle of the lifted one at its power, from an order on.

    Parameters
    ----------
    problem : MatrixSensing
        With stacked matrices (N, n, n).
    order : int
        l; odd ones are those of the theory.

    Raises
    ------
    TypeError, ValueError
        If the measurements are no stacked square matrices or have a batch, the order is no positive integer, or the
        lifted matrices would have more than 2^27 entries.

    Notes
    -----
    Meant for `SymmetricBurerMonteiro` points of rank one; `lowered` takes their power back. Source:
    :cite:`ma2023lifting`; section VII-A of :cite:`survey2026sp`.
    """
    if not isinstance(problem, MatrixSensing) or not isinstance(problem.operator, DenseEnsemble):
        raise TypeError("lifted needs a MatrixSensing problem with stacked matrices")
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a positive integer, got {order!r}")
    m, n = problem.shape
    count = problem.operator.count
    if m != n or problem.data.ndim != 1:
        raise ValueError(f"lifted needs one problem with square matrices, got {problem.shape} and {problem.data.shape}")
    if count**order * n ** (2 * order) > LARGEST:
        raise ValueError(f"{count}^{order} matrices of side {n}^{order} are too many; take a smaller problem or order")
    rows, data = problem.operator.rows.reshape(count, n, n), problem.data
    backend, stack, values = xp.namespace(data), rows, data
    for _ in range(order - 1):
        count, side = len(values) * len(data), stack.shape[-1] * n
        stack = backend.einsum("aij,bkl->abikjl", stack, rows).reshape(count, side, side)
        values = (values[:, None] * data).reshape(-1)
    return MatrixSensing(stack, values, stack.shape[1:])


@covers("S18", "P81")
def lowered(point: SymmetricBurerMonteiro, order: int) -> SymmetricBurerMonteiro:
    """The vector whose Kronecker power of this order is near a point of rank one of the lifted problem.

    Parameters
    ----------
    point : SymmetricBurerMonteiro
        With one column (n^order, 1).
    order : int

    Raises
    ------
    ValueError
        If the number of rows is no such power, or there is another number of columns.
    """
    w = point.factor
    side = round(w.shape[-2] ** (1 / order))
    if w.ndim != 2 or w.shape[1] != 1 or side**order != w.shape[0]:
        raise ValueError(f"needs one column with a {order}-th power of rows, got {tuple(w.shape)}")
    u, _, _ = xp.namespace(w).linalg.svd(w.reshape(side, -1), full_matrices=False)
    direction, size = u[:, :1], w
    for _ in range(order):
        size = xp.adjoint(direction) @ size.reshape(side, -1)  # in the end <u (x) ... (x) u, w>
    size = float(size.reshape(-1)[0])
    return SymmetricBurerMonteiro(direction * (abs(size) ** (1 / order) * (1 if size >= 0 else -1)))
