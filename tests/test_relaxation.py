"""Over-relaxed alternating least squares: the amount against eigenvalues, never a higher loss, fewer sweeps."""

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.descent import SAFE, AlternatingLeastSquares


def radius(matrix, relaxation):
    """The rate of block over-relaxation on a quadratic, by the eigenvalues of its iteration."""
    k = len(matrix) // 2
    diagonal, below = np.zeros_like(matrix), np.zeros_like(matrix)
    diagonal[:k, :k], diagonal[k:, k:] = matrix[:k, :k], matrix[k:, k:]
    below[k:, :k] = matrix[k:, :k]
    step = np.linalg.solve(diagonal + relaxation * below, relaxation * matrix)
    return max(abs(np.linalg.eigvals(np.eye(2 * k) - step)))


@pytest.mark.parametrize("observed_at", [1.0, 1.05])
def test_the_amount_is_eight_tenths_of_the_best_of_a_quadratic(observed_at):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((16, 8))
    matrix = root.T @ root
    best = min(np.linspace(1, 1.6, 6001), key=lambda w: radius(matrix, w))
    assert best > 1.1  # beyond where the rate is observed
    rate = radius(matrix, observed_at)
    chosen = AlternatingLeastSquares(relaxation=1.9)._relaxation(observed_at, rate**2, 1.0)
    assert np.isclose(chosen, 1 + SAFE * (best - 1), atol=1e-3)
    assert AlternatingLeastSquares(relaxation=1.01)._relaxation(observed_at, rate**2, 1.0) == 1.01


def test_sweeps_without_a_length_keep_the_amount():
    solver = AlternatingLeastSquares()
    assert solver._relaxation(1.2, 0.0, 1.0) == solver._relaxation(1.2, 1.0, 0.0) == 1.2
    assert solver._relaxation(1.2, np.nan, 1.0) == 1.2


@pytest.mark.parametrize("seed", range(3))
def test_fewer_sweeps_to_the_same_matrix(seed):
    problem = lr.synthetic.completion(120, 110, 3, 0.25, 10.0, seed=seed)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    plain, relaxed = (
        lr.solve(problem, start, AlternatingLeastSquares(relaxation=most), 200, 0.0) for most in (1.0, 1.3)
    )
    assert max(plain.history["error"][-1], relaxed.history["error"][-1]) < 1e-12
    assert relaxed.iterations_to(1e-10) <= 0.85 * plain.iterations_to(1e-10)


def test_noisy_losses_never_rise_under_a_fixed_ridge():
    problem = lr.synthetic.completion(40, 30, 2, 0.4, noise=0.1, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, 2, scale=1.0, seed=0)
    solver = AlternatingLeastSquares(cap=0.0, relaxation=1.9)
    losses = lr.solve(problem, start, solver, 60, 0.0).history["loss"]
    assert (np.diff(losses) <= 1e-12 * losses[0]).all()


def test_batches_take_plain_sweeps():
    problem = lr.synthetic.factorization(12, 10, 2, seed=0)
    start = lr.inits.gaussian(problem, lr.BurerMonteiro, 2, 1.0, 0)
    whole = lr.solve(problem, start.map(lambda a: np.stack([a, a])), lr.ALS(), 5, 0.0)
    alone = lr.solve(problem, start, AlternatingLeastSquares(relaxation=1.0), 5, 0.0)
    assert np.allclose(whole.point.dense()[1], alone.point.dense(), atol=1e-8)


@pytest.mark.parametrize("most", [0.9, 2.0, np.nan])
def test_relaxation_out_of_range(most):
    with pytest.raises(ValueError, match=r"relaxation must lie in \[1, 2\), got"):
        AlternatingLeastSquares(relaxation=most)
