"""Step policies: the exact line search against scipy and a grid, polynomials by hypothesis."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import lowrank_sp as lr
from lowrank_sp.rules import Plain, Scaled
from lowrank_sp.rules.step import Move, Place, minimize_polynomial, parse_step

NUMBERS = st.floats(-10, 10).map(lambda x: round(x, 3))


def value(coefficients, t) -> Any:
    return sum(c * t**k for k, c in enumerate(coefficients))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_minimiser_of_a_loss_polynomial_beats_every_grid_point(rows):
    """``1/2 ||c_0 + c_1 t + c_2 t^2||^2``: no point of a fine grid, and no local minimum, lies lower."""
    residuals = np.array(rows)
    products = residuals.T @ residuals
    coefficients = np.zeros(5)
    for i in range(3):
        for j in range(3):
            coefficients[i + j] += 0.5 * products[i, j]
    best = float(minimize_polynomial(coefficients))
    reached = value(coefficients, best)
    scale = 1e-9 * np.abs(coefficients).max() + 1e-12
    assert reached <= coefficients[0] + scale
    if coefficients[1] != 0:
        grid = np.linspace(-20, 20, 4001)
        assert reached <= value(coefficients, grid).min() + scale


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NUMBERS, st.floats(0.01, 10), st.floats(-4, 4))
def test_minimiser_of_a_parabola_is_its_vertex(c0, curvature, vertex):
    coefficients = np.array([c0 + curvature * vertex**2, -2 * curvature * vertex, curvature])
    assert np.isclose(float(minimize_polynomial(coefficients)), vertex, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1.0, 1e8, 1e100])
def test_minimiser_scales_with_the_variable_and_the_values(scale):
    """A double well with minima near -1 (deeper) and 1, stretched along either axis."""
    well = np.array([1.0, 0.1, -2.0, 0.0, 1.0])
    found: Any = minimize_scalar(lambda t: value(well, t), bounds=(-2, 0), method="bounded", options={"xatol": 1e-12})
    expected = found.x
    assert np.isclose(float(minimize_polynomial(well * scale)), expected, rtol=1e-6)
    if 1e-10 < scale < 1e10:
        stretched = well / scale ** np.arange(5.0)
        assert np.isclose(float(minimize_polynomial(stretched)), expected * scale, rtol=1e-6)


def test_a_batch_of_polynomials_and_those_without_a_minimiser():
    batch = np.array([[1.0, -2.0, 1.0, 0, 0], [3.0, 0, 0, 0, 0], [np.nan, 1, 1, 1, 1], [1.0, np.inf, 1, 0, 0]])
    assert np.allclose(minimize_polynomial(batch), [1.0, 0, 0, 0])
    assert minimize_polynomial(batch.reshape(2, 2, 5)).shape == (2, 2)


def factorization(rng):
    return lr.MatrixFactorization(rng.standard_normal((8, 6)))


def completion(rng):
    array = rng.standard_normal((8, 6))
    array[rng.random((8, 6)) < 0.3] = np.nan
    return lr.MatrixCompletion.from_array(array)


def sensing(rng):
    return lr.MatrixSensing(rng.standard_normal((40, 8, 6)), rng.standard_normal(40), (8, 6))


@pytest.mark.parametrize("form", [lr.BurerMonteiro, lr.PoLAR], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [factorization, completion, sensing], ids=lambda f: f.__name__)
def test_exact_line_search_minimises_the_loss_on_the_line(make, form):
    """Against a grid and scipy, on the dense loss of straight moves (a polynomial of degree 4 or 6)."""
    from lowrank_sp.rules import translate

    rng = np.random.default_rng(0)
    problem = make(rng)
    point = form.random((8, 6), 2, rng)
    gradient = problem.gradient(point)
    direction = gradient + gradient.map(lambda a: 0.3 * rng.standard_normal(a.shape))
    residual = problem.residual(point)
    place = Place(point, residual, problem.loss(residual))
    every = tuple(range(len(point.names)))
    search = lr.ExactLineSearch()
    state = search.init()

    def loss(t):
        moved = type(point)(*[a - t * d for a, d in zip(point.arrays(), direction.arrays(), strict=True)])
        return float(problem.loss(problem.residual(moved)))

    new, state = search.advance(place, Move(problem, gradient, direction, translate, every), state)
    grid = np.linspace(-1, 1, 2001)
    start = grid[np.argmin([loss(t) for t in grid])]
    best: Any = minimize_scalar(loss, bracket=(start - 1e-3, start, start + 1e-3), tol=1e-12)
    assert np.isclose(float(new.loss), best.fun, rtol=1e-10)
    assert np.isclose(float(new.loss), float(problem.loss(problem.residual(new.point))), rtol=1e-10)


def test_updated_residuals_stay_those_of_the_point():
    """Polynomial updates of the residual between its recomputations do not drift."""
    problem = lr.synthetic.completion(30, 20, rank=2, observed=0.5, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, 2, scale=1.0, seed=0)
    solver = lr.ScaledGD(lr.ExactLineSearch(refresh=1000))
    state = solver.start(problem, start)
    for _ in range(15):
        state = solver.step(problem, state)
        fresh = problem.residual(state.point)
        assert np.abs(state.residual - fresh).max() < 1e-12


@pytest.mark.parametrize("step", ["auto", lr.ExactLineSearch(), lr.Backtracking()], ids=str)
def test_safeguarded_steps_never_raise_the_loss(step):
    problem = lr.synthetic.factorization(12, 10, rank=3, condition_number=20, noise=0.1, seed=1)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, 3, scale=1.0, seed=1)
    losses = lr.solve(problem, start, lr.AltGD(step), max_iter=40, tol=0).history["loss"]
    assert (np.diff(losses) <= 1e-14).all()


def test_barzilai_borwein_keeps_below_the_largest_recent_loss():
    problem = lr.synthetic.factorization(12, 10, rank=3, condition_number=50, seed=1)
    start = lr.inits.spectral(lr.MatrixFactorization(problem.data + 0.1), lr.BurerMonteiro, 3)
    losses = lr.solve(problem, start, lr.GD(lr.BarzilaiBorwein(memory=3)), max_iter=60, tol=0).history["loss"]
    for k in range(3, len(losses)):
        assert losses[k] <= losses[max(0, k - 3) : k].max() * (1 + 1e-12) + 1e-28


def test_polyak_step_reaches_the_least_loss_of_a_scaled_parabola():
    """With ScaledGD on one flat factor the Polyak step is half the exact one, so the loss falls fourfold."""
    rng = np.random.default_rng(2)
    right = rng.standard_normal((6, 2))
    target = rng.standard_normal((8, 2)) @ right.T
    problem = lr.MatrixFactorization(target)
    start = lr.BurerMonteiro(rng.standard_normal((8, 2)), right)
    gradient = problem.gradient(start).with_array(1, 0 * right)
    direction = start.whiten(gradient)
    residual = problem.residual(start)
    place = Place(start, residual, problem.loss(residual))
    new, _ = lr.Polyak().advance(place, Move(problem, gradient, direction, lambda p, d, s, w: p - d.scale(s), (0,)), ())
    assert np.isclose(float(new.loss), float(place.loss) / 4)


def test_backtracking_on_a_manifold_gains_what_armijo_asks():
    problem = lr.synthetic.factorization(12, 10, rank=3, condition_number=20, seed=3)
    point = lr.inits.gaussian(problem, lr.PoLAR, 3, seed=3)
    for rule in (Plain(), Scaled()):
        gradient = problem.gradient(point)
        direction, _ = rule.update(gradient, (), point)
        residual = problem.residual(point)
        place = Place(point, residual, problem.loss(residual))
        move = Move(problem, point.project(gradient), direction, lambda p, d, s, w: p.retract(d, s, w), (0, 1, 2))
        new, _ = lr.Backtracking().advance(place, move, ())
        assert new.loss < place.loss
        assert np.isclose(float(new.loss), float(problem.loss(problem.residual(new.point))))


@pytest.mark.parametrize("step", [0, -1.0, float("nan"), float("inf")])
def test_constant_steps_must_be_positive(step):
    with pytest.raises(ValueError, match="step_size must be positive"):
        parse_step(step)


@pytest.mark.parametrize("step", ["fast", None, True, (1.0,)])
def test_unknown_steps_are_refused(step):
    with pytest.raises(ValueError, match=r"step_size must be .*auto"):
        parse_step(step)


@pytest.mark.parametrize("factor", [2.0**-70, 2.0**70])
@pytest.mark.parametrize("search", [lr.ExactLineSearch(), lr.Backtracking()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("form", [lr.BurerMonteiro, lr.PoLAR], ids=lambda f: f.__name__)
def test_the_length_of_a_direction_does_not_matter(form, search, factor):
    rng = np.random.default_rng(4)
    problem, point = completion(rng), form.random((8, 6), 2, rng)
    residual = problem.residual(point)
    place, gradient = Place(point, residual, problem.loss(residual)), point.project(problem.gradient(point))

    def mover(x, direction, step, wrt):
        return x.retract(direction, step, wrt)

    moves = [Move(problem, gradient, gradient.scale(c), mover, tuple(range(len(point.names)))) for c in (1.0, factor)]
    near, far = (search.advance(place, move, search.init())[0] for move in moves)
    assert near.loss < place.loss
    assert all(np.array_equal(a, b) for a, b in zip(near.point.arrays(), far.point.arrays(), strict=True))


@pytest.mark.parametrize("solver", [lr.ScaledCG(), lr.AltScaledGD(), lr.RiemannianCG()], ids=lambda s: s.name)
@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_measurements_in_other_units_are_fitted_in_single_precision(unit, solver):
    """The loss along a direction is the tenth power of such a unit."""
    rng = np.random.default_rng(5)
    stack, truth = rng.standard_normal((200, 9, 7)), np.outer(np.arange(1.0, 10), np.ones(7))
    data = np.einsum("kij,ij->k", stack, truth)
    problem = lr.MatrixSensing((unit * stack).astype(np.float32), (unit * data).astype(np.float32), (9, 7))
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 1)
    found = lr.solve(problem, start, solver, 200).point.dense()
    assert np.linalg.norm(found - truth) < 1e-4 * np.linalg.norm(truth)
