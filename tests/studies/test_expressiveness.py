"""The expressiveness study at toy size, and its fits against independent ones."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from studies.expressiveness import study, targets
from studies.expressiveness.fits import FITS, hira
from studies.expressiveness.targets import PLANTED, make

SIDES = {"fine-tuned": 64}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    cells = [cell for cell in load("expressiveness").config.cells(quick=True) if cell["seed"] == 0]
    cells = [{**cell, "side": SIDES.get(cell["target"], 32)} for cell in cells]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.covers("T02", "T03", "T04", "T05", "T06", "T15")
def test_every_claim_is_evaluated(rows):
    found = study.measures(rows)
    missing = {row["target"] for row in rows if not row["found"]}
    for claim in load("expressiveness").config.claims:
        values = found[claim.measure]
        assert np.isfinite(values).all(), claim.id
        assert len(values) or missing, claim.id
    assert set(study.figures(rows)) == {"errors"}
    assert all(table for table in study.tables(rows).values())


@pytest.mark.parametrize("form", [name for name in FITS if name != "core"])
def test_every_form_has_the_numbers_of_lora(form):
    target = np.random.default_rng(0).standard_normal((32, 32))
    near, count = FITS[form](target)
    assert near.shape == (32, 32)
    assert count == 2 * 32 * 2
    assert np.linalg.norm(near - target) < np.linalg.norm(target)


@pytest.mark.covers("T04")
def test_the_nearest_sum_of_kronecker_products_by_rearranging():
    target = np.random.default_rng(1).standard_normal((32, 32))
    rearranged = target.reshape(4, 8, 8, 4).transpose(0, 2, 1, 3).reshape(32, 32)  # left factors are 4 x 8
    values = np.linalg.svd(rearranged, compute_uv=False)
    error = np.linalg.norm(FITS["Kronecker"](target)[0] - target)
    assert error == pytest.approx(np.sqrt((values[2:] ** 2).sum()), rel=1e-10)


@pytest.mark.covers("T03")
def test_hira_solves_every_row_of_a_weighted_problem():
    rng = np.random.default_rng(2)
    target, weight = rng.standard_normal((2, 32, 32))
    near, _ = hira(target, weight)
    ratio = near / weight
    right = np.linalg.svd(ratio)[2][:2].T
    assert np.linalg.matrix_rank(ratio) == 2
    gap = near - target
    for row in range(32):
        design = weight[row][:, None] * right
        best = design @ np.linalg.lstsq(design, target[row], rcond=None)[0]
        assert np.linalg.norm(gap[row]) <= np.linalg.norm(best - target[row]) + 2e-2 * np.linalg.norm(target[row])


def test_planted_targets_have_their_ranks():
    expected = {"low rank": 2, "half that rank": 1, "blocks": 4, "diagonal blocks": 8, "Hadamard": 1, "Gaussian": 32}
    for name, rank in expected.items():
        assert np.linalg.matrix_rank(make(name, 32, 0)[0]) == rank, name
    assert not np.allclose(PLANTED["low rank"](np.random.default_rng(0), 32), make("low rank", 32, 1)[0])


def test_weights_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    row = study.run({"part": "layers", "target": "layers", "side": 96, "seed": 0})
    assert row == {"found": False, "why": row["why"]}
    assert "pip install" in row["why"]


def test_another_size_of_the_trained_layer_is_refused():
    with pytest.raises(ValueError, match=r"side: got 32; the layer has the shape \(64, 64\)"):
        make("fine-tuned", 32, 0)
