"""The gauge study at toy size, and its identities against independent computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp import rules
from studies import load
from studies.gauge_solvers import study

SIZE: dict[str, Any] = {"m": 9, "n": 7, "rank": 2}


def toy(cell: dict[str, Any]) -> dict[str, Any]:
    cell = {**cell, **SIZE}
    match cell["part"]:
        case "balanced" | "skewed":
            few = {"tuning_seeds": 1, "report_seeds": 2, "level": 1e-2, "iterations": 3000, "scale": 0.2}
            return {
                **cell,
                "steps": [0.05],
                "skew": min(cell["skew"], 3),
                "condition_number": min(cell["condition_number"], 4),
                **few,
            }
        case "cost":
            return {**cell, "size": cell["size"] // 5}
        case "sharpness":
            return {**cell, "iterations": 200}
    return cell


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    cells = load("gauge_solvers").config.cells(quick=True)
    cells = [c for c in cells if c.get("condition_number", 0) <= 10 and c.get("seed", 0) < 2]
    flat = []
    for cell in map(toy, cells):
        result = study.run(cell)
        flat += [{**cell, **row} for row in (result if isinstance(result, list) else [result])]
    return flat


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """A problem and an unbalanced point."""
    return study.instance(SIZE, 3, 5.0, 20.0, 0.3)


def test_every_measure_has_values_and_every_figure_is_drawn(rows: list[dict[str, Any]]):
    may_diverge = {"gap_gd"}
    for name, value in study.measures(rows).items():
        values = np.asarray(value, dtype=float)
        assert values.size, name
        assert not np.isnan(values).any(), name
        assert name in may_diverge or np.isfinite(values).all(), name
    names = {"convergence", "condition", "equivariance", "horizontal", "balance"}
    assert set(study.figures(rows)) == names
    assert all(study.tables(rows).values())


def test_the_tuned_step_is_the_best_of_the_grid():
    cell = {
        **SIZE,
        "part": "balanced",
        "solver": "RiemannianGD",
        "condition_number": 3,
        "skew": 1,
        "scale": 0.1,
    }
    cell |= {"steps": [0.2, 0.9, 0.5], "tuning_seeds": 2, "report_seeds": 1, "level": 1e-6, "iterations": 500}
    worst = {
        step: max(study._solve(cell, step, seed, 500).iterations_to(1e-6) for seed in (1000, 1001))
        for step in cell["steps"]
    }
    row = study.run(cell)[0]
    assert row["step"] == min(worst, key=lambda step: worst[step])
    assert row["tuning_worst"] == min(worst.values())


def test_gauges_have_the_stated_condition_number():
    assert np.linalg.cond(study.gauge(4, 1e3, 0)) == pytest.approx(1e3, rel=1e-9)


@pytest.mark.covers("T27", "D07")
def test_vertical_share_is_zero_exactly_when_the_fibre_is_orthogonal(pair: tuple[Any, Any]):
    problem, point = pair
    scaled = rules.Scaled().update(problem.gradient(point), (), point)[0]
    rng = np.random.default_rng(0)
    for mx, my in study.metrics(point).values():
        share = study.vertical(point, scaled, mx, my)
        u = rng.standard_normal((2, 2))
        fibre = lr.BurerMonteiro(point.left @ u, -point.right @ u.T)
        inner = np.vdot(fibre.left @ mx, scaled.left) + np.vdot(fibre.right @ my, scaled.right)
        size = np.linalg.norm(fibre.left @ mx) * scaled.norm()
        assert (share < 1e-12) == (abs(inner) < 1e-12 * size)


@pytest.mark.covers("T27")
def test_the_metrics_are_gauge_invariant_except_the_euclidean_one(pair: tuple[Any, Any]):
    _, point = pair
    q = study.gauge(2, 7.0, 1)
    rng = np.random.default_rng(1)
    move = point.map(lambda a: rng.standard_normal(a.shape))
    moved, pushed = point.gauge(q), move.gauge(q)
    squares = []
    for x, t in ((point, move), (moved, pushed)):
        squares.append(
            [np.vdot(t.left @ mx, t.left) + np.vdot(t.right @ my, t.right) for mx, my in study.metrics(x).values()]
        )
    before, after = np.array(squares)
    assert after[1:] == pytest.approx(before[1:], rel=1e-9)
    assert abs(after[0] / before[0] - 1) > 0.01


@pytest.mark.covers("T27", "D07")
def test_the_closed_projection_is_the_nearest_point_of_the_fibre(pair: tuple[Any, Any]):
    _, point = pair
    rng = np.random.default_rng(2)
    move = point.map(lambda a: rng.standard_normal(a.shape))
    mx, my = study.metrics(point)["ScaledGD's"]
    # Independent: weighted least squares in the r^2 unknowns of the vertical part.
    lx, ly = np.linalg.cholesky(mx), np.linalg.cholesky(my)
    columns = []
    for unit in np.eye(4).reshape(4, 2, 2):
        columns.append(np.concatenate([(point.left @ unit @ lx).ravel(), (-point.right @ unit.T @ ly).ravel()]))
    target = np.concatenate([(move.left @ lx).ravel(), (move.right @ ly).ravel()])
    u = np.linalg.lstsq(np.stack(columns, -1), target)[0].reshape(2, 2)
    flat = study.project(point, move)
    assert flat.left == pytest.approx(move.left - point.left @ u, abs=1e-10)
    assert flat.right == pytest.approx(move.right + point.right @ u.T, abs=1e-10)


@pytest.mark.covers("O09")
def test_the_published_lorapro_step_is_the_projected_gradient(pair: tuple[Any, Any]):
    problem, point = pair
    g = np.asarray(problem.residual(point))
    left, right = study.published_lorapro(point.left, point.right, g)
    thin = rules.Horizontal().update(point.pullback(g), (), point)[0]
    assert left == pytest.approx(thin.left, abs=1e-11)
    assert right == pytest.approx(thin.right, abs=1e-11)
    px, py = (np.linalg.qr(a)[0] for a in (point.left, point.right))
    px, py = px @ px.T, py @ py.T
    step = left @ point.right.T + point.left @ right.T
    assert step == pytest.approx(px @ g + g @ py - px @ g @ py, abs=1e-11)


@pytest.mark.covers("T28")
def test_one_gradient_step_changes_the_balance_in_second_order_only(pair: tuple[Any, Any]):
    problem, point = pair
    gradient, eta = problem.gradient(point), 1e-2
    end = lr.solve(problem, point, lr.GD(eta), 1, tol=0).point

    def gap(x: Any) -> np.ndarray:
        return x.left.T @ x.left - x.right.T @ x.right

    assert gap(end) - gap(point) == pytest.approx(eta**2 * gap(gradient), abs=1e-12)
