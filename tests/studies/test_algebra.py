"""The algebra study at toy size, and its numbers against independent counts."""

from __future__ import annotations

import numpy as np
import pytest

from studies import load
from studies.algebra import study


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    cells = [cell for cell in load("algebra").config.cells(quick=True) if cell["seed"] < 2]
    small = {"size": 16, "trials": 5}
    cells = [{**cell, **small} if cell["part"] == "bernoulli" else cell for cell in cells]
    return [{**cell, **study.run(cell)} for cell in cells]


@pytest.mark.covers("T01", "T03", "T04", "T06", "T07", "T08", "T09", "T10", "T11", "T12", "T13", "T14", "T15")
def test_every_claim_is_evaluated(rows):
    found = study.measures(rows)
    for claim in load("algebra").config.claims:
        assert np.isfinite(found[claim.measure]).all(), claim.id
    assert set(study.figures(rows)) == {"bernoulli", "blocks"}
    assert all(table for table in study.tables(rows).values())


@pytest.mark.covers("T02")
def test_the_dimension_of_hadamard_images_by_finite_differences():
    rng = np.random.default_rng(0)
    m, n, r, h = 7, 6, 2, 1e-6
    factors = [rng.standard_normal((k, r)) for k in (m, n, m, n)]

    def image(f):
        return ((f[0] @ f[1].T) * (f[2] @ f[3].T)).ravel()

    columns = []
    for i, factor in enumerate(factors):
        for index in np.ndindex(*factor.shape):
            moved = [[a.copy() for a in factors] for _ in range(2)]
            moved[0][i][index] += h
            moved[1][i][index] -= h
            columns.append((image(moved[0]) - image(moved[1])) / (2 * h))
    by_differences = np.linalg.matrix_rank(np.array(columns), tol=1e-5)
    row = study.run({"part": "hadamard", "shape": [m, n], "size": r, "seed": 0})
    assert row["image"] == by_differences == 2 * r * (m + n - r) - (m + n - 1)


@pytest.mark.covers("T05")
def test_a_column_of_zeros_makes_sparse_matrices_singular():
    sparse = study.run({"part": "bernoulli", "size": 30, "factor": 0.1, "trials": 20, "seed": 0})
    dense = study.run({"part": "bernoulli", "size": 30, "factor": 4, "trials": 20, "seed": 0})
    assert sparse["full"] == 0.0
    assert dense["full"] > 0.9
