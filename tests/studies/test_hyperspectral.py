"""The hyperspectral study at toy size, and its baseline against a dense proximal gradient method."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lowrank_sp as lr
from studies.hyperspectral import soft_impute as soft_impute_module
from studies.hyperspectral import study
from studies.hyperspectral.paths import Scene, Track, grow_rank
from studies.hyperspectral.soft_impute import penalty_path, soft_impute

CELL = {
    "part": "paths", "side": 12, "held_out": 400, "most_rank": 3, "most_iter": 6, "patience": 2,
    "penalties": 4, "decay": 0.6, "sweeps": 20, "shrunk_rank": 6,
}  # fmt: skip


def toy_cube(noise: float = 0.02, rank: int = 2, side: int = 12, bands: int = 200) -> np.ndarray:
    """A scene of low rank with positive counts and noise."""
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((side * side, rank)) @ rng.standard_normal((rank, bands))
    noisy = clean + noise * rng.standard_normal(clean.shape)
    return (3000 + 300 * noisy).reshape(side, side, bands)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_cube", lambda side: toy_cube(side=side))


def toy_rows() -> list[dict]:
    methods = [*study.SOLVERS, "soft-impute", "band mean"]
    cells = [{**CELL, "fraction": f, "seed": s, "method": m} for f in (0.1, 0.2) for m in methods for s in (0, 1)]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.usefixtures("toy")
def test_a_toy_run_gives_finite_measures_figures_and_tables():
    rows = toy_rows()
    found = study.measures(rows)
    for key, values in found.items():
        if not key.endswith("_5"):
            assert np.isfinite(values).all(), key
    # The scene has rank two up to noise, so the solvers must beat the means of the bands by far.
    assert max(found["best_over_mean"]) < 0.5
    assert all(row["least_error"] <= row["error"] for row in rows)
    assert set(study.figures(rows)) == {"curves", "errors", "band"}
    (table,) = study.tables(rows).values()
    assert len(table) == 2 * 8


@pytest.mark.covers("S03", "S12")
def test_the_growing_rank_reaches_the_noise_once_it_has_the_rank_of_the_scene():
    scene = Scene(toy_cube(noise=0.01, rank=3), fraction=0.3, seed=0, held_out=2000)
    track = Track(scene)
    grow_rank(track, lr.ALS(), most_rank=5, most_iter=15, patience=2)
    ranks, errors = (np.asarray(track.history[key]) for key in ("rank", "error"))
    chosen = int(np.argmin(track.history["validation"]))
    # Rank four: the means of few training entries are off by one number per band, a matrix of rank one.
    assert ranks[chosen] >= 4
    assert errors[ranks == 3].min() > 5 * errors[ranks == 4].min()
    # The noise is 300 * 0.01 counts in 3000; four or five numbers per pixel from 54 entries add a fifth.
    assert 0.97e-3 < errors[chosen] < 1.3e-3
    lengths = {len(values) for values in track.history.values()}
    assert lengths == {len(errors)}
    assert np.all(np.diff(track.history["seconds"]) >= 0)


def test_the_parts_of_a_split_are_disjoint_and_centred_by_the_training_entries_alone():
    cube = toy_cube()
    scene = Scene(cube, fraction=0.2, seed=1, held_out=500)
    pattern = scene.problem.pattern
    train = pattern.rows.astype(int) * 200 + pattern.cols
    check, hidden = (rows * 200 + cols for (rows, cols), _ in scene.parts)
    assert len(train) + len(check) == round(0.2 * cube.size)
    assert len(np.unique(np.concatenate((train, check, hidden)))) == len(train) + len(check) + len(hidden)
    band = pattern.cols == 7
    assert scene.mean[7] == pytest.approx(cube.reshape(-1)[train[band]].mean(), rel=1e-12)
    assert scene.problem.data[band].mean() == pytest.approx(0.0, abs=1e-12)
    assert np.mean(scene.problem.data**2) == pytest.approx(1.0, rel=1e-12)


def test_soft_impute_follows_the_dense_proximal_gradient_solutions():
    problem = lr.synthetic.completion(24, 18, 3, observed=0.5, noise=0.05, seed=0)
    known = np.zeros((24, 18), bool)
    known[problem.pattern.rows, problem.pattern.cols] = True
    target = np.zeros((24, 18))
    target[known] = problem.data
    penalties = penalty_path(problem, 3, 0.5)
    assert penalties[0] == pytest.approx(0.5 * np.linalg.norm(target, 2), rel=1e-6)
    last = dict(soft_impute(problem, penalties, rank=18, sweeps=3000, tol=1e-13))
    w = np.zeros((24, 18))
    for index, penalty in enumerate(penalties):
        for _ in range(2000):
            u, s, vh = np.linalg.svd(np.where(known, target, w), full_matrices=False)
            w = (u * np.maximum(s - penalty, 0)) @ vh
        assert last[index].dense() == pytest.approx(w, abs=1e-9)


def test_soft_impute_lowers_its_objective_at_every_iteration():
    problem = lr.synthetic.completion(40, 30, 2, observed=0.3, noise=0.1, seed=1)
    (penalty,) = penalty_path(problem, 1, 0.1)
    last = math.inf
    for _, point in soft_impute(problem, [penalty], rank=30, sweeps=40, tol=0.0):
        objective = problem.loss(problem.residual(point)) + penalty * point.values.sum()
        assert objective <= last * (1 + 1e-3)  # one block power iteration is not an exact shrinkage
        last = objective


def test_a_wider_block_is_the_same_matrix_with_orthonormal_columns():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((k, 3)))[0] for k in (20, 15))
    point = lr.SVD(u, np.array([3.0, 2.0, 1.0]), v)
    wide = soft_impute_module._widened(point, 8, rng)
    assert wide.rank == 8
    assert wide.dense() == pytest.approx(point.dense(), abs=1e-14)
    assert wide.right.T @ wide.right == pytest.approx(np.eye(8), abs=1e-12)
