"""The study of a scene as a tensor at toy size, and its choice of ranks against all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tensorly as tl
from tensorly.tenalg import multi_mode_dot  # pyright: ignore[reportAttributeAccessIssue]

import lowrank_sp as lr
from studies import load
from studies.hyperspectral_tensor import study
from studies.hyperspectral_tensor.approximate import _best_rank, nearest
from studies.hyperspectral_tensor.scene import Split


def toy(side: int = 12, bands: int = 10) -> np.ndarray:
    """A smooth scene of small Tucker rank, with positive counts and noise."""
    rng = np.random.default_rng(0)
    clean = lr.synthetic.low_tensor((side, side, bands), (3, 3, 2), lr.Tucker, seed=1).dense()
    clean = clean / np.abs(clean).max()
    return 3000 + 500 * (clean + 0.01 * rng.standard_normal(clean.shape))


@pytest.mark.covers("S13", "S14")
def test_every_claim_is_evaluated(monkeypatch):
    monkeypatch.setattr(study, "scene", lambda side, step: toy())
    monkeypatch.setattr(study, "RANKS", {"Tucker": [(3, 3, 2)], "TensorTrain": [(3, 2)]})
    monkeypatch.setattr(study, "MOST_RANK", {"CP": 2, "matrix": 2})
    config = load("hyperspectral_tensor").config
    rows = []
    for cell in config.cells():
        small = {**cell, "step": 5, "numbers": 400} if cell["part"] == "approximation" else {**cell, "observed": 0.4}
        if cell["seed"] == 0 and cell.get("numbers", 2500) == 2500:
            rows.append({**small, **study.run({**small, "step": 5, "most_iter": 5})})
    found = study.measures(rows)
    for claim in config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert max(found["completion_over_means"]) < 1
    assert all(row["used"] <= 400 for row in rows if row["part"] == "approximation")
    assert set(study.figures(rows)) == {"errors", "band"}
    assert all(study.tables(rows).values())


def test_the_ranks_are_the_best_of_all_that_fit():
    tensor = toy(6, 5) - 3000
    rank = _best_rank(tensor, lr.Tucker, 60)
    bases = [np.linalg.svd(tl.unfold(tensor, k))[0] for k in range(3)]

    def error(block):
        u = [b[:, :r] for b, r in zip(bases, block, strict=True)]
        return np.linalg.norm(multi_mode_dot(multi_mode_dot(tensor, [a.T for a in u]), u) - tensor)

    sizes = [r for r in product(range(1, 7), range(1, 7), range(1, 6)) if np.prod(r) + np.dot(r, (6, 6, 5)) <= 60]
    sizes = [r for r in sizes if max(r) ** 2 <= np.prod(r)]
    assert error(rank) == pytest.approx(min(error(r) for r in sizes))


@pytest.mark.parametrize("form", ["CP", "Tucker", "TensorTrain", "matrix"])
def test_an_approximation_keeps_to_its_number_of_parameters(form):
    tensor = toy() - 3000
    found = nearest(tensor, form, 330)
    assert found["used"] <= 330
    assert 0 < found["error"] < 1


def test_the_parts_of_a_split_are_disjoint_and_centred_by_the_training_entries():
    cube = toy()
    split = Split(cube, 0.3, seed=0)
    assert np.array_equal(np.sort(np.concatenate(split.values)), np.sort(cube.ravel()))
    assert np.mean(split.train**2) == pytest.approx(1)
    band = split.parts[0][2] == 4
    assert split.train[band].mean() == pytest.approx(0, abs=1e-12)
    rows, cols, shape = split.flat(2, split.parts[0])
    assert np.array_equal(np.moveaxis(cube, 2, 0).reshape(shape)[rows, cols], split.values[0])
