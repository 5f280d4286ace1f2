"""The scalar testbed ``1/2 (xy - 1)^2``: closed forms of the first step of every method."""

from fractions import Fraction

import numpy as np
import pytest

import lowrank_sp as lr

PROBLEM = lr.MatrixFactorization(np.array([[1.0]]))


def point(x, y):
    return lr.BurerMonteiro(np.array([[float(x)]]), np.array([[float(y)]]))


def one_step(solver, x, y):
    result = lr.solve(PROBLEM, point(x, y), solver, max_iter=1, tol=0)
    return result.point.left.item(), result.point.right.item(), result.fun


@pytest.mark.covers("T22")
@pytest.mark.parametrize("step", [1 / 3, 1 / 6, 0.1])
def test_gradient_descent_from_two_gauges_of_four(step):
    assert np.allclose(one_step(lr.GD(step), 2, 2)[:2], (2 - 6 * step, 2 - 6 * step))
    assert np.allclose(one_step(lr.GD(step), 1, 4)[:2], (1 - 12 * step, 4 - 3 * step))


@pytest.mark.covers("T23")
@pytest.mark.parametrize("gauge", [(2, 2), (1, 4), (0.5, 8)])
@pytest.mark.parametrize("step", [1 / 3, 1 / 6, 0.1])
def test_scaled_gd_sees_the_product_alone(gauge, step):
    x, y, _ = one_step(lr.ScaledGD(step), *gauge)
    assert np.isclose(x * y, (2 - 1.5 * step) ** 2)


@pytest.mark.covers("T24")
@pytest.mark.parametrize("gauge", [(2, 2), (1, 4), (0.5, 8)])
@pytest.mark.parametrize("step", [1 / 3, 1 / 6, 0.1])
@pytest.mark.parametrize("solver", [lr.RefLoRA, lr.RefLoRAScalar], ids=lambda f: f.__name__)
def test_reflora_steps_from_the_balanced_pair(solver, gauge, step):
    x, y, _ = one_step(solver(step), *gauge)
    assert np.isclose(x * y, (2 - 6 * step) ** 2, atol=1e-12)


@pytest.mark.covers("T25")
@pytest.mark.parametrize(
    "step, scaled, refactored",
    [
        (Fraction(1, 3), 0.78125, 0.5),
        (Fraction(1, 6), 2.126953125, 0.0),
        (Fraction(1, 10), 2.9342531250, 0.4608),
    ],
)
def test_losses_after_one_step(step, scaled, refactored):
    """The survey prints the products where it says losses; these are the losses."""
    assert np.isclose(one_step(lr.ScaledGD(float(step)), 1, 4)[2], scaled, rtol=1e-6)
    assert np.isclose(one_step(lr.RefLoRA(float(step)), 1, 4)[2], refactored, atol=1e-12)


@pytest.mark.covers("T26")
def test_reflora_is_scaled_gd_with_the_step_times_the_product():
    x, y, _ = one_step(lr.RefLoRA(0.05), 1, 4)
    u, v, _ = one_step(lr.ScaledGD(0.2), 1, 4)
    assert np.isclose(x * y, u * v)


@pytest.mark.covers("T20", "T21")
@pytest.mark.parametrize(
    "x, y, eigenvalues", [(2, 2, (-3, 11)), (1, 4, (-1.7591, 18.7591)), (0, 0, (-1, 1)), (0.5, 1, (0.25, 1))]
)
def test_hessian_of_the_loss(x, y, eigenvalues):
    """By differences of our gradient, against the eigenvalues of the closed form."""
    h = 1e-6

    def gradient(a, b):
        return np.array([g.item() for g in PROBLEM.gradient(point(a, b)).arrays()])

    columns = [
        (gradient(x + h * (i == 0), y + h * (i == 1)) - gradient(x - h * (i == 0), y - h * (i == 1))) / (2 * h)
        for i in range(2)
    ]
    assert np.allclose(np.linalg.eigvalsh(np.stack(columns)), eigenvalues, atol=1e-4)


@pytest.mark.covers("T37")
def test_zero_is_a_stationary_point_and_its_surroundings_lead_away():
    stuck = lr.solve(PROBLEM, point(0, 0), lr.GD(0.1), max_iter=20, tol=0)
    assert stuck.point.dense().item() == 0
    left = lr.solve(PROBLEM, point(1e-3, 1e-3), lr.GD(0.1), max_iter=300, tol=0)
    assert np.isclose(left.point.dense().item(), 1)
