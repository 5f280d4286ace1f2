"""The inpainting study at toy size, and its patches against a brute-force count."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.inpainting import study
from studies.inpainting.methods import METHODS, fill, patch_matrix, patch_mean

CELL = {
    "part": "masks", "side": 32, "iterations": 15, "penalties": 4, "shrunk_rank": 12, "patch": 6, "stride": 3,
    "sweeps": 6, "ranks": [2, 6], "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    masks = ("20 %", "60 %", "lines", "blocks")
    cells = [{**CELL, "image": "brick", "mask": mask, "method": method} for mask in masks for method in METHODS]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.covers("S03", "S12")
def test_a_toy_run_measures_what_the_claims_name(rows: list[dict]):
    found = study.measures(rows)
    for claim in load("inpainting").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"quality", "brick"}
    assert all(table for table in study.tables(rows).values())


def test_known_pixels_stay_and_unknown_ones_do_not_leak():
    image = study.photograph("camera", 32)
    unknown = study.missing("60 %", 32, 3)
    changed = np.where(unknown, 0.123, image)
    for method in METHODS:
        estimate, _ = fill(image, ~unknown, method, CELL)
        assert np.array_equal(estimate[~unknown], image[~unknown])
        assert np.array_equal(fill(changed, ~unknown, method, CELL)[0], estimate), method


def test_patches_by_brute_force_and_back():
    image = np.random.default_rng(0).random((17, 14))
    patches = patch_matrix(image, 5, 3)
    down, across = (0, 3, 6, 9, 12), (0, 3, 6, 9)
    expected = [image[i : i + 5, j : j + 5].ravel() for i in down for j in across]
    assert np.array_equal(patches, expected)
    assert patch_mean(patches, image.shape, 5, 3) == pytest.approx(image, abs=1e-15)


@pytest.mark.parametrize("mask", ["40 %", "text", "lines", "blocks"])
def test_masks_hide_a_part_of_the_picture(mask: str):
    unknown = study.missing(mask, 64, 1)
    assert unknown.shape == (64, 64)
    assert 0.02 < unknown.mean() < 0.7
    assert not np.array_equal(unknown, study.missing(mask, 64, 2))
