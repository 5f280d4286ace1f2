"""The phase retrieval study at toy size, and its noise floor."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.phase_retrieval import study


@pytest.mark.covers("S06")
def test_a_toy_run_measures_what_the_claims_name():
    cells = [c for c in load("phase_retrieval").config.cells(quick=True) if c["digit"] != 8 and c["ratio"] > 2]
    rows = [{**cell, **study.run(cell)} for cell in cells]
    found = study.measures(rows)
    for claim in load("phase_retrieval").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"success", "digits"}
    assert all(table for table in study.tables(rows).values())


def test_the_noise_floor_is_the_derivative_of_the_solution():
    # The minimiser for a small noise, found by Newton's method on the loss itself, moves by what the floor says.
    rng = np.random.default_rng(0)
    signal, vectors = rng.standard_normal(6), rng.standard_normal((40, 6))
    noise = 1e-6 * rng.standard_normal(40)
    x = signal.copy()
    for _ in range(20):
        image = vectors @ x
        gap = image**2 - (vectors @ signal) ** 2 - noise
        hessian = 2 * vectors.T @ (((3 * image**2 - (image**2 - gap))[:, None]) * vectors)
        x = x - np.linalg.solve(hessian, 2 * vectors.T @ (gap * image))
    moved = np.linalg.norm(x - signal) / np.linalg.norm(signal)
    assert study._floor(vectors, signal, noise) == pytest.approx(moved, rel=1e-4)
