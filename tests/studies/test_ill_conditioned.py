"""The study of ill-conditioned completion at toy size."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.ill_conditioned import plots, study


@pytest.mark.covers("S03")
def test_a_toy_run_measures_what_the_claims_name():
    cells = [
        {"part": "survival", "size": 20, "rank": 2, "condition": c, "ratio": x, "solver": solver, "seed": 0}
        for c in (1.0, 1e4)
        for x in (1.5, 2.0, 3.0, 5.0)
        for solver in ("lr.complete", "MatrixIRLS", "ALS", "ScaledCG")
    ]
    rows = [{**cell, **study.run(cell)} for cell in cells]
    found = study.measures(rows)
    for claim in load("ill_conditioned").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
        assert len(found[claim.measure]) > 0, claim.id
    assert set(study.figures(rows)) == {"success", "values"}
    assert all(table for table in study.tables(rows).values())


def test_the_second_error_is_that_of_the_least_singular_value():
    cell = {"part": "survival", "size": 20, "rank": 2, "condition": 1e3, "ratio": 4.0, "seed": 0}
    row = study.run({**cell, "solver": "MatrixIRLS"})
    scale = np.hypot(1, 1e-3)  # the norm of the truth
    assert row["least_error"] == pytest.approx(row["error"] * scale * 1e3, rel=1e-12)


def test_success_rates_count_the_seeds_under_the_threshold():
    rows = [
        {"solver": "ALS", "condition": 1.0, "ratio": 2.0, "error": error, "least_error": 1.0}
        for error in (1e-6, 1e-4, 2e-4, 1.0)
    ]
    assert plots.rate(rows, "ALS", 1.0, 2.0) == 0.5
    assert plots.rate(rows, "ALS", 1.0, 2.0, "least_error") == 0.0
