"""Slices of tensors, normalized directions, supports as arrays and nested products: formulas, counts and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from lowrank_sp.parameterizations import (
    CoreChain,
    DeLoRA,
    HeadCP,
    LowRankPlusColumns,
    LowRankPlusPlaced,
    MatrixTrain,
    MixedCore,
    Nested,
    TrainSlice,
)
from lowrank_sp.testing import check_parameterization

RNG = np.random.default_rng


@pytest.mark.covers("lowrank_sp.parameterizations.*")
@pytest.mark.parametrize(
    ("form", "shape", "size"),
    [
        (LowRankPlusPlaced.of(0.5), (6, 8), 2),
        (LowRankPlusColumns.of(2.0), (6, 8), 2),
        (Nested.of(3), (6, 5), 4),
        (Nested.of(1), (6, 5), 4),
        (MatrixTrain, (8, 12), 2),
        (HeadCP, (12, 5), 3),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_contract_of_forms_with_settings(form, shape, size):
    for library in ("numpy", "torch"):
        check_parameterization(form, shape, size, library=library, batch=(2,))


@pytest.mark.parametrize(
    ("form", "count"),
    [
        (MixedCore, lambda m, n, r: m * r + n * r + r + r**3),
        (TrainSlice, lambda m, n, r: m * r + n * r**2 + r),
        (CoreChain, lambda m, n, r: (m + n) * r + 2 * r**2),
        (HeadCP, lambda m, n, r: (8 + 12 + n + 2) * r),
        (DeLoRA, lambda m, n, r: (m + n) * r + 1),
        (LowRankPlusPlaced, lambda m, n, r: 2 * (m + n) * r),
        (LowRankPlusColumns, lambda m, n, r: (m + n) * r + m * r),
        (Nested, lambda m, n, r: 2 * r * (r // 2)),
        (MatrixTrain, lambda m, n, r: r * (4 * 4 + 6 * 4) + r**2 * 4 * 4),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_parameter_count_is_the_published_one(form, count):
    assert form.parameter_count((96, 64), 8) == count(96, 64, 8)


@pytest.mark.covers("P92", "D45")
def test_only_directions_and_strength_matter_and_the_norm_is_bounded():
    point = DeLoRA.random((6, 5), 3, RNG(0))
    point = point.with_array(3, abs(point.norms))
    scaled = DeLoRA(point.left * [2.0, 0.1, 7.0], 3 * point.right, point.strength, point.norms)
    assert np.allclose(scaled.dense(), point.dense())
    assert np.linalg.norm(point.dense(), 2) <= abs(point.strength[0]) * point.norms.max() + 1e-12
    x, y = point.left, point.right
    expected = sum(np.outer(x[:, i], y[:, i]) / np.linalg.norm(x[:, i]) / np.linalg.norm(y[:, i]) for i in range(3))
    assert np.allclose(point.dense(), point.strength[0] / 3 * expected * point.norms)


@pytest.mark.covers("P51", "P105", "P115")
def test_low_rank_plus_what_stands_at_its_places():
    point = LowRankPlusPlaced.random((6, 8), 2, RNG(1))
    sparse = csr_array((point.values, np.divmod(point.places, 8)), shape=(6, 8))
    assert np.allclose(point.dense(), point.left @ point.right.T + sparse.toarray())
    assert LowRankPlusPlaced.shapes((2, 3), 2)[2] == (6,)
    point = LowRankPlusColumns.random((6, 8), 2, RNG(1))
    expected = point.left @ point.right.T
    expected[:, point.columns] += point.values
    assert np.allclose(point.dense(), expected)


@pytest.mark.covers("P35")
def test_an_inner_product_moves_within_the_outer_spaces():
    point = Nested.random((6, 5), 4, RNG(2))
    u, v = point.left, point.right
    assert np.allclose(u @ (u.T @ point.dense() @ v) @ v.T, point.dense())
    assert np.linalg.matrix_rank(point.dense()) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LowRankPlusPlaced.of(0), "share must be positive, got 0"),
        (lambda: LowRankPlusColumns.of(-1.0), "share must be positive, got -1.0"),
        (lambda: Nested.of(0), "inner must be a positive integer, got 0"),
        (lambda: Nested.random((6, 5), 6, RNG(0)), "rank at most 5, got 6"),
    ],
)
def test_sizes_and_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
