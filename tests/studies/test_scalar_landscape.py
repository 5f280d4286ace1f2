"""The scalar testbed against closed forms worked out by hand, and its study at toy size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from studies import load
from studies.scalar_landscape import study


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The rows of the quick grid, with a toy tuning part."""
    cells = load("scalar_landscape").config.cells(quick=True)
    for cell in cells:
        if cell["part"] == "tuning":
            cell.update(tuning_starts=1, report_starts=2, iterations=100)
    cells = [cell for cell in cells if cell["part"] != "tuning" or cell["step"] >= 0.4]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.fixture(scope="module")
def measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return study.measures(rows)


@pytest.mark.covers("S23")
def test_every_measure_is_finite_and_every_figure_is_drawn(rows: list[dict[str, Any]], measured: dict[str, Any]):
    for name, value in measured.items():
        assert np.isfinite(np.asarray(value, dtype=float)).all(), name
    assert set(study.figures(rows)) == {"paths", "one_step", "curvature", "steps"}
    assert all(study.tables(rows).values())


def one_step(solver: str, start: tuple[float, float], eta: float) -> np.ndarray:
    problem = lr.MatrixFactorization(np.array([[1.0]]))
    return study.path(problem, start, solver, eta, 1)[-1]


@pytest.mark.covers("T20", "D02")
def test_hessians_at_the_two_points_of_the_source():
    even, skewed = study.hessian(np.float64(2), np.float64(2)), study.hessian(np.float64(1), np.float64(4))
    assert even.tolist() == [[4, 7], [7, 4]]
    assert skewed.tolist() == [[16, 7], [7, 1]]
    assert np.linalg.eigvalsh(even) == pytest.approx([-3, 11], abs=1e-12)
    # 17/2 +- sqrt((15/2)^2 + 49)
    assert np.linalg.eigvalsh(skewed) == pytest.approx([8.5 - 105.25**0.5, 8.5 + 105.25**0.5], abs=1e-12)


@pytest.mark.covers("T20", "T21")
@pytest.mark.parametrize("x, y", [(0.0, 0.0), (0.5, 1.0), (0.125, 4.0), (-1.5, 0.7)])
def test_hessian_agrees_with_differences_of_the_gradient(x: float, y: float):
    problem = lr.MatrixFactorization(np.array([[3.0]]))
    exact = study.hessian(np.float64(x), np.float64(y), target=3.0)
    assert study.difference_hessian(problem, x, y) == pytest.approx(exact, abs=1e-8)


@pytest.mark.covers("T22")
@pytest.mark.parametrize("eta", [0.01, 0.1, 0.3])
def test_gradient_descent_depends_on_the_factorization(eta: float):
    assert one_step("GD", (2, 2), eta) == pytest.approx([2 - 6 * eta, 2 - 6 * eta], abs=1e-13)
    assert one_step("GD", (1, 4), eta) == pytest.approx([1 - 12 * eta, 4 - 3 * eta], abs=1e-13)


@pytest.mark.covers("T23", "T24", "T26", "D08")
@pytest.mark.parametrize("start", [(2.0, 2.0), (1.0, 4.0), (-0.5, -8.0), (100.0, 0.04)])
@pytest.mark.parametrize("eta", [0.01, 1 / 6, 1 / 3])
def test_scaled_and_refactored_updates_depend_on_the_product_only(start: tuple[float, float], eta: float):
    assert one_step("ScaledGD", start, eta).prod() == pytest.approx(4 - 6 * eta + 9 / 4 * eta**2, abs=1e-12)
    assert one_step("RefLoRA", start, eta).prod() == pytest.approx((2 - 6 * eta) ** 2, abs=1e-12)
    assert one_step("RefLoRA", start, eta) == pytest.approx(one_step("ScaledGD", start, 4 * eta), abs=1e-12)


@pytest.mark.covers("T25", "D01")
def test_the_losses_of_example_4(measured: dict[str, Any]):
    assert measured["scaledgd_loss_third"] == pytest.approx(0.5 * (2.25 - 1) ** 2, abs=1e-12)
    assert measured["reflora_loss_third"] == pytest.approx(0.5, abs=1e-12)
    assert measured["scaledgd_loss_sixth"] == pytest.approx(0.5 * (3.0625 - 1) ** 2, abs=1e-12)
    assert measured["reflora_loss_sixth"] == pytest.approx(0, abs=1e-12)


@pytest.mark.covers("D08")
def test_at_one_half_both_iterations_are_newton_iterations_for_the_square_root():
    # u = sqrt(xy): ScaledGD gives (u + 1/u) / 2, RefLoRA u (3 - u^2) / 2.
    u = 1.3
    assert one_step("ScaledGD", (u, u), 0.5).prod() ** 0.5 == pytest.approx((u + 1 / u) / 2, abs=1e-14)
    assert one_step("RefLoRA", (u, u), 0.5).prod() ** 0.5 == pytest.approx(u * (3 - u * u) / 2, abs=1e-14)
