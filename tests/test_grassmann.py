"""Tucker approximation over subspaces against automatic differentiation, pymanopt and tensorly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymanopt.manifolds import Grassmann

import lowrank_sp as lr
from lowrank_sp.baselines import HOOI, GrassmannTucker
from lowrank_sp.baselines.grassmann import _ascent
from lowrank_sp.parameterizations import Tucker

SHAPE, RANKS = (7, 6, 5), (3, 2, 2)


def noisy(noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = Tucker.random(SHAPE, RANKS, rng).dense()
    return truth + noise * np.linalg.norm(truth) / truth.size**0.5 * rng.standard_normal(SHAPE)


def start(seed=1):
    return Tucker.random(SHAPE, RANKS, np.random.default_rng(seed))


@pytest.mark.covers("O15")
def test_the_gradient_is_that_of_the_product_of_grassmann_manifolds():
    a = torch.as_tensor(noisy())
    factors = [torch.linalg.qr(torch.as_tensor(u)).Q.requires_grad_() for u in start().arrays()[1:]]
    value = 0.5 * torch.einsum("ijk,ia,jb,kc->abc", a, *factors).square().sum()
    for k, (u, full) in enumerate(zip(factors, torch.autograd.grad(value, factors), strict=True)):
        point = u.detach().numpy()
        expected = Grassmann(*point.shape).projection(point, full.numpy())
        ours, _ = _ascent(a.numpy(), [f.detach().numpy() for f in factors], k)
        assert np.allclose(ours, expected)


@pytest.mark.covers("O15")
def test_it_ends_where_alternating_singular_vectors_do():
    problem = lr.TensorFactorization(noisy())
    begin = lr.inits.spectral(problem, Tucker, RANKS)
    ours = lr.solve(problem, begin, GrassmannTucker(), max_iter=300, tol=0)
    theirs = lr.solve(problem, begin, HOOI(), max_iter=300, tol=0)
    assert np.allclose(ours.point.dense(), theirs.point.dense(), atol=1e-6)
    assert np.all(np.diff(ours.history["loss"]) <= 1e-12)
    for k, u in enumerate(ours.point.arrays()[1:]):
        assert np.allclose(u.T @ u, np.eye(RANKS[k]))
        gradient, _ = _ascent(problem.data, list(ours.point.arrays()[1:]), k)
        assert np.linalg.norm(gradient) < 1e-6


@pytest.mark.covers("O15")
def test_a_tensor_of_the_ranks_is_found_from_random_subspaces():
    problem = lr.TensorFactorization(noisy(0.0))
    for seed in range(5):
        assert lr.solve(problem, start(seed), GrassmannTucker(), max_iter=200, tol=0).fun < 1e-18 * problem.scale


def test_torch_does_what_numpy_does():
    found = []
    for convert in (np.asarray, torch.as_tensor):
        problem = lr.TensorFactorization(convert(noisy()))
        result = lr.solve(problem, start().map(convert), GrassmannTucker(), max_iter=5, tol=0)
        assert type(result.point.arrays()[0]) is type(convert(noisy()))
        found.append(np.asarray(result.point.dense()))
    assert np.allclose(*found)


def test_a_start_of_the_solution_stays():
    problem = lr.TensorFactorization(noisy(0.0))
    exact = Tucker.from_tensor(problem.data, RANKS)
    assert lr.solve(problem, exact, GrassmannTucker(), max_iter=3, tol=0).fun < 1e-20 * problem.scale


def test_bad_input():
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\), got 1"):
        GrassmannTucker(1)
    problem = lr.TensorFactorization(noisy())
    with pytest.raises(TypeError, match="needs one Tucker start with all factors, got CP"):
        lr.solve(problem, lr.CP.random(SHAPE, 2, np.random.default_rng(0)), GrassmannTucker())
    part = Tucker.of(3, (0, 1)).random(SHAPE, 2, np.random.default_rng(0))
    with pytest.raises(TypeError, match="with all factors"):
        lr.solve(problem, part, GrassmannTucker())
    matrix = lr.MatrixFactorization(np.eye(4))
    with pytest.raises(TypeError, match="needs a TensorFactorization, not MatrixFactorization"):
        lr.solve(matrix, lr.BurerMonteiro(np.ones((4, 1)), np.ones((4, 1))), GrassmannTucker())
