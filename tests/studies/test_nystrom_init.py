"""The study of Nystrom starts at toy size, and the closed forms that it plots."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from studies.nystrom_init import analysis, study

TOY: dict[str, Any] = {"m": 12, "n": 9, "rank": 2, "seeds": 2, "cap": 2000, "kappa": 4}


def cell(part: str, **values: Any) -> dict[str, Any]:
    return {**TOY, "part": part, **values}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The rows of a toy grid with every part."""
    steps = {"GD": [0.5, 0.8], "AltGD": [0.7, 1.0], "ScaledGD": [0.3, 0.5]}
    cells = [
        cell(part, solver=solver, start=start, kappa=kappa, steps=steps[solver])
        for part, solver, starts in (
            ("gd", "GD", ("gaussian 0.1", "gaussian 0.001", "nystrom")),
            ("altgd", "AltGD", ("nystrom", "half-nystrom 0.001", "half-nystrom 0.1")),
            ("scaled", "ScaledGD", ("gaussian 0.1", "nystrom")),
            ("curves", "GD", ("gaussian 0.1", "nystrom")),
            ("curves", "ScaledGD", ("gaussian 0.1", "nystrom")),
        )
        for start in starts
        for kappa in ((2, 10) if part in ("scaled", "curves") else (2, 4))
    ]
    cells += [cell("recursion", step=step, kappa=k, cap=40) for step in (0.3, 0.5, 1.0) for k in (2, 100)]
    cells += [
        cell("success", solver=solver, scale=scale, step=0.3, level=1e-8, cap=200)
        for solver in ("ScaledGD", "AltScaledGD", "ScaledGD damped")
        for scale in (1e-6, 0.1)
    ]
    cells += [cell("printed", reading=reading) for reading in ("square sketch", "zero Gram matrix")]
    return [{**given, **row} for given in cells for row in study.run(given)]


def test_every_measure_of_a_toy_grid_is_finite(rows: list[dict[str, Any]]):
    for name, value in study.measures(rows).items():
        values = np.asarray(value, dtype=float)
        assert values.size, name
        assert np.isfinite(values).all(), name
    assert set(study.figures(rows)) == {"fig8", "kappa", "accuracy", "recursion", "success"}
    assert all(study.tables(rows).values())


@pytest.mark.covers("T30", "D06", "I13")
@pytest.mark.parametrize("step", [0.3, 0.5, 0.7, 1.0])
def test_the_iterates_from_a_nystrom_start_are_multiples_of_the_target(step: float):
    problem = lr.synthetic.factorization(12, 9, 3, condition_number=50.0, seed=0)
    start = lr.inits.nystrom(problem, lr.BurerMonteiro, rank=3, seed=1)
    z = []
    lr.solve(
        problem,
        start,
        lr.ScaledGD(step_size=step),
        max_iter=5,
        tol=0,
        callback=lambda t, point, loss: z.append(
            np.vdot(problem.data, point.dense()) / np.vdot(problem.data, problem.data)
        ),
    )
    assert z[0] == pytest.approx(step, abs=1e-12)
    for old, new in pairwise(z):
        assert new == pytest.approx((1 - step) ** 2 * old + 2 * step * (1 - step) + step**2 / old, abs=1e-10)
    assert np.abs(np.array(z) - 1) == pytest.approx(analysis.predicted_errors(step, len(z))[1:], abs=1e-10)


@pytest.mark.covers("D06")
def test_the_recursion_squares_the_error_at_one_half_and_is_linear_elsewhere():
    half = analysis.predicted_errors(0.5, 4)
    assert half[1:] == pytest.approx([1 / 2, 1 / 8, 1 / 288, 3.0035e-6], rel=1e-4)
    other = analysis.predicted_errors(0.3, 20)
    assert other[20] / other[19] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.covers("D04", "D05")
def test_the_start_as_printed_is_refused_by_linear_algebra(rows: list[dict[str, Any]]):
    reasons = {row["reading"]: row["reason"] for row in analysis.pick(rows, part="printed")}
    assert reasons["square sketch"].startswith("ValueError")
    assert reasons["zero Gram matrix"] == "LinAlgError: Singular matrix"
    problem = lr.synthetic.factorization(12, 9, 2, seed=0)
    start = lr.inits.nystrom(problem, lr.BurerMonteiro, rank=2, seed=0)
    assert start.left.shape == (12, 2)
    assert not start.right.any()


@pytest.mark.covers("I15")
def test_a_half_nystrom_start_knows_the_column_space_and_not_the_row_space():
    problem = lr.synthetic.factorization(12, 9, 2, seed=0)
    start = lr.inits.half_nystrom(problem, lr.BurerMonteiro, rank=2, seed=0)
    u, _, vt = np.linalg.svd(problem.data)
    assert lr.metrics.principal_angles(start.left, u[:, :2]) == pytest.approx(0, abs=1e-7)
    assert lr.metrics.principal_angles(start.right, vt[:2].T).max() > 0.1


def test_the_best_step_never_fails_and_is_fast():
    rows = [
        {"step": step, "counts": [count]} for step, count in ((1, 9.0), (1, np.inf), (2, 30.0), (2, 20.0), (3, 40.0))
    ]
    assert {row["step"] for row in analysis.best(rows, level=0)} == {2}


def test_exponents_are_recovered_and_skip_what_did_not_arrive():
    found = {k: np.array([3.0 * k**2, 5.0 * k]) for k in (2.0, 4.0, 8.0)} | {16.0: np.array([np.inf, 80.0])}
    assert analysis.slopes(found) == pytest.approx([2, 1])
