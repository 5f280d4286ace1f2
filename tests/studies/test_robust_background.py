"""The background study at toy size, and its videos."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.robust_background import study
from studies.robust_background.video import make_video


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    small = {"height": 20, "width": 24, "frames": 20}
    cells = load("robust_background").config.cells(quick=True)
    cells = [{**cell, **small} for cell in cells if cell["objects"] == 3]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.covers("S05")
def test_a_toy_run_measures_what_the_claims_name(rows: list[dict]):
    found = study.measures(rows)
    for claim in load("robust_background").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"quality", "moving", "resting"}
    assert all(table for table in study.tables(rows).values())


def test_the_background_has_rank_three_and_differs_from_the_video_where_objects_are():
    video = make_video("coffee", (24, 32), 40, 2, 0.0, seed=1)
    assert np.linalg.matrix_rank(video.background) == 3
    changed = video.frames != video.background
    assert not changed[~video.moving].any()
    assert changed[video.moving].mean() > 0.99
    assert video.frames.min() >= 0
    assert video.frames.max() <= 1


def test_a_resting_object_covers_its_pixels_for_the_length_of_its_rest():
    video = make_video("coffee", (24, 32), 40, 1, 0.5, seed=1)
    assert video.moving.mean(0).max() >= 0.5


def test_detection_scores_against_a_count_by_hand():
    found, truth = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool)
    precision, recall = 1 / 2, 1 / 3
    assert study._f1(found, truth) == pytest.approx(2 * precision * recall / (precision + recall))
