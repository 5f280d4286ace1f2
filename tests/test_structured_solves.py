"""Structured forms in problems: solvers find structured targets, and completion stays the size of the data."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

import lowrank_sp as lr
from lowrank_sp.testing.common import in_library

RNG = np.random.default_rng
SHAPE = (20, 16)


def relative_residual(problem, result):
    return (2 * np.min(result.fun)) ** 0.5 / np.linalg.norm(problem.data)


@pytest.mark.covers("P08", "P29", "P44", "P45", "P48", "P50", "P51")
@pytest.mark.parametrize(
    "form, size",
    [
        (lr.Core, 3),
        (lr.DiagonalCore, 3),
        (lr.Kronecker, 3),
        (lr.BlockGrid.of(2, 4), 2),
        (lr.BlockDiagonal.of(4), 2),
        (lr.LowRankPlusSparse, 2),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
@pytest.mark.parametrize(
    "solver, most",
    [(lr.AltScaledGD(), 60), (lr.ScaledGD(), 300), (lr.ScaledCG(), 100), (lr.ALS(), 500)],
    ids=lambda v: getattr(v, "name", None),
)
@pytest.mark.parametrize("seed", [0, 3])
def test_structured_targets_are_found_from_random_starts(form, size, solver, most, seed):
    problem = lr.MatrixFactorization(form.random(SHAPE, size, RNG(seed)).dense())
    start = form.random(SHAPE, size, RNG(100 + seed)).scale(0.5)
    assert relative_residual(problem, lr.solve(problem, start, solver, max_iter=most)) < 1e-6


@pytest.mark.covers("P45", "P48", "O05")
@pytest.mark.parametrize(
    "form", [lr.Core, lr.DiagonalCore, lr.Kronecker, lr.BlockGrid, lr.BlockDiagonal], ids=lambda f: f.__name__
)
def test_one_sweep_of_alternating_scaled_gradient_descent_is_enough_without_a_sum(form):
    problem = lr.MatrixFactorization(form.random(SHAPE, 2, RNG(1)).dense())
    start = form.random(SHAPE, 2, RNG(2))
    assert relative_residual(problem, lr.solve(problem, start, lr.AltScaledGD(), max_iter=1)) < 1e-10


@pytest.mark.covers("P46", "S19")
def test_a_hadamard_product_is_found_from_one_of_several_starts():
    """The loss has local minima: two starts of three end in one. A batch runs all of them at once."""
    problem = lr.MatrixFactorization(lr.Hadamard.random(SHAPE, 2, RNG(0)).dense())
    start = lr.Hadamard.random(SHAPE, 2, RNG(1), (12,)).scale(0.5)
    result = lr.solve(problem, start, lr.ScaledCG(), max_iter=400, tol=0)
    assert relative_residual(problem, result) < 1e-6


def sampled(form, shape, size, count, seed=0):
    """A completion problem with a target of the form, without ever forming it."""
    rng = RNG(seed)
    truth = form.random(shape, size, rng)
    keys = np.unique(rng.integers(0, shape[0] * shape[1], count))
    rows, cols = keys // shape[1], keys % shape[1]
    return lr.MatrixCompletion(rows, cols, truth.entries(rows, cols), shape), truth


@pytest.mark.covers("S03", "S19", "P45", "P46", "P48")
@pytest.mark.parametrize(
    "form",
    [lr.Hadamard, lr.BlockGrid.of(4, 2), lr.BlockDiagonal.of(4), lr.Kronecker, lr.LowRankPlusSparse],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("solver", [lr.ScaledGD(), lr.ALS()], ids=lambda s: s.name)
def test_completion_never_forms_the_matrix(form, solver):
    shape = (3000, 2000)
    problem, _ = sampled(form, shape, 2, 40_000)
    start = form.random(shape, 2, RNG(1)).scale(0.5)
    tracemalloc.start()
    result = lr.solve(problem, start, solver, max_iter=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.fun < result.history["loss"][0]
    assert peak < 0.25 * 8 * shape[0] * shape[1]


@pytest.mark.covers("S03")
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
def test_gradient_of_samples_is_that_of_the_matrix_with_zeros_elsewhere(form, library, batch):
    rng = RNG(8)
    rows, cols = (rng.random((8, 8)) < 0.6).nonzero()
    point = in_library(form.random((8, 8), 2, rng, batch), library)
    values = in_library(rng.standard_normal((*batch, rows.size)), library)
    rows, cols = (in_library(a, library) for a in (rows, cols))
    got = lr.MatrixCompletion(rows, cols, values, (8, 8)).gradient(point)
    residual = 0 * point.dense()
    residual[..., rows, cols] = point.dense()[..., rows, cols] - values
    for a, b in zip(got.arrays(), point.pullback(residual).arrays(), strict=True):
        assert np.allclose(a, b, atol=1e-12)


@pytest.mark.covers("S03", "P45")
def test_a_grid_of_blocks_is_completed():
    problem, truth = sampled(lr.BlockGrid.of(2, 3), (60, 60), 1, 3000)
    start = lr.inits.spectral(problem, lr.BlockGrid.of(2, 3), 1)
    result = lr.solve(problem, start, lr.ScaledCG(), max_iter=300)
    assert lr.metrics.relative_error(result.point, truth) < 1e-6


@pytest.mark.covers("S03", "S19", "P46")
def test_a_hadamard_product_is_completed_from_nearby():
    problem, truth = sampled(lr.Hadamard, (40, 30), 2, 1500)
    rng = RNG(3)
    start = truth + truth.map(lambda a: 0.1 * rng.standard_normal(a.shape))
    result = lr.solve(problem, start, lr.ScaledCG(), max_iter=300)
    assert lr.metrics.relative_error(result.point, truth) < 1e-6


@pytest.mark.parametrize("wrap", [scipy.sparse.csr_array, aslinearoperator], ids=["sparse", "operator"])
@pytest.mark.parametrize("form", lr.FORMS.values(), ids=lr.FORMS)
def test_targets_that_are_not_arrays_give_the_same_iterates(form, wrap):
    rng = RNG(4)
    dense = rng.standard_normal((8, 8)) * (rng.random((8, 8)) < 0.5)
    start = form.random((8, 8), 2, rng)
    ends = [
        lr.solve(lr.MatrixFactorization(target), start, lr.ScaledGD(0.1), max_iter=3, tol=0).point.dense()
        for target in (dense, wrap(dense))
    ]
    assert np.allclose(*ends, atol=1e-10)


@pytest.mark.covers("O03")
@pytest.mark.parametrize("form", [lr.SymmetricBurerMonteiro, lr.LowRankPlusSparse], ids=lambda f: f.__name__)
def test_alternating_least_squares_on_forms_that_are_not_multilinear(form):
    problem = lr.MatrixFactorization(form.random((9, 9), 2, RNG(5)).dense())
    start = form.random((9, 9), 2, RNG(6))
    assert relative_residual(problem, lr.solve(problem, start, lr.ALS(), max_iter=300)) < 1e-6


@pytest.mark.covers("P46")
def test_a_converted_start_leaves_no_column_of_a_hadamard_product_behind():
    """Two zero columns would never move; from_product must not make them."""
    problem = lr.MatrixFactorization(RNG(7).standard_normal((10, 8)))
    start = lr.inits.spectral(problem, lr.Hadamard, 2)
    best = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    end = lr.solve(problem, start, lr.GD(), max_iter=200).fun
    assert end < 0.9 * problem.loss(problem.residual(best))
