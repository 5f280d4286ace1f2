"""A spurious minimum of rank-one sensing, its curvature before and after the lift, and the way out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp import lifted, lowered

# Three measurements of z z^T with z = (1, 0), for which x = (0, 1 / sqrt 2) is a strict local minimum.
MATRICES = np.array([[[1, 0], [0, 0.5]], [[0, 1], [1, 0]], [[0, 0], [0, 0.75**0.5]]])
SOLUTION, SPURIOUS = np.array([1.0, 0.0]), np.array([0.0, 0.5**0.5])
ORDERS = pytest.mark.parametrize("order", [3, 5])


def sensing() -> lr.MatrixSensing:
    return lr.MatrixSensing(MATRICES, MATRICES @ SOLUTION @ SOLUTION, (2, 2))


def power(x: np.ndarray, order: int) -> np.ndarray:
    w = x
    for _ in range(order - 1):
        w = np.kron(w, x)
    return w


def column(w: np.ndarray) -> lr.SymmetricBurerMonteiro:
    return lr.SymmetricBurerMonteiro(w[:, None])


def curvatures(order: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and eigenvalues of the Hessian of the lifted loss, by automatic differentiation of its definition."""
    stack, y = MATRICES, MATRICES @ SOLUTION @ SOLUTION
    big, values = stack, y
    for _ in range(order - 1):
        big = np.array([np.kron(a, b) for a in big for b in stack])
        values = np.kron(values, y)
    a, b = torch.as_tensor(big), torch.as_tensor(values)

    def loss(v):
        return 0.5 * (torch.einsum("kij,i,j->k", a, v, v) - b).square().sum()

    v = torch.as_tensor(w)
    return torch.func.grad(loss)(v).numpy(), torch.linalg.eigvalsh(torch.func.hessian(loss)(v)).numpy()


@pytest.mark.covers("S18", "P81")
def test_the_original_problem_has_a_spurious_minimum():
    gradient, eigenvalues = curvatures(1, SPURIOUS)
    assert np.allclose(gradient, 0)
    assert eigenvalues.min() > 0.4
    problem = sensing()
    stuck = lr.solve(problem, column(SPURIOUS + [1e-2, -1e-2]), lr.GD(0.05), max_iter=500).point
    assert np.allclose(abs(stuck.factor[:, 0]), SPURIOUS, atol=1e-4)
    assert problem.loss(problem.residual(stuck)) > 0.3


@pytest.mark.covers("S18", "P81")
@ORDERS
def test_the_lift_makes_it_a_strict_saddle(order):
    gradient, eigenvalues = curvatures(order, power(SPURIOUS, order))
    assert np.allclose(gradient, 0)
    assert eigenvalues.min() < -1.0
    problem, point = lifted(sensing(), order), column(power(SPURIOUS, order))
    assert problem.shape == (2**order, 2**order)
    assert np.allclose(problem.gradient(point).factor, 0)
    assert problem.loss(problem.residual(column(power(SOLUTION, order)))) < 1e-20


@pytest.mark.covers("S18", "P81")
def test_descent_leaves_it_and_finds_the_solution():
    problem, rng = lifted(sensing(), 3), np.random.default_rng(0)
    for _ in range(5):
        start = power(SPURIOUS, 3) + 1e-3 * rng.standard_normal(8)
        found = lr.solve(problem, column(start), lr.GD(0.05), max_iter=3000, tol=0)
        assert found.fun < 1e-8
        assert np.allclose(abs(lowered(found.point, 3).factor[:, 0]), SOLUTION, atol=1e-2)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_powers_are_taken_back(order, convert):
    x = np.array([0.3, -1.2, 0.5])
    back = lowered(lr.SymmetricBurerMonteiro(convert(power(x, order)[:, None])), order)
    assert type(back.factor) is type(convert(x))
    assert np.allclose(np.asarray(back.dense()), np.outer(x, x))


def test_bad_input():
    with pytest.raises(TypeError, match="MatrixSensing problem with stacked matrices"):
        lifted(lr.MatrixFactorization(np.eye(2)), 2)
    with pytest.raises(ValueError, match="order must be a positive integer, got 0"):
        lifted(sensing(), 0)
    with pytest.raises(ValueError, match="square matrices"):
        lifted(lr.MatrixSensing(np.ones((3, 2, 3)), np.ones(3), (2, 3)), 2)
    with pytest.raises(ValueError, match="are too many"):
        lifted(sensing(), 9)
    with pytest.raises(ValueError, match="one column with a 3-th power of rows"):
        lowered(column(np.ones(6)), 3)
