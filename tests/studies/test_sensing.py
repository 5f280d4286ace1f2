"""The sensing study at toy size, and facts that it rests on against independent computation."""

from __future__ import annotations

import numpy as np
import pytest

from studies.config import read_config
from studies.sensing import analysis, study

SMALL = {"m": 12, "n": 10, "rank": 2, "max_iter": 60, "success": 1e-4}


def cells() -> list[dict]:
    found: list[dict] = [
        {**SMALL, "part": "population", "measurements": count, "seed": s}
        for count in (64, 256, 1024)
        for s in (0, 1, 2)
    ]
    found += [{**SMALL, "part": "finetune", "measurements": 50, "seed": 0}]
    for part, ensembles, solvers in (
        ("transition", ["gaussian"], "ScaledCG AltScaledGD RiemannianCG"),
        ("ensembles", ["gaussian", "rank-one", "subsampled-orthogonal"], "ScaledCG"),
    ):
        found += [
            {**SMALL, "part": part, "ensemble": e, "solvers": solvers, "ratio": x, "seed": 0}
            for e in ensembles
            for x in (0.75, 2.0, 3.0)
        ]
    found += [{**SMALL, "part": "noise", "ratio": 3.0, "level": v, "seed": s} for v in (1e-3, 1e-2) for s in (0, 1)]
    found += [
        {**SMALL, "part": "condition", "ratio": 3.0, "kappa": k, "solver": s, "target": 1e-3, "seed": 0}
        for k in (1, 10, 100)
        for s in study.STEPS
    ]
    found += [
        {**SMALL, "part": "starts", "problem": p, "scale": 0.1, "seed": 0, "max_iter": 2000}
        for p in ("factorization", "sensing")
    ]
    found += [{**SMALL, "part": "saddle", "seed": 0}]
    found += [
        {**SMALL, "part": "overparametrized", "factor": f, "ratio": x, "seed": 0, "max_iter": 200}
        for f in (1, 2)
        for x in (1.0, 4.0)
    ]
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    flat = []
    for cell in cells():
        result = study.run(cell)
        flat += [{**cell, **row} for row in (result if isinstance(result, list) else [result])]
    return flat


def test_a_toy_run_measures_what_the_claims_name(rows: list[dict]):
    found = study.measures(rows)
    config = read_config(analysis_folder() / "config.toml")
    assert {claim.measure for claim in config.claims} <= set(found)
    censored = {"growth_GD", "growth_GD_100", "half_point", "needs", "needs_slope", "needs_growth"}
    for key, values in found.items():
        if key not in censored:
            assert np.isfinite(values).all(), key
    assert set(study.figures(rows)) == {
        "population", "transition", "noise", "condition", "landscape", "overparametrized"
    }  # fmt: skip
    assert len(study.tables(rows)) == 2


def analysis_folder():
    from pathlib import Path

    return Path(analysis.__file__).parent


@pytest.mark.covers("T36")
def test_the_gap_to_the_population_loss_has_the_variance_of_a_chi_square():
    # m(E) is Gaussian, so the relative loss gap has mean square 2 / N.
    gaps = [
        study.population({**SMALL, "part": "population", "measurements": 400, "seed": s})["loss_gap"] for s in range(40)
    ]
    assert np.mean(np.square(gaps)) == pytest.approx(2 / 400, rel=0.5)


@pytest.mark.covers("S01")
def test_fine_tuning_is_sensing_to_rounding():
    row = study.finetune({**SMALL, "part": "finetune", "measurements": 80, "seed": 3})
    assert row["loss_gap"] < 1e-12
    assert row["gradient_gap"] < 1e-12


@pytest.mark.covers("T37")
def test_curvature_at_the_origin_and_at_a_minimum_by_a_dense_hessian():
    rows = study.saddle({**SMALL, "part": "saddle", "seed": 1})
    origin = next(row for row in rows if row["point"] == "origin of factorization")
    assert origin["eigenvalue"] == pytest.approx(-1.0, abs=1e-7)  # the largest singular value is one
    assert sum(row["point"] == "wrong pairs" for row in rows) == 5
    minimum = next(row for row in rows if row["point"] == "minimum")
    assert abs(minimum["eigenvalue"]) < 1e-6


@pytest.mark.covers("T38")
def test_measurements_needed_are_read_off_the_success_rates():
    rates = {1.0: [0, 0, 0, 0], 2.0: [1, 1, 1, 0], 3.0: [1, 1, 1, 1]}
    rows = [{"ratio": x, "recovered": bool(v)} for x, values in rates.items() for v in values]
    assert analysis.needed(rows, 0.5) == 2.0
    assert analysis.needed(rows, 0.8) == 3.0
    assert analysis.needed([row for row in rows if row["ratio"] == 1.0], 0.5) == np.inf
    assert analysis.slope([1, 2, 4], [8, 4, 2]) == pytest.approx(-1.0)


def test_noise_leaves_the_error_of_least_squares():
    cell = {**SMALL, "part": "noise", "ratio": 6.0, "level": 1e-2}
    ratios = [(row := study.noise({**cell, "seed": s}))["error"] / row["predicted"] for s in range(6)]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)
