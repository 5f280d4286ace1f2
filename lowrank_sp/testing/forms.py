"""The contract of a parameterization: forward map, differential, adjoint, whitening and its manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import xp
from ..factors import ByFactor, Factors, Gauged, MatrixFactors, Multilinear
from ..operators import ImplicitMatrix, Pattern, SampledMatrix, Target
from ..parameterizations.tensor import TensorFactors
from ..spaces import FIXED
from .common import (
    as_arrays,
    elements,
    fitting_shape,
    in_library,
    random_direction,
    random_like,
    random_point,
    require,
    require_close,
    settle,
    shifted,
)
from .tensors import check_tensor

__all__ = ["check_parameterization"]


class _Case(NamedTuple):
    """A point with a direction, a tangent vector, a gradient G, sampled positions, and rows to apply a matrix to and
    a product for matrices."""

    point: Any
    direction: Any
    tangent: Any
    g: Any
    x: Any
    indices: tuple[Any, ...]
    factors: tuple[Any, ...]
    batch: tuple[int, ...]
    size: int
    tol: float

    @property
    def name(self) -> str:
        return type(self.point).__name__


def check_parameterization(
    form: Any,
    shape: tuple[int, ...] | None = None,
    rank: Any = 3,
    *,
    library: str = "numpy",
    dtype: Any = "float64",
    batch: tuple[int, ...] = (),
    seed: int = 0,
    tol: float = 1e-9,
) -> None:
    """Check that a form keeps what `lowrank_sp.factors.Factors` promises.

    The dense matrix or tensor is the oracle: ``entries`` agree with it, ``apply`` and ``product`` of matrices,
    conversions, slices and sampled gradients of tensors (`check_tensor`), the differential
    with its difference quotient, the expansion with its values on a line; the adjoint passes the dot test;
    ``whiten`` solves the normal equations built from unit vectors (for `Multilinear` forms; it is symmetric
    positive definite for others); the gauge group leaves the matrix alone; projection, retraction and
    transport fit together; a batch gives the same as its elements, and torch the same as NumPy.

    Parameters
    ----------
    form : type[Factors]
    shape : tuple of int, optional
        Of the matrix or tensor; small. By default ``(rank + 4, rank + 2)``, or what the form needs.
    rank : int
        The size that ``shapes`` takes.
    library : {"numpy", "torch"}
    dtype : numpy dtype
        Real or complex, in double precision.
    batch : tuple of int
        Leading axes.
    seed : int
    tol : float
        Relative tolerance of equalities.

    Raises
    ------
    AssertionError
        With the form and the property that does not hold.
    """
    require(isinstance(form, type) and issubclass(form, Factors), f"{form!r} is not a subclass of Factors")
    require(
        issubclass(form, (MatrixFactors, TensorFactors)),
        f"{form.__name__} must derive from MatrixFactors (in lowrank_sp.factors) or from TensorFactors",
    )
    shape = fitting_shape(form, rank) if shape is None else shape
    case = _case(form, shape, rank, dtype, batch, np.random.default_rng(seed), tol)
    if batch:
        _check_batch(case)
    if library != "numpy":
        translated = case._replace(**{k: in_library(getattr(case, k), library) for k in _Case._fields[:5]})
        for k in ("indices", "factors"):
            translated = translated._replace(**{k: tuple(in_library(a, library) for a in getattr(case, k))})
        for what, run in _operations(case).items():
            require_close(run(translated), run(case), f"{case.name}: {what} in {library} and NumPy", tol)
        case = translated
    for check in CHECKS:
        check(case)
    if isinstance(case.point, Gauged):
        _check_gauge(case, np.random.default_rng(seed + 1))
    if isinstance(case.point, TensorFactors):
        check_tensor(case.point, case.g, rank, case.name, tol)
    elif library == "numpy" and not batch:
        _check_operators(case)


def _case(form: Any, shape: Any, rank: int, dtype: Any, batch: Any, rng: Any, tol: float) -> _Case:
    point = random_point(form, shape, rank, rng, dtype, batch)
    direction = random_direction(point, rng)
    g = random_like(np.zeros((*batch, *shape), dtype), rng)
    matrix = isinstance(point, MatrixFactors)
    x = random_like(np.zeros((*batch, 4, shape[1] if matrix else 0), dtype), rng)
    indices = tuple(rng.integers(0, k, 20) for k in shape)
    factors = tuple(random_like(np.zeros((*batch, k, rank), dtype), rng) for k in shape) if matrix else ()
    return _Case(point, direction, point.project(direction), g, x, indices, factors, batch, rank, tol)


def _moved(case: _Case, t: float) -> Any:
    """The point after a time ``t`` on a smooth curve along the tangent vector (or any direction)."""
    if isinstance(case.point, ByFactor):
        return shifted(case.point, case.direction, t)
    return case.point.retract(case.tangent, -t)


def _velocity(case: _Case) -> Any:
    return case.direction if isinstance(case.point, ByFactor) else case.tangent


OPERATIONS: dict[str, Callable[[_Case], Any]] = {
    "dense": lambda c: c.point.dense(),
    "entries": lambda c: c.point.entries(*c.indices),
    "pullback": lambda c: c.point.pullback(c.g),
    "pushforward": lambda c: c.point.pushforward(c.tangent),
    "whiten": lambda c: c.point.whiten(c.tangent, 0.1),
    "project": lambda c: c.point.project(c.direction),
    "retract": lambda c: c.point.retract(c.direction, 0.1).dense(),
    "inner": lambda c: c.point.inner(c.direction),
    "scale": lambda c: c.direction.scale(c.point.norm()),
}


def _operations(c: _Case) -> dict[str, Callable[[_Case], Any]]:
    if isinstance(c.point, MatrixFactors):
        return {"apply": lambda c: c.point.apply(c.x), **OPERATIONS}
    return OPERATIONS


def _check_batch(c: _Case) -> None:
    """Every operation on the batch against the same on each of its elements."""
    for what, run in _operations(c).items():
        whole = run(c)
        for *inputs, part in elements(c.batch, *c[:5], whole):
            single = c._replace(**dict(zip(_Case._fields, inputs, strict=False)), batch=())
            require_close(part, run(single), f"{c.name}: {what} of a batch and of its elements", c.tol)


# the forward map ------------------------------------------------------------------------------------------


def _check_forward(c: _Case) -> None:
    dense = c.point.dense()
    require(tuple(dense.shape) == (*c.batch, *c.point.shape), f"{c.name}: dense has shape {tuple(dense.shape)}")
    require_close(c.point.entries(*c.indices), dense[(..., *c.indices)], f"{c.name}: entries of dense", c.tol)
    if isinstance(c.point, MatrixFactors):
        _check_products(c, dense)


def _check_products(c: _Case, dense: Any) -> None:
    """Products with vectors, and the way through thin factors."""
    require_close(c.point.apply(c.x), c.x @ dense.mT, f"{c.name}: apply is x F(x)^T", c.tol)
    left, right = c.point.product()
    require_close(left @ xp.adjoint(right), dense, f"{c.name}: product multiplies to dense", c.tol)
    form = type(c.point)
    if not form.converts:
        _check_no_conversion(c)
        return
    again = form.from_product(left, right) if form.universal else form.from_product(left, right, c.size)
    require_close(again.dense(), dense, f"{c.name}: from_product keeps a matrix of the form", c.tol)
    require_close(settle(again), again, f"{c.name}: from_product lands on the spaces", c.tol)
    other = form.from_product(*c.factors)
    gap = other.dense() - c.factors[0] @ xp.adjoint(c.factors[1])
    if form.universal:
        require_close(gap, 0 * gap, f"{c.name}: declared universal, but from_product changes the matrix", c.tol)
    else:
        pulled = other.pullback(gap)
        label = f"{c.name}: from_product is not the nearest point, the distance has a slope"
        require_close(pulled, pulled.map(lambda a: 0 * a), label, c.tol)
    _check_small(c, other)


def _check_no_conversion(c: _Case) -> None:
    """A form that does not convert says so."""
    form = type(c.point)
    require(not form.universal, f"{c.name}: a universal form must convert")
    try:
        form.from_product(*c.factors)
    except TypeError as error:
        require(form.__name__ in str(error), f"{c.name}: the refusal to convert does not name the form: {error}")
    else:
        raise AssertionError(f"{c.name}: declared not to convert, but from_product returned a point")


def _check_small(c: _Case, point: Any) -> None:
    """A size smaller or larger than the number of columns is the one that the point gets."""
    form = type(point)
    for size in range(max(1, c.size - 1), min(c.size + 1, *point.shape) + 1):
        try:
            shapes = form.shapes(point.shape, size)
        except ValueError:
            continue
        resized = form.from_product(*c.factors, size)
        got = tuple(tuple(a.shape[len(c.batch) :]) for a in resized.arrays())
        require(got == tuple(shapes), f"{c.name}: from_product at size {size} has arrays {got}")


def _check_sizes(c: _Case) -> None:
    axes = len(c.batch)
    pairs = zip(c.point.spaces, c.point.arrays(), strict=True)
    stored = sum(int(np.prod(a.shape[axes:])) for space, a in pairs if space is not FIXED)
    counted = type(c.point).parameter_count(c.point.shape, c.size)
    require(stored == counted, f"{c.name}: stores {stored} numbers that move, parameter_count says {counted}")
    require(c.point.batch_shape == c.batch, f"{c.name}: batch_shape is {c.point.batch_shape}")
    if isinstance(c.point, MatrixFactors):
        tops = np.linalg.matrix_rank(xp.to_numpy(c.point.dense()))
        require((tops <= c.point.rank).all(), f"{c.name}: dense exceeds the rank {c.point.rank}")
    flat = [np.concatenate([a.reshape(-1) for a in as_arrays(p)]) for p in (c.point, c.direction)]
    total = xp.to_numpy(c.point.inner(c.direction)).sum()
    require_close(total, np.vdot(*flat).real, f"{c.name}: inner is the real dot product", c.tol)


# the differential and its adjoint -------------------------------------------------------------------------


def _check_differential(c: _Case) -> None:
    h, velocity = 1e-5, _velocity(c)
    quotient = (_moved(c, h).dense() - _moved(c, -h).dense()) / (2 * h)
    image = c.point.pushforward(velocity)
    require_close(image, quotient, f"{c.name}: pushforward is the derivative of dense", 1e-6)
    pulled = c.point.pullback(c.g)
    product = xp.inner(image, c.g, len(c.point.shape))
    require_close(velocity.inner(pulled), product, f"{c.name}: dot test <DF[t], G> = <t, DF*[G]>", c.tol)
    for i, array in enumerate(pulled.arrays()):
        label = f"{c.name}: partial {i} ({c.point.names[i]}) is that block of pullback"
        require_close(c.point.partial(i, c.g), array, label, c.tol)


def _check_expansion(c: _Case) -> None:
    if not c.point.polynomial:
        return
    every = tuple(range(len(c.point.names)))
    for wrt in {every, *((i,) for i in every)}:
        still = c.direction.map(lambda a: 0 * a)
        moves = type(still)(
            *[d if i in wrt else z for i, (d, z) in enumerate(zip(c.direction.arrays(), still.arrays(), strict=True))]
        )
        orders = c.point.expansion(c.direction, wrt)
        for t in (-0.7, 1.3):
            total = c.point.dense()
            for k, terms in enumerate(orders, start=1):
                for term in terms:
                    total = total + t**k * term.dense()
            label = f"{c.name}: the expansion in {wrt} is dense on the line"
            require_close(total, shifted(c.point, moves, t).dense(), label, c.tol)


def _check_operators(c: _Case) -> None:
    """G may be sparse, sampled, a linear operator or implicit, or the adjoint of such a thing."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import aslinearoperator

    m, n = c.point.shape
    thinned = c.g * (np.arange(m)[:, None] != np.arange(n))
    rows, cols = thinned.nonzero()
    sampled = SampledMatrix(Pattern(rows, cols, (m, n)), thinned[rows, cols])
    back = thinned.T.conj()
    cols, rows = back.nonzero()
    flipped = SampledMatrix(Pattern(cols, rows, (n, m)), back[cols, rows]).adjoint()
    half = ImplicitMatrix(Target(csr_array(0.5 * thinned), 0.0), -1.0, ((0.5, thinned, np.eye(n)),))
    turned = ImplicitMatrix(Target(aslinearoperator(0.5 * back), 0.0), -1.0, ((0.5, back, np.eye(m)),)).adjoint()
    expected = c.point.pullback(thinned)
    for g in (csr_array(thinned), aslinearoperator(thinned), sampled, flipped, half, turned):
        label = f"{c.name}: pullback of a {type(g).__name__}"
        require_close(c.point.pullback(g), expected, label, c.tol)
        for i in range(len(c.point.names)):
            require_close(c.point.partial(i, g), expected.arrays()[i], f"{label}, partial {i}", c.tol)


# whitening ------------------------------------------------------------------------------------------------


def _check_whiten(c: _Case) -> None:
    point = shifted(c.point, c.direction, 0.3) if isinstance(c.point, ByFactor) else c.point
    grad = point.pullback(c.g)
    if not isinstance(point, Multilinear):
        _check_symmetric(c, point, grad)
        return
    for damping in (0.0, 0.3):
        white = point.whiten(grad, damping)
        triples = elements(c.batch, *(p.map(xp.to_numpy) for p in (point, grad, white)))
        for one, g, w in triples:
            for i, name in enumerate(one.names):
                if one.spaces[i] is FIXED:
                    require(not w.arrays()[i].any(), f"{c.name}: whiten moves the fixed array {name}")
                    continue
                label = f"{c.name}: whiten solves the normal equations of {name}, damping {damping}"
                require_close(w.arrays()[i], _solve_block(one, i, g.arrays()[i], damping), label, 1e-7)


def _solve_block(point: Any, index: int, g: np.ndarray, damping: float) -> np.ndarray:
    """``(D_i F^* D_i F + damping)^{-1} g``, with ``D_i F`` as a real matrix built column by column."""
    units = np.eye(g.size, dtype=g.dtype).reshape(-1, *g.shape)
    if g.dtype.kind == "c":
        units = np.concatenate((units, 1j * units))
    columns = [_real(point.with_array(index, unit).dense()) for unit in units]
    jacobian = np.stack(columns, axis=-1)
    normal = jacobian.T @ jacobian + damping * np.eye(len(units))
    solution = np.linalg.solve(normal, np.array([np.vdot(u, g).real for u in units]))
    return (solution @ units.reshape(len(units), -1)).reshape(g.shape)


def _real(a: Any) -> np.ndarray:
    return np.concatenate((a.real.reshape(-1), a.imag.reshape(-1)))


def _check_symmetric(c: _Case, point: Any, grad: Any) -> None:
    other = c.tangent
    white, white_other = point.whiten(grad, 0.1), point.whiten(other, 0.1)
    label = f"{c.name}: whiten is self-adjoint"
    require_close(white.inner(other), grad.inner(white_other), label, c.tol)
    require((xp.to_numpy(white.inner(grad)) > 0).all(), f"{c.name}: whiten is not positive definite")


# the manifold ---------------------------------------------------------------------------------------------


def _check_manifold(c: _Case) -> None:
    point, tangent = c.point, c.tangent
    require_close(settle(point), point, f"{c.name}: random lands on the spaces", c.tol)
    require_close(point.project(tangent), tangent, f"{c.name}: project is idempotent", c.tol)
    if isinstance(point, ByFactor):
        other = point.pullback(c.g)
        label = f"{c.name}: project is self-adjoint"
        require_close(point.project(other).inner(c.direction), other.inner(tangent), label, c.tol)
        _check_fixed_arrays(c)
    require_close(point.transport(point, tangent), tangent, f"{c.name}: transport to the point itself", c.tol)
    new = point.retract(c.tangent, 0.2)
    require_close(settle(new), new, f"{c.name}: retract lands on the spaces", c.tol)
    moved = point.transport(new, tangent)
    require_close(new.project(moved), moved, f"{c.name}: transport lands in the tangent space", c.tol)
    gaps, velocity = [], point.pushforward(tangent)
    for lr in (1e-2, 1e-3):
        line = point.dense() - lr * velocity
        gaps.append(float(abs(point.retract(tangent, lr).dense() - line).max()))
    require(gaps[1] <= 0.02 * gaps[0] + c.tol, f"{c.name}: retract is not first order, off by {gaps}")


def _check_fixed_arrays(c: _Case) -> None:
    """Only the arrays in ``wrt`` move."""
    whole = c.point.retract(c.direction, 0.2).arrays()
    for i, name in enumerate(c.point.names):
        part = c.point.retract(c.direction, 0.2, (i,)).arrays()
        for j, array in enumerate(part):
            expected = whole[j] if i == j else c.point.arrays()[j]
            require_close(array, expected, f"{c.name}: retract moves {name} alone", c.tol)


def _check_gauge(c: _Case, rng: Any) -> None:
    moved = False
    for _ in range(20):
        same = c.point.gauge(c.point.random_gauge(rng))
        require_close(same.dense(), c.point.dense(), f"{c.name}: gauge leaves the matrix alone", c.tol)
        require_close(settle(same), same, f"{c.name}: gauge stays on the spaces", c.tol)
        pairs = zip(as_arrays(same), as_arrays(c.point), strict=True)
        moved = moved or any(np.abs(a - b).max() > 1e-3 for a, b in pairs)
    require(moved, f"{c.name}: random_gauge is always the identity")


CHECKS = (_check_forward, _check_sizes, _check_differential, _check_expansion, _check_whiten, _check_manifold)
