"""The study of PoLAR at toy size, and its closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from studies.polar_rank import analysis, saddles, study

TOY: dict[str, Any] = {
    "shape": "14x12",
    "true_rank": 2,
    "seeds": 2,
    "core": "full",
    "method": "polar",
    "cap": 3000,
    "watch": False,
    "keep": False,
    "kappa": 2,
    "r": 4,
    "steps": [1.0],
}
WATCHED = {"watch": True, "keep": True}


def cell(part: str, **values: Any) -> dict[str, Any]:
    return {**TOY, "part": part, **values}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The rows of a toy grid with every part."""
    cells = [cell("rank", r=r) for r in (2, 3, 4, 6, 8)]
    cells += [cell("kappa", kappa=kappa) for kappa in (2, 4)]
    cells += [cell("metric", method=method) for method in ("scaled metric", "auto")]
    cells += [cell("shape", shape=shape) for shape in ("60x50", "50x60")]
    cells += [cell("core", core=core, keep=True) for core in ("full", "diagonal")]
    cells += [cell("retraction", method=method, **WATCHED) for method in ("polar", "qr", "half core step")]
    cells += [cell("landing", method="landing", penalty=penalty, **WATCHED) for penalty in (0.1, 0.5)]
    cells += [
        cell("saddle", point=point, core=core, small=[8, 6])
        for point in ("mispaired", "missed")
        for core in ("full", "diagonal")
    ]
    return [{**given, **row} for given in cells for row in study.run(given)]


def test_every_measure_of_a_toy_grid_has_values(rows: list[dict[str, Any]]):
    measured = study.measures(rows)
    for name, value in measured.items():
        values = np.asarray(value, dtype=float)
        assert values.size, name
        assert not np.isnan(values).any(), name
    assert np.isfinite(measured["successive_ratio"]).all()
    assert set(study.figures(rows)) == {"rank", "kappa", "core", "landing"}
    assert all(study.tables(rows).values())


@pytest.mark.covers("T34", "D15", "T35", "O11", "P24")
def test_one_iteration_matches_the_published_equations():
    problem = lr.synthetic.factorization(14, 12, 2, condition_number=3.0, seed=0)
    start = lr.inits.stiefel(problem, lr.PoLAR, rank=4, seed=1)
    start = lr.PoLAR(start.left, np.random.default_rng(2).standard_normal((4, 4)), start.right)
    new = lr.solve(problem, start, lr.RiemannianGD(0.3, 1.0), max_iter=1, tol=0).point.to(lr.PoLAR)
    u, theta, v, a = start.left, start.core, start.right, problem.data
    gap = u @ theta @ v.T - a
    for factor, gradient, got in ((u, gap @ v @ theta.T, new.left), (v, gap.T @ u @ theta, new.right)):
        cross = factor.T @ gradient
        e = gradient - factor @ (cross + cross.T) / 2
        values, vectors = np.linalg.eigh(np.eye(4) + 0.3**2 * e.T @ e)
        assert got == pytest.approx((factor - 0.3 * e) @ (vectors / values**0.5) @ vectors.T, abs=1e-12)
        assert got.T @ got == pytest.approx(np.eye(4), abs=1e-13)
    assert new.core == pytest.approx(new.left.T @ a @ new.right, abs=1e-13)


@pytest.mark.covers("D15")
def test_the_printed_core_index_is_an_implicit_half_step():
    theta, aligned = np.array([[2.0]]), np.array([[1.0]])
    implicit = (theta + aligned) / 2  # solves new = old - (new - aligned)
    assert implicit == pytest.approx(theta - (implicit - aligned))
    assert implicit == pytest.approx(theta - 0.5 * (theta - aligned))


@pytest.mark.covers("D26", "P26")
@pytest.mark.parametrize("kappa", [2.0, 7.0])
def test_the_mispaired_point_is_a_strict_saddle_of_the_diagonal_core_only(kappa: float):
    base = {"part": "saddle", "small": [8, 6], "kappa": kappa, "point": "mispaired"}
    diagonal, full = (saddles.inspect({**base, "core": core}) for core in ("diagonal", "full"))
    assert diagonal["gradient"] == pytest.approx(0, abs=1e-12)
    assert diagonal["smallest"] == pytest.approx(saddles.mispaired_eigenvalue(1, 1 / kappa), abs=1e-6)
    assert diagonal["smallest"] < -0.1
    assert diagonal["zeros"] > 0
    assert full["gradient"] > 0.1
    assert full["error_after_core_step"] == pytest.approx(0, abs=1e-12)


def test_the_hessian_at_a_global_minimum_is_that_of_gauss_and_newton():
    problem = lr.MatrixFactorization(np.diag([2.0, 1.0]))
    point = lr.PoLAR(np.eye(2), np.diag([2.0, 1.0]), np.eye(2))
    eigenvalues = np.linalg.eigvalsh(saddles.hessian(problem, point))
    assert eigenvalues[0] > -1e-8  # a global minimum
    # At a global minimum the Hessian is J^T J, with J the differential in orthonormal coordinates.
    skew = np.array([[0, 1.0], [-1.0, 0]]) / 2**0.5
    core = np.diag([2.0, 1.0])
    jacobian = np.array([*np.eye(4), (skew @ core).ravel(), (core @ skew.T).ravel()])
    assert eigenvalues == pytest.approx(np.linalg.eigvalsh(jacobian @ jacobian.T), abs=1e-6)


@pytest.mark.covers("O12")
def test_landing_ends_orthonormal_and_counts_like_the_retraction(rows: list[dict[str, Any]]):
    landing = analysis.pick(rows, part="landing", penalty=0.1)
    polar = analysis.pick(rows, part="retraction", method="polar")
    assert [row["count"] for row in landing] == pytest.approx([row["count"] for row in polar], rel=0.05)
    assert max(row["last_defect"] for row in landing) < 1e-8 < max(row["largest_defect"] for row in landing)


@pytest.mark.covers("T33")
def test_the_bound_falls_like_the_theorem_says():
    assert analysis.bound(8, 4) == pytest.approx(64 * 4 / 256)
    assert analysis.bound(12, 4) / analysis.bound(32, 4) == pytest.approx((12 / 32) ** 2 * (28 / 8) ** 4)


def test_exponents_are_recovered():
    rows = [
        {"kappa": k, "step": 1.0, "seed": s, "count": c * k**2.0} for k in (2.0, 4.0, 8.0) for s, c in ((0, 3), (1, 5))
    ]
    assert analysis.exponents(rows) == pytest.approx([2, 2])
