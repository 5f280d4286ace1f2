"""One-line entry points for tensors: sensible form, solver and start, nothing to tune but the rank."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from . import inits, xp
from .descent import AlternatingLeastSquares
from .escalate import SHARE, WINDOW
from .parameterizations import CP, FixedRankTucker, TensorFactors, Tucker
from .parameterizations.tt import TrainImage
from .parameterizations.tucker import TuckerImage
from .problems import RobustTensorPCA, TensorCompletion, TensorFactorization, TensorSensing
from .problems.checks import warn_underdetermined
from .result import Result, Status, explained, uninterrupted
from .solve import solve
from .solvers import AltScaledGD, RiemannianCG, ScaledCG

__all__ = ["TensorSeparation", "complete_tensor", "factorize_tensor", "robust_tensor_pca", "sense_tensor"]

# What robust_tensor_pca calls an outlier: an entry of the residual this many standard deviations of the rest from
# zero, and at least this share of the root mean square of W.
DEVIATIONS, RELATIVE = 5.0, 1e-3
# Beyond so many it has no part in the last fit, which small outliers would bend.
DOUBTFUL = 3.0
# The share of its expected loss below which a wider form says that the narrow one has not found what there is.
BETTER = 0.8
# A loss that fits the data, relative to half their squared norm, and a difference between losses that is none.
EXACT, AGREE = 1e-12, 3e-2
# The loss, relative to the same, above which data count as noisy: a residual of a hundredth.
NOISY = 0.5e-4
# Sweeps in which the ridge of least squares falls to a thousandth of its first value, and the multiplications in the
# normal equations of an array up to which they are no more work than a solver of another kind.
RIDGED, LIGHT = 40, 3e8
# The share of the loss by which a window of iterations must lower it where all entries are known.
FINE = 1e-5


def factorize_tensor(tensor: Any, rank: Any, form: Any = Tucker, max_iter: int = 500, tol: float = 1e-10) -> Result:
    """A tensor in a low-rank form, near the best approximation.

    Starts from the truncated decomposition (higher-order SVD, TT-SVD, or for `CP` simultaneous diagonalization)
    and polishes it with alternating scaled gradient descent; where that leaves more than a hundredth of the tensor,
    until eight iterations lower the loss by less than a hundred-thousandth.

    Parameters
    ----------
    tensor : array (n_1, ..., n_d)
        NumPy or torch; what tensorly calls a tensor.
    rank : int or tuple of int
        The size of the form.
    form : type
        `Tucker`, `CP`, `TensorTrain` or one of their classes for an order.
    max_iter, tol : int, float
        As for `solve`.

    Returns
    -------
    Result

    Raises
    ------
    ValueError, TypeError
        For NaN or infinite entries, which `complete_tensor` takes, or a rank that the form cannot have.

    >>> import numpy as np
    >>> result = factorize_tensor(np.ones((2, 3, 4)), rank=1)
    >>> result.success, result.point.shape
    (True, (2, 3, 4))
    """
    problem = TensorFactorization(tensor)
    _by_tucker(form, rank, problem.shape)
    result = _settled(problem, inits.spectral(problem, form, rank), AltScaledGD(), max_iter, tol, FINE)
    return explained(result, _given(form, rank), "truncated decomposition -> AltScaledGD")


def sense_tensor(
    operator: Any,
    measurements: Any,
    shape: tuple[int, ...],
    rank: Any,
    form: Any = Tucker,
    max_iter: int = 1000,
    tol: float = 1e-10,
) -> Result:
    """A low-rank tensor from linear measurements ``y_i = <M_i, W>``.

    Parameters
    ----------
    operator, measurements, shape
        As for `TensorSensing`.
    rank, form
        As for `complete_tensor`.
    max_iter, tol : int, float
        As for `solve`.

    Returns
    -------
    Result

    Raises
    ------
    ValueError, TypeError
        As for `TensorSensing`, and for a rank that the form cannot have.

    >>> import numpy as np
    >>> operator, truth = np.random.default_rng(0).standard_normal((60, 4, 3, 3)), np.ones((4, 3, 3))
    >>> result = sense_tensor(operator, np.einsum("nijk,ijk->n", operator, truth), (4, 3, 3), rank=1)
    >>> bool(np.allclose(result.point.dense(), truth))
    True
    """
    problem = TensorSensing(operator, measurements, shape)
    return explained(_recovered(problem, rank, form, max_iter, tol), _given(form, rank))


def complete_tensor(tensor: Any, rank: Any, form: Any = Tucker, max_iter: int = 1000, tol: float = 1e-10) -> Result:
    """Fill in a tensor: an array with NaN for unknown entries, a sparse torch tensor, or a `TensorCompletion`.

    The best of conjugate gradients (for `Tucker` on the manifold of the ranks, else in the metric of scaled gradient
    descent), alternating least squares and alternating scaled gradient descent, from a spectral start. A `CP` tensor
    is found by the conjugate gradients alone, one component after the other, each from the spectral start of what is
    left; where a completion as a `Tucker` tensor leaves much less than that, also from the components of it, and the
    lower loss wins. ``result.choice`` says what was tried and which it was.

    Data that are not met to a hundredth are taken for noisy: then a solver ends when eight iterations lower the loss
    by less than a hundredth, which is all that noise makes use of, and is a success where a second one agrees. With
    too large a rank that also fits less of the noise.

    Parameters
    ----------
    tensor : array (n_1, ..., n_d), sparse torch tensor or TensorCompletion
        NumPy or torch; what tensorly calls a tensor. Of a sparse tensor the stored entries are the known ones.
    rank : int or tuple of int
        The size of the form.
    form : type
        `Tucker`, `CP`, `TensorTrain` or one of their classes for an order.
    max_iter, tol : int, float
        Of every solver, as for `solve`.

    Raises
    ------
    ValueError, TypeError
        As for `TensorCompletion`, and for a rank that the form cannot have. Fewer entries than degrees of freedom are
        a warning.

    Returns
    -------
    Result
        ``result.point.dense()`` is the completed tensor and ``result.point.entries(i, j, k)`` some of its entries.

    >>> import numpy as np
    >>> tensor = np.ones((4, 5, 6))
    >>> tensor[1, 2, 3] = np.nan
    >>> round(float(complete_tensor(tensor, rank=1).point.dense()[1, 2, 3]), 6)
    1.0
    """
    problem = TensorCompletion.of(tensor)
    return explained(_recovered(problem, rank, form, max_iter, tol), _given(form, rank))


class TensorSeparation(NamedTuple):
    """A tensor as low rank plus sparse."""

    result: Result
    """Of the low-rank part: ``result.point.dense()``."""
    sparse: Any
    """The sparse part, an array (n_1, ..., n_d)."""


def robust_tensor_pca(
    tensor: Any, rank: Any, form: Any = Tucker, outliers: float | None = None, max_iter: int = 500, tol: float = 1e-10
) -> TensorSeparation:
    """A tensor as a low-rank part plus sparse outliers of any size.

    Alternating scaled gradient descent on the trimmed loss of `RobustTensorPCA`, then conjugate gradients on the
    entries that are no outliers. Where the rest is noisy, each ends as the solvers of `complete_tensor` do.

    Parameters
    ----------
    tensor : array (n_1, ..., n_d)
    rank, form
        Of the low-rank part, as for `complete_tensor`.
    outliers : float, optional
        Largest share of outliers in any fiber, in (0, 0.5), if known; by default what stands out after trimming
        two fifths of every fiber.

    Returns
    -------
    TensorSeparation
        ``(result, sparse)``; the result is that of the last step.

    >>> import numpy as np
    >>> tensor = np.ones((10, 11, 12))
    >>> tensor[3, 5, 7] += 100.0
    >>> result, sparse = robust_tensor_pca(tensor, rank=1)
    >>> np.argwhere(sparse).tolist()
    [[3, 5, 7]]
    """
    problem = RobustTensorPCA(tensor, 0.2 if outliers is None else outliers)
    through = Tucker if _by_tucker(form, rank, problem.shape) else form
    start = inits.spectral(problem, through, rank)
    point = uninterrupted(_settled(problem, start, AltScaledGD(), max_iter, max(tol, 1e-6))).point
    if outliers is None:
        share = _largest_share(_stands_out(problem.data, point))
        problem = RobustTensorPCA(problem.data, min(max(share, 1e-3), 0.4))
        point = uninterrupted(_settled(problem, point, AltScaledGD(), max_iter, max(tol, 1e-6))).point
    clean = ~_stands_out(problem.data, point, DOUBTFUL)
    where = clean.nonzero(as_tuple=True) if xp.is_torch(clean) else clean.nonzero()
    rest = TensorCompletion(where, problem.data[clean], problem.shape)
    start = _components(point, form, rank) if through is not form else point
    result = _settled(rest, start, ScaledCG(), max_iter, tol)
    chain = f"AltScaledGD with at most {problem.outliers:.2g} outliers per fiber -> ScaledCG on the rest"
    result = explained(result, _given(form, rank), chain)
    outside = _stands_out(problem.data, result.point)
    return TensorSeparation(result, (problem.data - result.point.dense()) * outside)


def _recovered(problem: Any, rank: Any, form: Any, max_iter: int, tol: float) -> Result:
    """From a spectral start; for `CP` by growing, with the components of the Tucker solution as a second opinion."""
    by_tucker = _by_tucker(form, rank, problem.shape)
    warn_underdetermined(problem.data.shape[-1], _freedom(form, rank, problem.shape), "values")
    if not issubclass(form, CP):
        return _best(problem, form, rank, max_iter, tol)
    grown = _grown(problem, form, rank, max_iter, tol)
    if grown.fun <= EXACT * problem.scale:
        return grown
    if not by_tucker:
        return min(grown, _best(problem, form, rank, max_iter, tol), key=_loss)
    start = inits.spectral(problem, FixedRankTucker, rank)
    wide = uninterrupted(_settled(problem, start, RiemannianCG(), max_iter, max(tol, 1e-8), met=0.0))
    if wide.fun > BETTER * _expected(problem, grown, form, rank):
        return grown
    parts = _components(wide.point.to_tucker(), form, rank)
    result = uninterrupted(_settled(problem, parts, ScaledCG(), max_iter, tol))
    return min(grown, explained(result, "components of a Tucker tensor found by RiemannianCG -> ScaledCG"), key=_loss)


def _expected(problem: Any, grown: Result, form: Any, rank: int) -> float:
    """The loss of a Tucker fit if `CP` has fitted all but noise: in proportion to the entries that are left over."""
    count, shape = problem.data.shape[-1], problem.shape
    narrow, wide = (_freedom(kind, rank, shape) for kind in (form, Tucker))
    return grown.fun * max(count - wide, 0) / max(count - narrow, 1)


def _grown(problem: Any, form: Any, rank: int, max_iter: int, tol: float) -> Result:
    """`CP` at rank 1, 2, ..., each from the point before plus the spectral start of what it leaves.

    The error of sampling a strong component hides weak ones from the spectral start at full rank; once the strong
    one is fitted it is gone.
    """
    result = uninterrupted(_settled(problem, inits.spectral(problem, form, 1), ScaledCG(), max_iter, tol))
    for _ in range(1, rank):
        point = result.point.balanced()
        term = inits.spectral(_rest(problem, point), form, 1).balanced()
        pairs = zip(point.arrays(), term.arrays(), strict=True)
        wider = type(point)(*[xp.namespace(*pair).concatenate(pair, -1) for pair in pairs])
        result = uninterrupted(_settled(problem, wider, ScaledCG(), max_iter, tol))
    return explained(result, "one component after the other, each from the spectral start of what is left, by ScaledCG")


def _rest(problem: Any, point: Any) -> Any:
    """The problem of what a point does not explain."""
    data = -problem.residual(point)
    if not isinstance(problem, TensorCompletion):
        return TensorSensing(problem.operator, data, problem.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # unobserved places were named when the problem was made
        return TensorCompletion(problem.pattern.indices, data, problem.shape)


def _loss(result: Result) -> float:
    return result.fun


def _best(problem: Any, form: Any, rank: Any, max_iter: int, tol: float) -> Result:
    """The lowest loss of solvers with different basins; fewer where one fits exactly or two agree."""
    start, agreed = inits.spectral(problem, form, rank), False
    found: list[Result] = []
    for solver, at in _solvers(problem, start):
        result = uninterrupted(_settled(problem, at, solver, max_iter, tol))
        agreed = any(abs(old.fun - result.fun) <= AGREE * min(old.fun, result.fun) for old in found)
        found.append(replace(result, point=type(start)(*result.point.arrays())))
        if agreed or result.fun <= EXACT * problem.scale:
            break
    best = min(found, key=_loss)
    if best.status is Status.SETTLED and not agreed:
        best = replace(best, status=Status.STALLED, converged=False)
    tried = ", ".join(f"{result.solver.name} with loss {result.fun:.2g}" for result in found)
    return explained(best, f"spectral start -> {f'the best of {tried}' if len(found) > 1 else best.solver.name}")


def _solvers(problem: Any, start: Any) -> Iterator[tuple[Any, Any]]:
    """Solvers with their starts.

    On the manifold of Tucker tensors sampled entries are close to an isometry whatever the condition number. Least
    squares with a falling ridge reach ill-conditioned trains; where their normal equations are large they cost more
    than they find, and come last.
    """
    curved = FixedRankTucker.from_tucker(start) if isinstance(start, Tucker) else start
    yield (ScaledCG(), start) if curved is start else (RiemannianCG(), curved)
    widest = max(start.as_rows(i, a).shape[-1] for i, a in enumerate(start.arrays()))
    rest = [(AlternatingLeastSquares(decay=0.85), start), (AltScaledGD(), start)]
    yield from rest if problem.data.shape[-1] * widest**2 <= LIGHT else rest[::-1]


def _settled(
    problem: Any, start: Any, solver: Any, max_iter: int, tol: float, share: float = SHARE, met: float = NOISY
) -> Result:
    """To ``tol``; where the data are not met, until a window of iterations lowers the loss by less than a share."""
    # A ridge that is still falling holds the loss up.
    after, losses = RIDGED if isinstance(solver, AlternatingLeastSquares) else 0, []

    def settles(iteration: int, point: Any, loss: Any) -> bool:
        losses.append(loss)
        waiting = loss <= met * problem.scale or iteration <= after + WINDOW
        return not waiting and loss > (1 - share) * losses[-1 - WINDOW]

    result = solve(problem, start, solver, max_iter, tol, callback=settles)
    return replace(result, status=Status.SETTLED, converged=True) if result.status is Status.CALLBACK else result


def _given(form: Any, rank: Any) -> str:
    return f"{form.__name__} of rank {rank} as given"


def _by_tucker(form: Any, rank: Any, shape: tuple[int, ...]) -> bool:
    """Whether a CP tensor can be found from its Tucker form: diagonalization needs two modes of the rank."""
    if not (isinstance(form, type) and issubclass(form, TensorFactors)):
        raise TypeError(f"form must be a tensor form such as lr.Tucker, got {form!r}")
    if isinstance(rank, str):
        raise ValueError(
            f'rank of a tensor must be an integer or a tuple of them, got {rank!r}; "auto" is for matrices'
        )
    form.shapes(shape, rank)
    return issubclass(form, CP) and rank <= sorted(shape)[-2]


def _freedom(form: Any, rank: Any, shape: tuple[int, ...]) -> int:
    """Degrees of freedom, where the gauge group of the form is known; else none."""
    form, sizes = form.for_shape(shape), form.shapes(shape, rank)
    if issubclass(form, CP):
        gauge = (len(shape) - 1) * rank
    elif issubclass(form, TuckerImage):
        gauge = sum(r**2 for _, r in sizes[1:])
    elif issubclass(form, TrainImage):
        gauge = sum(core[-1] ** 2 for core in sizes[:-1])
    else:
        return 0
    return form.parameter_count(shape, rank) - gauge


def _components(point: Any, form: Any, rank: int) -> Any:
    """The CP point of the core of a Tucker point."""
    core, *bases = point.balanced().arrays()
    return form.for_shape(point.shape).from_tensor(core, rank).embedded(bases).balanced()


def _stands_out(data: Any, point: Any, deviations: float = DEVIATIONS) -> Any:
    """Which entries of the residual are outliers."""
    gap, size = abs(data - point.dense()), float(point.frobenius()) / data.reshape(-1).shape[0] ** 0.5
    deviation = 1.4826 * float(np.median(xp.to_numpy(gap)))
    return gap > max(deviations * deviation, RELATIVE * size)


def _largest_share(mask: Any) -> float:
    """The largest share of true entries in any fiber."""
    values = xp.to_numpy(mask * 1.0)
    return max(float(values.mean(k).max()) for k in range(values.ndim))
