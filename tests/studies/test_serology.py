"""The serology study at toy size, on tensors of known rank."""

from __future__ import annotations

import numpy as np
import pytest

import lowrank_sp as lr
from studies import load
from studies.serology import study
from studies.serology.paths import Split, Track, grow_rank, grown

SHAPE = (24, 5, 6)


def toy(noise: float = 0.05) -> np.ndarray:
    """Two components of equal size and noise."""
    clean = lr.synthetic.low_tensor(SHAPE, 2, lr.CP, seed=0).dense()
    scale = np.linalg.norm(clean) / clean.size**0.5
    return clean / scale + noise * np.random.default_rng(1).standard_normal(SHAPE)


def test_every_claim_is_evaluated(monkeypatch):
    monkeypatch.setattr(study, "serology", toy)
    config = load("serology").config
    rows = []
    for cell in config.cells():
        if cell["seed"] == 0 and cell.get("rank", 1) <= 2:
            small = {**cell, "most_rank": 2, "most_iter": 4}
            rows.append({**small, **study.run(small)})
    found = study.measures(rows)
    for claim in config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert min(found["cp_over_means_entries"]) < 0.5  # with 60 % of the entries
    assert set(study.figures(rows)) == {"prediction", "compression"}
    assert all(study.tables(rows).values())


@pytest.mark.covers("S14")
def test_cp_grows_past_the_rank_of_the_tensor_and_predicts_what_is_hidden():
    split = Split(toy(noise=0.02), "entries", 0.6, seed=0)
    track = Track(split)
    grow_rank(track, (1e-3,), most_rank=6, most_iter=40, patience=3)
    means = split.errors(lambda i, _j, _k: np.zeros(i.shape))[1]
    # Two components, and the means that were taken away: a matrix of antigens and receptors that takes a few more.
    assert track.point.rank > 2
    assert track.error < 0.1 * means
    assert track.least <= track.error


def test_whole_receptors_are_hidden_and_the_parts_of_a_split_are_disjoint():
    tensor = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE)
    split = Split(tensor, "fibers", 0.5, seed=2)
    assert np.array_equal(np.sort(np.concatenate(split.values)), tensor.ravel())
    for part in split.parts:
        pairs, counts = np.unique(part[0] * 5 + part[1], return_counts=True)
        assert (counts == 6).all()
        assert len(pairs) == len(part[0]) // 6
    j, k = 3, 4
    train = [v for v, b, c in zip(split.values[0], *split.parts[0][1:], strict=True) if (b, c) == (j, k)]
    assert split.means[j, k] == pytest.approx(np.mean(train))
    rows, cols, shape = split.flat(1, split.parts[0])
    flat = np.moveaxis(tensor, 1, 0).reshape(shape)
    assert np.array_equal(flat[rows, cols], split.values[0])


@pytest.mark.parametrize("mode", [None, 0])
def test_one_more_term_lowers_the_loss_from_a_solution(mode):
    problem = Split(toy(), "entries", 0.8, seed=3).problem(mode)
    form = lr.CP if mode is None else lr.BurerMonteiro
    point = lr.solve(problem, grown(problem, None, form), lr.ALS(), max_iter=20).point
    more = grown(problem, point, form)
    assert more.rank == point.rank + 1
    assert problem.loss(problem.residual(more)) < problem.loss(problem.residual(point))
