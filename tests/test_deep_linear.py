"""Deep linear networks as tensor trains with one matrix: gradient flow, and singular values one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lowrank_sp as lr
from lowrank_sp.parameterizations import Core, TensorTrain

SIZE, VALUES = 6, np.array([1.6, 1.0, 0.5])


def rotations(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0] for _ in range(2))
    return u, v


def target() -> np.ndarray:
    u, v = rotations()
    return (u[:, :3] * VALUES) @ v[:, :3].T


def balanced(depth: int, first: np.ndarray) -> lr.BurerMonteiro | Core | TensorTrain:
    """``W_1 ... W_N`` with singular values ``first^(1/N)`` in every layer and the singular vectors of the target."""
    u, v = rotations()
    layer = np.diag(first ** (1 / depth))
    if depth == 2:
        return lr.BurerMonteiro(u @ layer, v @ layer)
    if depth == 3:
        return Core(u @ layer, layer, v @ layer)
    cores = [(u @ layer)[None], *[layer[:, None, :]] * (depth - 2), (layer @ v.T)[..., None]]
    return TensorTrain.of(depth)(*cores)


def descended(point, matrix: np.ndarray, step: float, count: int, every: int = 1) -> list[np.ndarray]:
    """Plain gradient descent on ``1/2 ||W - A||_F^2``, by the pullback of the form."""
    seen = []
    for k in range(count + 1):
        dense = point.dense().reshape(SIZE, SIZE)
        if k % every == 0:
            seen.append(dense)
        gradient = point.pullback((dense - matrix).reshape(point.shape))
        point = point.map(lambda a, g: a - step * g, gradient)
    return seen


@pytest.mark.covers("S17")
def test_a_train_without_middle_modes_is_a_product_of_layers():
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal(s) for s in ((6, 3), (3, 4), (4, 5), (5, 6))]
    train = TensorTrain.of(4)(layers[0][None], layers[1][:, None], layers[2][:, None], layers[3][..., None])
    assert train.shape == (6, 1, 1, 6)
    assert np.allclose(train.dense().reshape(6, 6), np.linalg.multi_dot(layers))
    g = rng.standard_normal((6, 6))
    gradient = train.pullback(g.reshape(train.shape))
    before, after = layers[0] @ layers[1], layers[3]
    assert np.allclose(gradient.arrays()[2][:, 0], before.T @ g @ after.T)


@pytest.mark.covers("S17", "O22")
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_singular_values_follow_the_flow_of_their_depth(depth):
    """From balanced layers ``ds/dt = -N s^(2 - 2/N) (s - a)`` for every one, whatever the others do."""
    first, step, count = np.array([0.3, 0.2, 0.25, 0.0, 0.0, 0.0]), 2e-4, 4000
    seen = descended(balanced(depth, first), target(), step, count, every=1000)
    u, v = rotations()
    wanted = np.concatenate((VALUES, np.zeros(3)))
    flow = solve_ivp(
        lambda _, s: -depth * abs(s) ** (2 - 2 / depth) * (s - wanted),
        (0, step * count),
        first,
        t_eval=[step * 1000 * k for k in range(5)],
        rtol=1e-9,
        atol=1e-12,
    ).y
    for matrix, values in zip(seen, flow.T, strict=True):
        core = u.T @ matrix @ v
        assert np.allclose(core, np.diag(np.diag(core)), atol=1e-10)
        assert np.allclose(np.diag(core), values, atol=2e-3)
    assert abs(seen[-1] - seen[0]).max() > 0.1


@pytest.mark.covers("O22")
def test_depth_keeps_small_values_small_and_lets_large_ones_run():
    """At equal starts far below the target, layers of greater depth stay longer and then catch up faster."""
    lengths = {}
    for depth in (2, 3, 4):
        first = np.full(SIZE, 0.05)
        path = np.array([np.linalg.norm(w, 2) for w in descended(balanced(depth, first), target(), 5e-3, 3000)])
        quarter, most = (int(np.argmax(path > share * VALUES[0])) for share in (0.25, 0.9))
        lengths[depth] = quarter, (most - quarter) / quarter
    waits = [lengths[d][0] for d in (2, 3, 4)]
    shares = [lengths[d][1] for d in (2, 3, 4)]
    assert waits == sorted(waits)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.covers("S21")
@pytest.mark.parametrize("depth", [2, 3])
def test_from_a_small_start_the_loss_stays_at_saddles_of_rising_rank(depth):
    """Between long rests near the best approximations of rank 0, 1 and 2, one singular value is learned at a time."""
    rng = np.random.default_rng(2)
    tiny = 1e-16 if depth == 2 else 1e-3
    shapes = [(SIZE, SIZE)] * depth
    arrays = [tiny**0.5 * rng.standard_normal(s) / SIZE**0.5 for s in shapes]
    point = (lr.BurerMonteiro if depth == 2 else Core)(*arrays)
    seen = descended(point, target(), 0.02, 8000 if depth == 2 else 20000, every=10)
    losses = np.array([0.5 * np.linalg.norm(w - target()) ** 2 for w in seen])
    rests = [0.5 * float(np.sum(VALUES[k:] ** 2)) for k in range(4)]
    near = [int(np.sum(abs(losses - rest) < 0.02 * rests[0])) for rest in rests]
    between = len(losses) - sum(near)
    assert min(near) > 10
    assert between < 0.5 * sum(near)
    assert np.all(np.diff(losses) <= 1e-12)
    u, v = rotations()
    for k in (1, 2):  # at a rest the network is the best approximation of that rank
        matrix = seen[int(np.argmin(abs(losses - rests[k])))]
        assert np.linalg.norm(matrix - (u[:, :k] * VALUES[:k]) @ v[:, :k].T) < 0.15


@pytest.mark.covers("S21")
def test_deflation_learns_the_same_components_one_after_the_other():
    """Rank one on what is left, again and again, finds the singular triplets in the order of their size."""
    left, found = target(), []
    for k in range(3):
        problem = lr.MatrixFactorization(left)
        start = lr.inits.spectral(problem, lr.BurerMonteiro, rank=1, seed=k)
        found.append(lr.solve(problem, start, lr.AltScaledGD()).point.dense())
        left = left - found[-1]
    assert np.linalg.norm(left) < 1e-6
    assert np.allclose([np.linalg.norm(part, 2) for part in found], VALUES, atol=1e-6)


def sensed(rank: int, seed: int):
    """400 measurements of a matrix of rank 2, from random orthonormal factors."""
    problem = lr.synthetic.sensing(12, 10, rank=2, measurements=400, condition_number=5.0, seed=0)
    start = lr.inits.stiefel(problem, lr.PoLAR, rank=rank, seed=seed)
    return lr.solve(problem, start, lr.RiemannianGD(), max_iter=300, tol=0)


@pytest.mark.covers("S24")
def test_orthonormal_factors_of_too_large_a_rank_recover_about_as_fast():
    counts = {}
    for rank in (2, 4, 6):
        results = [sensed(rank, seed) for seed in range(5)]
        errors = [result.history["error"] for result in results]
        assert max(e[-1] for e in errors) < 1e-9
        assert all(np.all(np.linalg.svd(r.point.core, compute_uv=False)[2:] < 1e-8) for r in results)
        counts[rank] = float(np.median([np.argmax(e < 1e-6) for e in errors]))
    assert max(counts[4], counts[6]) < 1.5 * counts[2]
