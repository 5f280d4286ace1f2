"""The contract of an update rule: pure, the same everywhere, descending, and as equivariant as it says."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .. import xp
from ..factors import Factors, Gauged
from ..parameterizations import FORMS, BurerMonteiro
from ..problems import MatrixFactorization
from ..rules import Rule, check_needs
from ..spaces import FIXED, FLAT
from .common import (
    as_arrays,
    elements,
    fitting_shape,
    in_library,
    moving,
    random_direction,
    random_point,
    require,
    require_close,
    settle,
    shifted,
)

__all__ = ["check_rule"]

RANK = 2
RESCALINGS = 30  # one where all terms have as many factors as the form has arrays


def check_rule(
    rule: Any,
    form: Any = None,
    *,
    library: str = "numpy",
    dtype: Any = "float64",
    batch: tuple[int, ...] = (),
    step: float = 0.02,
    seed: int = 0,
    tol: float = 1e-8,
) -> None:
    """Check that a rule keeps what `lowrank_sp.rules.Rule` promises, on a small factorization.

    It is hashable and comparable; ``update`` and ``carry`` change none of their arguments; small steps lower
    the loss; a state stored as plain arrays and read back continues the same run; a batch gives the same as
    its elements, and torch the same as NumPy. A rule that declares ``equivariant`` makes the matrix follow
    the same path from a gauge-equivalent start, and one that does not makes it follow another on a
    `BurerMonteiro` point. A form outside ``needs`` is refused with a ``TypeError`` that says what is needed.

    Parameters
    ----------
    rule : Rule
    form : type[Factors], optional
        A form that the rule can act on; by default the first registered one.
    library : {"numpy", "torch"}
    dtype : numpy dtype
    batch : tuple of int
        Leading axes.
    step : float
        Step size; the target has spectral norm 1.
    seed : int
    tol : float
        Relative tolerance of equalities.

    Raises
    ------
    AssertionError
        With the rule and the property that does not hold.
    """
    require(isinstance(rule, Rule), f"{rule!r} is not a lowrank_sp.rules.Rule")
    require(hash(rule) == hash(rule) and rule == rule, f"{rule!r} must be hashable and equal to itself")
    form = next(f for f in FORMS.values() if issubclass(f, rule.needs)) if form is None else form
    rng = np.random.default_rng(seed)
    target, point = _instance(form, rng, dtype, batch)
    name = f"{rule!r} on {form.__name__}"
    expected = _run(rule, MatrixFactorization(target), point, 5, step)[0]
    if batch:
        for data, start, end in elements(batch, target, point, expected):
            single = _run(rule, MatrixFactorization(data), start, 5, step)[0]
            require_close(single.dense(), end.dense(), f"{name}: a batch and its elements", tol)
    problem, start = MatrixFactorization(in_library(target, library)), in_library(point, library)
    got = _run(rule, problem, start, 5, step)[0]
    require_close(got.dense(), expected.dense(), f"{name}: {library} and NumPy", tol)
    _check_pure(rule, problem, start, step, name)
    _check_descent(rule, problem, start, step, name)
    _check_storage(rule, problem, start, step, name)
    if isinstance(start, Gauged):
        _check_equivariance(rule, problem, start, step, name, tol, rng)
    _check_refusal(rule)


def _instance(form: Any, rng: Any, dtype: Any, batch: tuple[int, ...]) -> tuple[Any, Any]:
    """A well-conditioned target of spectral norm one, and a start at a third of that norm from it.

    Closer than the least singular value, so that no rule has to pass through a singular point: undamped scaled
    steps with momentum would be thrown off there. A third is meant in the arrays; where a term is a product of many
    of them, the matrix moves by more, and half of its norm is the limit.
    """
    m, n = fitting_shape(form, RANK)
    point = random_point(form, (2 * m, 2 * n), RANK, rng, dtype, batch)
    form = type(point)
    kinds = list(zip(form.spaces, form.ndims, strict=True))
    pairs = zip(kinds, point.arrays(), strict=True)
    arrays = [a if space is FIXED else a / abs(a) if k == 1 else xp.polar(a) for (space, k), a in pairs]
    point = form(*arrays)
    for _ in range(RESCALINGS):
        norm = np.linalg.norm(point.dense(), 2, axis=(-2, -1))
        size, pairs = norm ** (-1 / form.spaces.count(FLAT)), zip(kinds, point.arrays(), strict=True)
        new = form(*[xp.expand(size, k) * a if space is FLAT else a for (space, k), a in pairs])
        if np.allclose(np.linalg.norm(new.dense(), 2, axis=(-2, -1)), norm, rtol=1e-10, atol=0.0):
            break  # it is one already, or of no scale of the arrays, which would vanish or grow
        point = new
    noise = random_direction(point, rng)
    noise = noise.scale(0.3 * moving(point).norm() / noise.norm())
    target = point.dense()
    change, norm = (np.linalg.norm(a, axis=(-2, -1)) for a in (shifted(point, noise, 1.0).dense() - target, target))
    return target, settle(shifted(point, noise.scale(np.minimum(1.0, 0.5 * norm / change)), 1.0))


def _run(rule: Any, problem: Any, point: Any, steps: int, lr: float, state: Any = None) -> tuple[Any, Any]:
    """The point and the state after some steps of constant size."""
    state = rule.init(point) if state is None else state
    for _ in range(steps):
        direction, state, _ = _update(rule, problem, point, state)
        new = point.retract(direction, lr)
        state = rule.carry(state, point, new)
        point = new
    return point, state


def _update(rule: Any, problem: Any, point: Any, state: Any) -> tuple[Any, Any, Any]:
    residual = problem.residual(point)
    gradient = point.pullback(problem.backproject(residual))
    direction, state = rule.update(gradient, state, point, problem.loss(residual))
    return direction, state, gradient


def _leaves(state: Any) -> list[np.ndarray]:
    """Every array and number of a state, in order."""
    if isinstance(state, Factors):
        return [np.array(a) for a in as_arrays(state)]
    if isinstance(state, tuple | list):
        return [leaf for part in state for leaf in _leaves(part)]
    return [np.array(xp.to_numpy(state))]


def _rebuild(template: Any, leaves: list[np.ndarray]) -> Any:
    """A state with the structure of ``template`` from stored arrays, which are used up."""
    if isinstance(template, Factors):
        return template.map(lambda a: _restore(leaves.pop(0), a))
    if isinstance(template, tuple | list):
        return tuple(_rebuild(part, leaves) for part in template)
    return _restore(leaves.pop(0), template)


def _restore(values: np.ndarray, like: Any) -> Any:
    return xp.asarray_like(values, like) if xp.is_torch(like) else values


def _check_pure(rule: Any, problem: Any, point: Any, lr: float, name: str) -> None:
    _, state = _run(rule, problem, point, 2, lr)
    residual = problem.residual(point)
    gradient = point.pullback(problem.backproject(residual))
    before = [_leaves(v) for v in (gradient, state, point)]
    direction, new_state = rule.update(gradient, state, point, problem.loss(residual))
    rule.carry(new_state, point, point.retract(direction, lr))
    for what, old, value in zip(("gradient", "state", "point"), before, (gradient, state, point), strict=True):
        same = all(np.array_equal(a, b) for a, b in zip(old, _leaves(value), strict=True))
        require(same, f"{name}: update must not change the {what} it is given")


def _check_descent(rule: Any, problem: Any, point: Any, lr: float, name: str) -> None:
    direction, _, gradient = _update(rule, problem, point, rule.init(point))
    slope = xp.to_numpy(point.project(gradient).inner(direction))
    require((slope > 0).all(), f"{name}: the first direction does not descend, slope {slope}")
    end, _ = _run(rule, problem, point, 12, lr)
    losses = [xp.to_numpy(problem.loss(problem.residual(p))) for p in (point, end)]
    require((losses[1] < losses[0]).all(), f"{name}: the loss went from {losses[0]} to {losses[1]} in 12 steps")


def _check_storage(rule: Any, problem: Any, point: Any, lr: float, name: str) -> None:
    middle, state = _run(rule, problem, point, 3, lr)
    whole, _ = _run(rule, problem, middle, 3, lr, state)
    file = io.BytesIO()
    np.savez(file, *_leaves(state))
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        leaves = [stored[key] for key in stored.files]
    restored = _rebuild(rule.init(point), leaves)
    require(not leaves, f"{name}: the state has more arrays than init says")
    again, _ = _run(rule, problem, middle, 3, lr, restored)
    require_close(again, whole, f"{name}: a stored state continues the same run", 1e-12)


def _check_equivariance(rule: Any, problem: Any, point: Any, lr: float, name: str, tol: float, rng: Any) -> None:
    turned = point.gauge(point.random_gauge(rng))
    ends = [_run(rule, problem, p, 10, lr)[0].dense() for p in (point, turned)]
    if rule.equivariant:
        require_close(ends[1], ends[0], f"{name}: declared equivariant, but the path depends on the gauge", tol)
    elif isinstance(point, BurerMonteiro):
        gap = float(abs(ends[1] - ends[0]).max())
        require(gap > 1e-5, f"{name}: not declared equivariant, but the path does not depend on the gauge")


def _check_refusal(rule: Any) -> None:
    """A form outside ``needs`` gets a message that names what is needed."""
    for form in FORMS.values():
        if not issubclass(form, rule.needs):
            shape = fitting_shape(form, RANK)
            point = form.random(shape, RANK, np.random.default_rng(0))
            try:
                check_needs(rule, point)
            except TypeError as error:
                named = any(cls.__name__ in str(error) for cls in rule.needs)
                require(named, f"{rule!r}: the refusal of {form.__name__} does not name what is needed: {error}")
            else:
                raise AssertionError(f"{rule!r} must refuse a {form.__name__} point")
