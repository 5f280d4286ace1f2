"""Frank-Wolfe and rank-one pursuit against closed forms, a proximal method and dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.baselines import FrankWolfe, RankOnePursuit


def nuclear(a) -> float:
    return float(np.linalg.svd(a, compute_uv=False).sum())


def onto_ball(a, radius: float):
    """The nearest matrix with nuclear norm at most ``radius``, by bisection for the shift of singular values."""
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    low, high = 0.0, float(s[0])
    for _ in range(100):
        mid = (low + high) / 2
        low, high = (mid, high) if np.maximum(s - mid, 0).sum() > radius else (low, mid)
    return (u * np.maximum(s - high, 0)) @ vh


def zero(problem, rank: int = 1):
    m, n = problem.shape
    return lr.BurerMonteiro(np.zeros((m, rank)), np.zeros((n, rank)))


@pytest.mark.covers("O20")
def test_frank_wolfe_finds_the_projection_on_the_ball():
    a = np.random.default_rng(0).standard_normal((8, 6))
    problem, best = lr.MatrixFactorization(a), onto_ball(a, 4.0)
    result = lr.solve(problem, zero(problem), FrankWolfe(4.0), max_iter=3000, tol=0)
    least = 0.5 * np.linalg.norm(best - a) ** 2
    assert nuclear(result.point.dense()) <= 4.0 * (1 + 1e-9)
    assert 0 <= result.fun - least + 1e-9 < 1e-3 * least
    assert np.linalg.norm(result.point.dense() - best) < 0.05


@pytest.mark.covers("O20")
def test_the_loss_is_within_the_duality_gap_of_the_least_at_every_iteration():
    """For completion, whose constrained solution a long proximal run with the matching penalty gives."""
    problem = lr.synthetic.completion(15, 12, 2, observed=0.6, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    proximal = lr.solve(problem, start, lr.baselines.APG(0.2, rank=12), max_iter=2000, tol=1e-14).point
    radius, least = nuclear(proximal.dense()), float(problem.loss(problem.residual(proximal)))
    solver, point = FrankWolfe(radius), zero(problem)
    state = solver.start(problem, point)
    for _ in range(200):
        before, state = state, solver.step(problem, state)
        gap = state.gradient_norm * radius  # at the point before
        assert before.loss - least <= gap * (1 + 1e-3) + 1e-9
        assert state.loss <= before.loss + 1e-12
    assert state.loss - least < 0.1 * least
    residual = problem.residual(state.point)
    assert np.allclose(state.residual, residual, atol=1e-10)
    assert nuclear(state.point.dense()) <= radius * (1 + 1e-9)


@pytest.mark.covers("O20")
def test_pursuit_of_a_known_matrix_is_its_truncated_decomposition():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((k, 6)))[0] for k in (9, 7))
    problem = lr.MatrixFactorization((u * 0.5 ** np.arange(6)) @ v.T)
    for k in (1, 3):
        result = lr.solve(problem, zero(problem), RankOnePursuit(), max_iter=k, tol=0)
        assert np.linalg.matrix_rank(result.point.dense(), tol=1e-8) == k
        assert np.allclose(result.point.dense(), (u[:, :k] * 0.5 ** np.arange(k)) @ v[:, :k].T, atol=1e-3)


@pytest.mark.covers("O20")
def test_weights_of_pursuit_are_those_of_dense_least_squares():
    problem = lr.synthetic.sensing(9, 8, 3, measurements=60, seed=2)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 1)
    solver = RankOnePursuit()
    state = solver.start(problem, start)
    for _ in range(4):
        state = solver.step(problem, state)
    atoms = [atom.point.dense() for atom in state.memory[0]]
    assert len(atoms) == 5
    stack = problem.operator.rows.reshape(-1, 9, 8)
    images = np.stack([np.einsum("kij,ij->k", stack, atom) for atom in atoms], 1)
    weights = np.linalg.lstsq(images, problem.data, rcond=None)[0]
    assert np.allclose(state.point.dense(), np.tensordot(weights, np.stack(atoms), 1), atol=1e-8)
    gradient = np.einsum("k,kij->ij", np.einsum("kij,ij->k", stack, state.point.dense()) - problem.data, stack)
    assert np.allclose([np.vdot(gradient, atom) for atom in atoms], 0, atol=1e-8)


@pytest.mark.parametrize("solver", [FrankWolfe(3.0), RankOnePursuit()], ids=["frank-wolfe", "pursuit"])
def test_torch_does_what_numpy_does(solver):
    a = np.random.default_rng(3).standard_normal((8, 6))
    found = []
    for convert in (np.asarray, torch.as_tensor):
        problem = lr.MatrixFactorization(convert(a))
        start = zero(problem).map(lambda x, convert=convert: convert(x + 0.1))
        result = lr.solve(problem, start, solver, max_iter=4, tol=0)
        assert type(result.point.left) is type(convert(a))
        found.append(np.asarray(result.point.dense()))
    assert np.allclose(*found, atol=1e-6)


def test_a_start_outside_the_ball_is_scaled_onto_it():
    problem = lr.MatrixFactorization(np.eye(5))
    start = FrankWolfe(2.0).start(problem, lr.BurerMonteiro(3 * np.eye(5), np.eye(5)))
    assert nuclear(start.point.dense()) == pytest.approx(2.0)


def test_bad_input():
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        FrankWolfe(0)
    batch = lr.BurerMonteiro.random((5, 4), 1, np.random.default_rng(0), (2,))
    problem = lr.MatrixFactorization(np.ones((5, 4)))
    for solver in (FrankWolfe(1.0), RankOnePursuit()):
        with pytest.raises(ValueError, match="one problem at a time"):
            lr.solve(problem, batch, solver)
