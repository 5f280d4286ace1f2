"""Completion of torch data: nothing of the size of the matrix, the numbers of NumPy, and the type of the data."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr

# 2e10 entries: 80 GB in single precision.
SHAPE = (200_000, 100_000)


def spread(kind=np.float64):
    """A small instance whose rows and columns lie far apart in a large matrix."""
    made = lr.synthetic.completion(50, 40, 2, 0.5, 3.0, seed=0)
    rows, cols = made.pattern.rows.astype(np.int64) * 4000, made.pattern.cols.astype(np.int64) * 2500
    return made, rows, cols, made.data.astype(kind)


def places(rows, cols, values):
    at = torch.as_tensor(np.stack((rows, cols)))
    return torch.sparse_coo_tensor(at, torch.as_tensor(values), SHAPE, check_invariants=True)


def block(point):
    left, right = point.arrays()
    return (left[::4000] @ right[::2500].T).numpy()


@pytest.mark.covers("S03")
@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("solver", ["ALS", "ScaledCG", "ScaledGD", pytest.param("MatrixIRLS", marks=pytest.mark.slow)])
def test_solvers_never_form_the_matrix(solver, kind):
    _, rows, cols, values = spread(kind)
    with pytest.warns(UserWarning, match="no observed entry"):
        problem = lr.MatrixCompletion.from_sparse(places(rows, cols, values))
    rng = np.random.default_rng(0)
    start = lr.BurerMonteiro(*(torch.as_tensor(rng.standard_normal((k, 2)).astype(kind)) for k in SHAPE))
    result = lr.solve(problem, start, getattr(lr, solver)(), 3, 0.0)
    assert result.point.left.dtype == problem.data.dtype == torch.as_tensor(values).dtype
    assert result.history["loss"][-1] < result.history["loss"][0]


@pytest.mark.slow
@pytest.mark.covers("S03")
def test_the_one_liner_completes_a_large_sparse_tensor():
    made, rows, cols, values = spread()
    with pytest.warns(UserWarning, match="no observed entry"), pytest.warns(UserWarning, match="not determined"):
        result = lr.complete(places(rows, cols, values), 2, max_iter=40, tol=1e-8, validation=0.0)
    assert np.linalg.norm(block(result.point) - made.truth.dense()) < 1e-6 * np.linalg.norm(made.truth.dense())
