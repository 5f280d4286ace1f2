"""MatrixIRLS: its step against a dense weighted least-squares solve, and what it survives."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.reweighted import IterativelyReweighted, _weights

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def few_entries(over, condition_number, seed, n=500, rank=5, geometric=True):
    """Every row and column is observed at least rank times."""
    observed = over * rank * (2 * n - rank) / n**2
    spectrum = np.geomspace(1, 1 / condition_number, rank) if geometric else None
    return lr.synthetic.completion(
        n, n, rank, observed, condition_number, seed=seed, least=rank, spectrum=spectrum
    ), rank


def error(problem, rank, **settings):
    start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
    return lr.solve(problem, start, lr.MatrixIRLS(**settings), 200).history["error"][-1]


@pytest.mark.parametrize("kind", [float, complex])
def test_a_step_solves_the_weighted_problem(kind):
    """Brute force: the quadratic bound as a dense matrix on vec(W), minimised over the unknown entries."""
    problem = lr.synthetic.completion(12, 9, 2, 0.6, 10.0, seed=0, dtype=kind)
    solver = IterativelyReweighted(accuracy=1e-12, powers=60)
    state = solver.start(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2).to(lr.FixedRank))
    for _ in range(2):
        state = solver.step(problem, state)
    old = state.memory
    new = solver.step(problem, state).memory
    filled = old.low.dense()
    filled[problem.pattern.rows, problem.pattern.cols] = problem.data
    u, s, vh = np.linalg.svd(filled)
    assert np.isclose(old.epsilon, s[2])
    level = np.maximum(s, old.epsilon)
    heights = np.concatenate((level, np.full(12 - 9, old.epsilon)))
    basis = np.kron(u.conj().T, vh.conj())  # vec in C order: U^H W V
    weight = basis.conj().T @ np.diag(1 / np.kron(heights, level)) @ basis
    known = np.zeros(108, bool)
    known[problem.pattern.rows * 9 + problem.pattern.cols] = True
    w = np.zeros(108, kind)
    w[known] = problem.data
    w[~known] = -np.linalg.solve(weight[np.ix_(~known, ~known)], weight[np.ix_(~known, known)] @ w[known])
    ours = new.low.dense()
    ours[problem.pattern.rows, problem.pattern.cols] = problem.data
    assert np.linalg.norm(ours - w.reshape(12, 9)) < 1e-7 * np.linalg.norm(w)


def test_weights_are_those_of_the_bound():
    problem, rank = few_entries(3, 100.0, 0, n=40, rank=3)
    solver = IterativelyReweighted()
    state = solver.start(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank).to(lr.FixedRank))
    state = solver.step(problem, state)
    base, weights = _weights(state.memory)
    s, eps = state.memory.wide.values[: base.rank], state.memory.epsilon
    inside = s > 1.001 * eps
    ratio = eps**2 / (np.outer(s, s) - eps**2)
    assert np.allclose(weights.core[np.ix_(inside, inside)], ratio[np.ix_(inside, inside)])
    assert np.allclose(weights.left[:, inside], (eps / (s - eps))[inside])


def test_epsilon_never_rises_and_data_are_met():
    problem, rank = few_entries(3, 1e3, 1, n=60, rank=3)
    solver = IterativelyReweighted()
    state = solver.start(problem, lr.inits.spectral(problem, lr.BurerMonteiro, rank).to(lr.FixedRank))
    levels = [state.memory.epsilon]
    for _ in range(20):
        state = solver.step(problem, state)
        levels.append(state.memory.epsilon)
        gap = problem.data - state.memory.low.entries(problem.pattern.rows, problem.pattern.cols)
        assert np.allclose(gap, state.memory.gap, atol=1e-12)
    assert (np.diff(levels) <= 1e-15 * levels[0]).all()  # once the data are met, what is left is rounding
    assert levels[-1] < 1e-6 * levels[0]


@pytest.mark.covers("S03")
@pytest.mark.parametrize("geometric", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_condition_number_1e8_with_three_times_the_degrees_of_freedom(seed, geometric):
    """The small singular values too: the last one is 1e-8 of the first."""
    problem, rank = few_entries(3, 1e8, seed, geometric=geometric)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
    result = lr.solve(problem, start, lr.MatrixIRLS(), 60, tol=1e-12)
    assert result.history["error"][-1] < 1e-9
    found = np.linalg.svd(result.point.dense(), compute_uv=False)[:rank]
    if geometric:
        assert np.allclose(found, np.geomspace(1, 1e-8, rank), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.covers("S03")
def test_condition_number_1e8_on_ten_seeds():
    assert sum(error(*few_entries(3, 1e8, seed)) < 1e-4 for seed in range(10)) >= 9


@pytest.mark.slow
@pytest.mark.covers("S03")
def test_twice_the_degrees_of_freedom_mostly_suffice():
    assert sum(error(*few_entries(2, 1e8, seed)) < 1e-4 for seed in range(5)) >= 4


@LIBRARIES
@pytest.mark.parametrize("kind", [np.float64, np.complex128, np.float32])
def test_types_and_libraries(convert, kind):
    made = lr.synthetic.completion(60, 45, 3, 0.4, 100.0, seed=0, dtype=complex if kind is np.complex128 else float)
    rows, cols = (convert(a.astype(np.int64)) for a in (made.pattern.rows, made.pattern.cols))
    problem = lr.MatrixCompletion(rows, cols, convert(made.data.astype(kind)), made.shape)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    result = lr.solve(problem, start, lr.MatrixIRLS(), 60)
    assert isinstance(result.point, lr.BurerMonteiro)
    assert result.point.left.dtype == problem.data.dtype
    assert made.error(result.point.map(np.asarray)) < (1e-4 if kind is np.float32 else 1e-9)


def test_wide_and_full_rank_matrices():
    """More columns than rows, a rank at which there is no spare singular value, and rank one."""
    for shape, rank in (((12, 40), 3), ((3, 30), 3), ((20, 15), 1)):
        made = lr.synthetic.completion(*shape, rank, 0.9, seed=1)
        start = lr.inits.spectral(made, lr.BurerMonteiro, rank)
        result = lr.solve(made, start, lr.MatrixIRLS(), 50)
        assert result.history["loss"][-1] < 1e-15


ERRORS = {
    "problem": (lambda p, s: lr.solve(lr.MatrixFactorization(np.eye(4)), s, lr.MatrixIRLS()), TypeError, "MatrixCompl"),
    "accuracy": (lambda p, s: lr.MatrixIRLS(accuracy=0.0), ValueError, "accuracy must lie in"),
    "inner": (lambda p, s: lr.MatrixIRLS(inner=0), ValueError, "inner must be a positive integer"),
    "batch": (
        lambda p, s: lr.solve(p, s.map(lambda a: np.stack([a, a])), lr.MatrixIRLS()),
        ValueError,
        "one problem at a time",
    ),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    problem = lr.synthetic.completion(4, 4, 1, 0.9, seed=0)
    with pytest.raises(kind, match=message):
        call(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 1))
