"""The super-resolution study at toy size, and its frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.super_resolution import study


@pytest.mark.covers("S03")
def test_a_toy_run_measures_what_the_claims_name():
    cells = [c for c in load("super_resolution").config.cells(quick=True) if c["seed"] == 0]
    rows = [{**cell, **study.run(cell)} for cell in cells]
    found = study.measures(rows)
    for claim in load("super_resolution").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"resolution", "spectrum"}
    assert all(table for table in study.tables(rows).values())


def test_tones_come_in_pairs_of_the_given_distance():
    frequencies = study.tones(6, 0.5, 100, np.random.default_rng(0))
    gaps = np.diff(frequencies)
    assert gaps[::2] == pytest.approx(0.005)
    assert (gaps[1::2] > 0.05).all()


def test_all_methods_find_far_tones_in_a_whole_signal():
    truth = np.array([0.1, 0.35, 0.8])
    signal = np.exp(2j * np.pi * np.outer(np.arange(64), truth)).sum(1)
    for method, find in study.METHODS.items():
        error = study._distance(find(np.arange(64), signal, 64, 3), truth)
        assert error < (1e-3 if "FFT" in method else 1e-9), method


def test_distances_of_frequencies_wrap_round_and_need_all_of_them():
    assert study._distance(np.array([0.999, 0.5]), np.array([0.5, 0.001])) == pytest.approx(0.002)
    assert study._distance(np.array([0.5]), np.array([0.5, 0.001])) == 0.5
