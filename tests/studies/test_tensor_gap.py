"""The study of spiked tensors at toy size; its power iteration against alternating least squares."""

from __future__ import annotations

import numpy as np
import pytest

import lowrank_sp as lr
from studies import load
from studies.tensor_gap import analysis, study
from studies.tensor_gap.power import power_iteration


def test_power_iteration_is_alternating_least_squares_without_a_ridge():
    problem = lr.synthetic.spiked_tensor(9, strength=2.0, seed=0)
    rng = np.random.default_rng(1)
    starts = [rng.standard_normal((9, 2)) for _ in range(3)]
    vectors, fit = power_iteration(problem.data, starts, 6)
    for k in range(2):
        start = lr.CP(*[a[:, k : k + 1] for a in starts])
        point = lr.solve(problem, start, lr.ALS(ridge=0.0), max_iter=6, tol=0).point
        rank_one = np.einsum("i,j,k->ijk", *[x[:, k] for x in vectors])
        assert np.allclose(point.dense(), fit[k] * rank_one, atol=1e-8)


def test_the_threshold_is_the_jump_of_a_step_and_the_middle_of_a_ramp():
    strengths = np.geomspace(1, 16, 9)
    assert analysis.threshold(strengths, strengths >= 4) == pytest.approx(4 / 2**0.25)
    ramp = np.linspace(0, 1, 9)
    assert analysis.threshold(strengths, ramp) == pytest.approx(4)
    assert analysis.exponent({10: 2.0, 40: 4.0}) == pytest.approx(0.5)
    assert analysis.exponent({10: 2.0}) == []


@pytest.mark.covers("S16")
def test_every_claim_is_evaluated_and_strong_spikes_are_found():
    config = load("tensor_gap").config
    rows = []
    for cell in config.cells(quick=True):
        if cell["strength"] in (1.0, 3.6, 12.0) and cell["size"] <= 30:
            small = {**cell, "trials": 2, "size": cell["size"] - 8, "sweeps": 30, "descents": 40}
            rows.append({**small, **study.run(small)})
    found = study.measures(rows)
    for claim in config.claims:
        if claim.measure != "worse_fit":  # needs a failure
            assert np.isfinite(found[claim.measure]).all(), claim.id
    strong = [row for row in rows if row["strength"] == 12.0]
    assert all(min(row[key]) > 0.9 for row in strong for key in row if key in ("overlap_unfolding", "overlap_truth"))
    assert set(study.figures(rows)) == {"success", "thresholds"}
    assert study.tables(rows)["Strength that half of the runs need"]


def test_failures_are_counted_only_where_the_spike_is_kept_from_the_truth():
    row = {"strength": 4.0, "overlap_truth": [0.9, 0.1], "fit_truth": [4.0, 2.0], "overlap_unfolding": [0.1, 0.1],
           "fit_unfolding": [3.0, 3.0], "overlap_random": [0.2, 0.2], "fit_random": [4.5, 1.0]}  # fmt: skip
    assert analysis.worse_fit([row]) == 0.5
    assert analysis.worse_fit([{**row, "strength": 1.0}]) == []
