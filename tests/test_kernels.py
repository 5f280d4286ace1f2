"""The compiled loops give what NumPy gives, are used when there is enough work, and are never needed."""

import subprocess
import sys

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp import kernels
from lowrank_sp.parameterizations.bm import sampled_product

pytest.importorskip("numba")


def problem_of(shape=(40, 30), share=0.5, weighted=False, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    mask[0] = True
    mask[:, 0] = True
    rows, cols = mask.nonzero()
    weights = rng.uniform(0.2, 5.0, rows.size) if weighted else None
    return lr.MatrixCompletion(rows, cols, rng.standard_normal(rows.size).astype(dtype), shape, weights=weights)


def with_and_without(monkeypatch, function):
    """What a function returns with the compiled loops, and with NumPy alone."""
    out = []
    for work in (0, 10**18):
        monkeypatch.setattr(kernels, "WORK", work)
        out.append(function())
    return out


def tolerance(dtype):
    return 1e-11 if dtype is float else 1e-4


@pytest.mark.parametrize("dtype", [float, np.float32])
@pytest.mark.parametrize("rank", [1, 2, 7])
def test_sampled_products(monkeypatch, rank, dtype):
    rng = np.random.default_rng(0)
    point = lr.BurerMonteiro.random((50, 40), rank, rng).map(lambda a: a.astype(dtype))
    rows, cols = rng.integers(-50, 50, 700), rng.integers(-40, 40, 700)
    monkeypatch.setattr(kernels, "WORK", 0)
    fast = sampled_product(point.left, point.right, rows, cols)
    assert fast.dtype == dtype
    assert np.allclose(fast, point.dense()[rows, cols], atol=tolerance(dtype))
    wide = np.repeat(point.left, 2, axis=1)[:, ::2]  # not contiguous
    assert np.array_equal(sampled_product(wide, point.right, rows, cols), fast)


@pytest.mark.parametrize(("row", "col"), [(50, 0), (-51, 0), (0, 40), (0, -41)])
def test_positions_outside_are_refused(monkeypatch, row, col):
    monkeypatch.setattr(kernels, "WORK", 0)
    point = lr.BurerMonteiro.random((50, 40), 2, np.random.default_rng(0))
    with pytest.raises(IndexError, match=r"outside of shape \(50, 40\)"):
        point.entries(np.array([0, row]), np.array([0, col]))


@pytest.mark.parametrize("shape", [(40, 30), (3, 400), (400, 3)], ids=str)  # rows longer and shorter than a batch
@pytest.mark.parametrize("dtype", [float, np.float32])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("index", [0, 1])
def test_sweeps(monkeypatch, index, ridge, weighted, dtype, shape):
    problem = problem_of(shape, 1.0 if 3 in shape else 0.9, weighted, dtype)
    rank = 2 if min(shape) == 3 else 5
    point = lr.BurerMonteiro.random(shape, rank, np.random.default_rng(1)).map(lambda a: a.astype(dtype))
    fast, slow = with_and_without(monkeypatch, lambda: problem.sweep_block(point, index, ridge))
    assert fast[0].dtype == dtype
    assert np.allclose(fast[0], slow[0], rtol=100 * tolerance(dtype), atol=100 * tolerance(dtype))
    assert np.isclose(fast[1], slow[1], rtol=tolerance(dtype))


@pytest.mark.filterwarnings("ignore:.*no observed entry")
def test_rows_without_entries_move_by_the_ridge_alone(monkeypatch):
    """Among others that share their vector instructions."""
    rng = np.random.default_rng(3)
    mask = rng.random((21, 12)) < 0.6
    mask[[0, 5, 20]] = False
    rows, cols = mask.nonzero()
    problem = lr.MatrixCompletion(rows, cols, rng.standard_normal(rows.size), (21, 12))
    point = lr.BurerMonteiro.random((21, 12), 3, rng)
    (fast, _), (slow, _) = with_and_without(monkeypatch, lambda: problem.sweep_block(point, 0, 0.3))
    assert np.allclose(fast, slow)
    assert np.allclose(fast[[0, 5, 20]], -point.left[[0, 5, 20]])


@pytest.mark.parametrize("index", [0, 1])
def test_a_sweep_is_weighted_ridge_regression_row_by_row(monkeypatch, index):
    monkeypatch.setattr(kernels, "WORK", 0)
    problem = problem_of(weighted=True)
    point = lr.BurerMonteiro.random(problem.shape, 3, np.random.default_rng(2))
    change, square = problem.sweep_block(point, index, 0.1)
    other = point.arrays()[1 - index]
    mine, theirs = (problem.pattern.rows, problem.pattern.cols)[:: 1 - 2 * index]
    weights = problem.roots**2
    unit = sum(w * other[j] @ other[j] for w, j in zip(weights, theirs, strict=True)) / change.size
    for i in range(change.shape[0]):
        seen = mine == i
        design = np.vstack((problem.roots[seen, None] * other[theirs[seen]], (0.1 * unit) ** 0.5 * np.eye(3)))
        expected = np.linalg.lstsq(design, np.append(problem.data[seen], np.zeros(3)), rcond=None)[0]
        assert np.allclose(point.arrays()[index][i] + change[i], expected, atol=1e-10)
    assert np.isclose(square, np.linalg.norm(problem.gradient(point).arrays()[index]) ** 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_with_too_few_entries_stay_finite(monkeypatch, weighted):
    monkeypatch.setattr(kernels, "WORK", 0)
    problem = problem_of((60, 50), 0.02, weighted)
    point = lr.BurerMonteiro.random(problem.shape, 5, np.random.default_rng(3))
    for index in (0, 1):
        before = problem.loss(problem.residual(point))
        change, _ = problem.sweep_block(point, index, 0.0)
        point = point.with_array(index, point.arrays()[index] + change)
        assert np.isfinite(change).all()
        assert problem.loss(problem.residual(point)) <= before


def test_a_row_without_entries_does_not_move(monkeypatch):
    monkeypatch.setattr(kernels, "WORK", 0)
    with pytest.warns(UserWarning, match="no observed entry"):
        problem = lr.MatrixCompletion(np.array([0, 0, 2, 2]), np.array([0, 1, 0, 1]), np.ones(4), (4, 2))
    point = lr.BurerMonteiro.random((4, 2), 1, np.random.default_rng(4))
    change, _ = problem.sweep_block(point, 0, 0.0)
    assert not change[[1, 3]].any()


def test_the_number_of_threads_changes_no_digit(monkeypatch):
    monkeypatch.setattr(kernels, "WORK", 0)
    problem = problem_of((200, 150), 0.3)
    point = lr.BurerMonteiro.random(problem.shape, 4, np.random.default_rng(5))
    found = []
    for count in (1, 2, 3, 7, 500):
        monkeypatch.setattr(kernels, "threads", lambda count=count: count)
        found.append((problem.residual(point), *(problem.sweep_block(point, i, 0.1)[0] for i in (0, 1))))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert kernels.threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "100000")
    assert 1 <= kernels.threads() < 100000


@pytest.mark.parametrize("solver", [lr.ALS(), lr.ScaledCG(), lr.RiemannianCG()], ids=lambda s: s.name)
def test_solves_agree(monkeypatch, solver):
    problem = lr.synthetic.completion(60, 50, rank=3, observed=0.5, condition_number=10.0, noise=0.01, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    fast, slow = with_and_without(monkeypatch, lambda: lr.solve(problem, start, solver, max_iter=10, tol=0))
    assert np.allclose(fast.history["loss"], slow.history["loss"], rtol=1e-6)
    assert np.allclose(fast.point.dense(), slow.point.dense(), atol=1e-7)


def test_without_numba_nothing_changes(monkeypatch):
    monkeypatch.setattr(kernels, "WORK", 0)
    point = lr.BurerMonteiro.random((9, 8), 2, np.random.default_rng(6))
    assert kernels.available(100, 2, *point.arrays())
    monkeypatch.setitem(sys.modules, "numba", None)
    kernels._installed.cache_clear()
    try:
        assert not kernels.available(100, 2, *point.arrays())
        assert lr.complete(problem_of(), rank=2).nit > 0
    finally:
        kernels._installed.cache_clear()


def test_who_is_not_served(monkeypatch):
    monkeypatch.setattr(kernels, "WORK", 0)
    a = np.ones((4, 2))
    assert kernels.available(10, 2, a, a)
    assert not kernels.available(10, 2, a, a + 1j)
    assert not kernels.available(10, 2, a, a.astype(np.float32))
    assert not kernels.available(10, 2, a[None], a)
    assert not kernels.available(10, 2, a.astype(complex), a.astype(complex))
    monkeypatch.setattr(kernels, "WORK", 1000)
    assert not kernels.available(499, 2, a, a)


@pytest.mark.parametrize("size", [(60, 50)])
def test_small_problems_load_nothing(size):
    code = (
        "import sys, lowrank_sp as lr\n"
        f"lr.complete(lr.synthetic.completion(*{size}, rank=2, observed=0.5, seed=0), rank=2)\n"
        "assert 'numba' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
