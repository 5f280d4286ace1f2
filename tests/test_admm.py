"""Alternating directions against optimality conditions, dense iterations and the truth."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.baselines import ADMM, RobustADMM
from lowrank_sp.baselines.admm import Absolute, AlternatingDirections, Squares

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def dense(gradient, n):
    return np.asarray(gradient @ np.eye(n))


def assert_in_subdifferential(multiplier, w, atol):
    """``multiplier`` is a subgradient of the nuclear norm at w: U V^T on its spaces, at most 1 beside them."""
    u, s, vt = np.linalg.svd(w)
    r = int((s > 1e-6 * s[0]).sum())
    u, v = u[:, :r], vt[:r].T
    assert np.allclose(u.T @ multiplier, v.T, atol=atol)
    assert np.allclose(multiplier @ v, u, atol=atol)
    assert np.linalg.norm(multiplier - u @ (u.T @ multiplier), 2) < 1 + atol


def completion():
    return lr.synthetic.completion(30, 24, 2, observed=0.6, noise=0.05, seed=0)


def weighted():
    made = completion()
    weights = np.random.default_rng(1).uniform(0.5, 5, made.values.size)
    return lr.MatrixCompletion(made.pattern.rows, made.pattern.cols, made.values, made.shape, weights=weights)


def large_sensing():
    """A map of norm far above one, whose curvature has to be found."""
    made = lr.synthetic.sensing(12, 10, 2, 90, noise=0.05, seed=0)
    return lr.MatrixSensing(5 * made.operator.rows.reshape(-1, 12, 10), 5 * made.data, (12, 10))


@pytest.mark.covers("O18", "O19", "S04")
@pytest.mark.parametrize("make", [completion, weighted, large_sensing], ids=lambda f: f.__name__)
@pytest.mark.parametrize("weight", [0.02, 0.3])
def test_the_penalized_solution_satisfies_its_optimality_conditions(make, weight):
    problem = make()
    start = lr.inits.spectral(problem, lr.SVD, 12 if make is not large_sensing else 10)
    result = lr.solve(problem, start, ADMM(weight), max_iter=3000, tol=1e-9)
    assert result.success
    n = problem.shape[1]
    unit = np.linalg.norm(dense(problem.backproject(problem.data), n), 2)
    gradient = dense(problem.backproject(problem.residual(result.point)), n)
    assert_in_subdifferential(-gradient / (weight * unit), result.point.dense(), 1e-5)


@pytest.mark.covers("O18", "O19", "S04")
def test_the_constrained_solution_has_a_dual_certificate():
    """Exact data: the multiplier is in the range of A^* and a subgradient at the solution, which meets the data."""
    problem = lr.synthetic.completion(30, 24, 2, observed=0.6, seed=0)
    solver, start = ADMM(), lr.inits.spectral(problem, lr.SVD, 2)
    state = solver.start(problem, start)
    for _ in range(150):
        state = solver.step(problem, state)
    memory, w = state.memory, state.point.dense()
    certificate = -memory.penalty * dense(problem.backproject(memory.dual), 24)
    assert_in_subdifferential(certificate, w, 1e-6)
    assert np.linalg.norm(state.residual) < 1e-7 * np.linalg.norm(problem.data)
    assert np.allclose(w, problem.truth.dense(), atol=1e-6)


@pytest.mark.covers("O19")
@pytest.mark.parametrize("penalty", [0.5, 5.0])
def test_the_iterations_are_those_of_the_dense_formula(penalty):
    """Five columns: as many singular vectors as are computed at least, so that nothing is approximate."""
    problem = lr.synthetic.completion(9, 5, 2, observed=0.7, noise=0.1, seed=0)
    mask, y = np.zeros((9, 5)), np.zeros((9, 5))
    mask[problem.pattern.rows, problem.pattern.cols] = 1
    y[problem.pattern.rows, problem.pattern.cols] = problem.data
    start = lr.inits.gaussian(problem, lr.SVD, 5, seed=0)
    w, weight = start.dense(), 0.2 * np.linalg.norm(y, 2)
    z = (y + weight * penalty * mask * w) / (1 + weight * penalty)
    dual = 0 * z
    for _ in range(4):
        u, s, vt = np.linalg.svd(w - (mask * w - z + dual), full_matrices=False)
        w = (u * np.maximum(s - 1 / penalty, 0)) @ vt
        v = mask * w + dual
        z = (y + weight * penalty * v) / (1 + weight * penalty)
        dual = v - z
    solver = AlternatingDirections(Squares(0.2), penalty=penalty, balance=0)
    result = lr.solve(problem, start, solver, max_iter=4, tol=0)
    assert np.allclose(result.point.dense(), w, atol=1e-8)


@pytest.mark.covers("O18", "O19", "S05")
@LIBRARIES
@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_the_robust_solution_satisfies_its_optimality_conditions(convert, hidden):
    """A multiplier of size at most the weight, equal to its sign on the outliers and zero where A is unknown."""
    rng = np.random.default_rng(0)
    made = lr.synthetic.robust(40, 32, 2, 0.05, noise=0.01, seed=0)
    matrix = np.where(rng.random((40, 32)) < hidden, np.nan, made.data)
    problem = lr.RobustPCA(convert(matrix), 0.05)
    solver = RobustADMM()
    state = solver.start(problem, lr.inits.spectral(problem, lr.SVD, 2))
    for _ in range(800):
        state = solver.step(problem, state)
    multiplier = -state.memory.penalty * np.asarray(state.memory.dual)
    w = np.asarray(state.point.dense())
    assert_in_subdifferential(multiplier, w, 1e-4)
    known, weight = ~np.isnan(matrix), 1 / np.sqrt((~np.isnan(matrix)).mean() * 40)
    gap = np.where(known, matrix - w, 0)
    assert (abs(multiplier) <= weight * (1 + 1e-6)).all()
    assert not multiplier[~known].any()
    outlying = abs(gap) > 1e-3
    assert outlying.any()
    assert np.allclose(multiplier[outlying], weight * np.sign(gap[outlying]), atol=1e-6)


@pytest.mark.covers("O18", "S04", "S05")
def test_exact_instances_are_recovered_without_knowing_the_rank():
    sensed = lr.synthetic.sensing(16, 12, 2, seed=0)
    sampled = lr.synthetic.completion(60, 50, 2, observed=0.5, seed=0)
    for problem in (sensed, sampled):
        start = lr.inits.spectral(problem, lr.BurerMonteiro, 1)
        result = lr.solve(problem, start, ADMM(), tol=1e-8)
        assert result.success
        assert result.history["error"][-1] < 1e-6
        assert np.linalg.matrix_rank(result.point.dense(), 1e-4) == 2


@pytest.mark.covers("O18")
@pytest.mark.parametrize("penalty", [1e-3, 1e3])
def test_a_bad_penalty_is_repaired_by_balancing(penalty):
    """In units of which 10 is good, five orders of magnitude each way."""
    problem = lr.synthetic.completion(40, 30, 2, observed=0.6, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    ends = {
        balance: lr.solve(problem, start, AlternatingDirections(Squares(), penalty=penalty, balance=balance), 300)
        for balance in (0, 200)
    }
    assert ends[200].success
    assert ends[200].history["error"][-1] < 1e-6
    assert ends[0].history["error"][-1] > 1e-3


@LIBRARIES
def test_the_library_is_that_of_the_data(convert):
    made = lr.synthetic.completion(20, 15, 2, observed=0.7, seed=0)
    rows, cols = (convert(a.astype(int)) for a in (made.pattern.rows, made.pattern.cols))
    problem = lr.MatrixCompletion(rows, cols, convert(made.values), made.shape)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), ADMM(rank=4), max_iter=200)
    assert type(result.point.left) is type(problem.data)
    assert np.allclose(result.point.dense(), made.truth.dense(), atol=1e-6)


def test_zero_data_give_zero():
    problem = lr.MatrixFactorization(np.zeros((6, 5)))
    start = lr.BurerMonteiro(np.ones((6, 2)), np.ones((5, 2)))
    result = lr.solve(problem, start, ADMM(), max_iter=200)
    assert np.allclose(result.point.dense(), 0, atol=1e-6)


EASY = lr.synthetic.completion(12, 10, 1, observed=0.8, seed=0)
START = lr.inits.spectral(EASY, lr.BurerMonteiro, 1)
BATCH = lr.BurerMonteiro.random((12, 10), 1, np.random.default_rng(0), (2,))
ERRORS = {
    "weight": (lambda: ADMM(-1.0), ValueError, "weight must not be negative, got -1.0"),
    "robust weight": (lambda: RobustADMM(0.0), ValueError, "weight must be positive, got 0.0"),
    "penalty": (lambda: ADMM(penalty=0.0), ValueError, "penalty must be positive, got 0.0"),
    "rank": (lambda: ADMM(rank=0), ValueError, "rank must be at least 1, got 0"),
    "balance": (lambda: AlternatingDirections(Absolute(), balance=-1), ValueError, "balance must not be negative"),
    "problem": (lambda: lr.solve(EASY, START, RobustADMM()), TypeError, "RobustADMM needs a RobustPCA problem"),
    "batch": (lambda: lr.solve(EASY, BATCH, ADMM()), ValueError, "ADMM runs one problem at a time"),
    "robust batch": (
        lambda: lr.solve(lr.RobustPCA(np.ones((12, 10))), BATCH, RobustADMM()),
        ValueError,
        "RobustADMM runs one problem at a time",
    ),
    "trimmed": (
        lambda: lr.solve(lr.RobustPCA(np.ones((12, 10))), START, ADMM()),
        TypeError,
        "ADMM needs a quadratic problem, not RobustPCA",
    ),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
