"""Robust completion from stored entries: quantiles by brute force, agreement with the dense problem, the one-liner."""

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_sp as lr
from lowrank_sp import kernels
from lowrank_sp.baselines import PCP
from lowrank_sp.operators import Pattern
from lowrank_sp.problems.robust_entries import Lines

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def instance(m=160, n=140, rank=2, over=7.0, share=0.05, noise=0.0, seed=0):
    """Positions, values with outliers of ten standard deviations, the truth, and which entries are wrong."""
    rng = np.random.default_rng(seed)
    observed = min(0.9, over * rank * (m + n) / (m * n))
    made = lr.synthetic.completion(m, n, rank, observed, seed=seed, least=rank + 6)
    truth, rows, cols = made.truth, made.pattern.rows, made.pattern.cols
    clean = truth.entries(rows, cols)
    wrong = rng.random(rows.size) < share
    noises = rng.standard_normal((2, rows.size))
    values = clean + clean.std() * (noise * noises[0] + 10 * wrong * noises[1])
    return rows, cols, values, truth, wrong


def brute_largest(rows, cols, values, share):
    """The entries that are among the largest of their row and of their column, one by one."""
    keep = np.ones(values.size, bool)
    for ids in (rows, cols):
        for line in np.unique(ids):
            here = np.flatnonzero(ids == line)
            count = int(np.ceil(share * here.size))
            keep[here] &= abs(values[here]) >= np.sort(abs(values[here]))[-count]
    return values * keep


@pytest.mark.covers("S05")
@LIBRARIES
@pytest.mark.parametrize("work", [1, 10**9], ids=["compiled", "sorted"])
def test_the_trimmed_residual_is_that_of_brute_force(convert, work, monkeypatch):
    monkeypatch.setattr(kernels, "WORK", work)
    rows, cols, values, truth, _ = instance(30, 25, share=0.2)
    problem = lr.RobustCompletion(*map(convert, (rows, cols, values)), (30, 25), 0.1)
    point = truth.map(lambda a: 1.1 * a)
    gap = point.entries(rows, cols) - values
    expected = gap - brute_largest(rows, cols, gap, 0.2)
    assert np.allclose(problem.residual(point.map(convert)), expected)
    part = problem.sparse_part(point.map(convert))
    part = part.to_dense().numpy() if torch.is_tensor(part) else part.toarray()
    assert np.allclose(part[rows, cols], expected - gap)


@LIBRARIES
def test_thresholds_of_lines_of_very_different_length(convert):
    rng = np.random.default_rng(0)
    counts = [0, 1, 40, 3, 0, 7]
    rows, cols = np.repeat(np.arange(6), counts), np.concatenate([rng.permutation(50)[:k] for k in counts])
    values = rng.random(rows.size)
    lines = Lines(Pattern(convert(rows), convert(cols), (6, 50)), False)
    found = np.asarray(lines.thresholds(convert(values), 0.25))
    for i, k in enumerate(counts):
        expected = np.sort(values[rows == i])[-int(np.ceil(0.25 * k))] if k else 0.0
        assert found[i] == expected


@pytest.mark.parametrize("work", [1, 10**9], ids=["compiled", "sorted"])
def test_seven_of_a_hundred_are_seven(work, monkeypatch):
    """0.07 times 100 is a little more than seven."""
    monkeypatch.setattr(kernels, "WORK", work)
    values = np.random.default_rng(0).permutation(100.0 + np.arange(100))
    lines = Lines(Pattern(np.zeros(100, np.int64), np.arange(100), (1, 100)), False)
    assert lines.thresholds(values, 0.07) == 193


@pytest.mark.parametrize("rank", [1, "auto"])
@pytest.mark.parametrize(
    "convert", [np.asarray, torch.as_tensor, scipy.sparse.coo_array], ids=["numpy", "torch", "sparse"]
)
def test_zeros_have_no_outliers(convert, rank):
    places = np.indices((6, 5)).reshape(2, -1)
    stored = scipy.sparse.coo_array((np.zeros(30), places), shape=(6, 5))
    result, sparse = lr.robust_pca(stored if convert is scipy.sparse.coo_array else convert(np.zeros((6, 5))), rank)
    assert result.success
    assert not np.asarray(result.point.dense()).any()
    assert abs(sparse).sum() == 0


@pytest.mark.covers("S05")
@LIBRARIES
def test_the_gradient_is_that_of_the_loss_with_outliers_held_fixed(convert):
    rows, cols, values, truth, _ = instance(20, 15, share=0.2)
    problem = lr.RobustCompletion(*map(convert, (rows, cols, values)), (20, 15), 0.1)
    point = truth.map(lambda a: 1.1 * a)
    kept = torch.as_tensor(np.asarray(problem.residual(point.map(convert))) != 0)
    leaves = point.map(lambda a: torch.as_tensor(a).requires_grad_())
    gap = leaves.dense()[rows, cols] - torch.as_tensor(values)
    (0.5 * (gap[kept] ** 2).sum()).backward()
    for ours, leaf in zip(problem.gradient(point.map(convert)).arrays(), leaves.arrays(), strict=True):
        assert np.allclose(np.asarray(ours), leaf.grad, atol=1e-10)


@pytest.mark.parametrize("solver", ["ScaledGD", "AltScaledGD", "ScaledCG", "RiemannianGD"])
def test_solvers_recover(solver):
    rows, cols, values, truth, _ = instance(over=20.0, share=0.03)
    problem = lr.RobustCompletion(rows, cols, values, (160, 140), 0.05, truth=truth)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    assert lr.solve(problem, start, lr.SOLVERS[solver](), 400).history["error"][-1] < 1e-7


def test_pursuit_takes_the_steps_of_the_dense_one():
    rows, cols, values, _, _ = instance(40, 30, 2, 7.0)
    array = np.full((40, 30), np.nan)
    array[rows, cols] = values
    start = lr.SVD.random((40, 30), 30, np.random.default_rng(0))
    ours, dense = (
        lr.solve(problem, start, PCP(rank=30), 12, 0.0).point.dense()
        for problem in (lr.RobustCompletion(rows, cols, values, (40, 30)), lr.RobustPCA(array))
    )
    assert np.allclose(ours, dense, atol=1e-8 * np.linalg.norm(dense))


@pytest.mark.covers("S05")
@pytest.mark.parametrize("kind", ["scipy", "torch", "single"])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_one_liner_separates_few_stored_entries(kind, noise):
    rows, cols, values, truth, wrong = instance(noise=noise, seed=1)
    if kind == "torch":
        with torch.sparse.check_sparse_tensor_invariants():
            matrix = torch.sparse_coo_tensor(np.stack((rows, cols)), torch.as_tensor(values), (160, 140))
    else:
        matrix = scipy.sparse.coo_array((values, (rows, cols)), shape=(160, 140))
        matrix = matrix.astype(np.float32) if kind == "single" else matrix
    result, sparse = lr.robust_pca(matrix, 2)
    point = result.point.map(lambda a: np.asarray(a, float))
    error = np.linalg.norm(point.dense() - truth.dense()) / np.linalg.norm(truth.dense())
    assert error < (0.01 if noise else 1e-4 if kind == "single" else 1e-8)
    assert result.point.left.dtype == (torch.float64 if kind == "torch" else matrix.dtype)
    assert torch.is_tensor(sparse) == (kind == "torch")
    found = (sparse.to_dense().numpy() if kind == "torch" else sparse.toarray())[rows, cols] != 0
    large = wrong & (abs(values - truth.entries(rows, cols)) > 0.5 * values[~wrong].std())
    assert (found == large).mean() > 0.98


@pytest.mark.covers("S05")
@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_given_up_as_outliers(seed):
    """Rows that were fitted to one of their outliers once lost all other entries, in each of these instances."""
    rows, cols, values, truth, wrong = instance(80, 70, 1, 14.0, seed=seed)
    matrix = scipy.sparse.coo_array((values, (rows, cols)), shape=(80, 70))
    result, sparse = lr.robust_pca(matrix, 1)
    assert np.linalg.norm(result.point.dense() - truth.dense()) < 1e-10
    assert np.array_equal(sparse.toarray()[rows, cols] != 0, wrong)


@pytest.mark.slow
@pytest.mark.covers("S05")
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_no_array_of_the_size_of_the_matrix_is_formed(library):
    """A matrix of 1e10 entries, of which the rows and columns of a small block hold any."""
    rows, cols, values, truth, _ = instance(80, 70, 1, 14.0)
    spread = 1000
    shape = (80 * spread, 70 * spread)
    if library == "torch":
        places = torch.as_tensor(np.stack((rows * spread, cols * spread)))
        matrix = torch.sparse_coo_tensor(places, torch.as_tensor(values), shape, check_invariants=True)
    else:
        matrix = scipy.sparse.coo_array((values, (rows * spread, cols * spread)), shape=shape)
    with pytest.warns(UserWarning, match="no observed entry"):
        result, _ = lr.robust_pca(matrix, 1, max_iter=50)
    block = lr.BurerMonteiro(*(np.asarray(a)[::spread] for a in result.point.arrays())).dense()
    assert np.linalg.norm(block - truth.dense()) < 1e-4 * np.linalg.norm(truth.dense())


def test_the_rank_is_found_from_stored_entries():
    rows, cols, values, _, _ = instance(over=10.0)
    matrix = scipy.sparse.csr_array((values, (rows, cols)), shape=(160, 140))
    result, _ = lr.robust_pca(matrix, "auto")
    assert result.point.rank == 2
    assert "outliers cut out by PCP" in result.choice


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_a_completion_problem_states_the_same_as_its_stored_entries(convert):
    rows, cols, values, truth, _ = instance(over=10.0)
    known = lr.MatrixCompletion(convert(rows), convert(cols), convert(values), (160, 140), truth.map(convert))
    (result, sparse), expected = (
        lr.robust_pca(known, 2),
        lr.robust_pca(scipy.sparse.csr_array((values, (rows, cols)), shape=(160, 140)), 2),
    )
    ours = sparse.to_dense().numpy() if torch.is_tensor(sparse) else sparse.toarray()
    assert np.allclose(ours, expected.sparse.toarray(), atol=1e-8)
    assert np.linalg.norm(np.asarray(result.point.dense()) - truth.dense()) < 1e-8 * np.linalg.norm(truth.dense())
    assert lr.RobustCompletion.from_completion(known).truth is known.truth


def test_another_share_leaves_the_first_problem_alone():
    rows, cols, values, _, _ = instance(20, 15)
    problem = lr.RobustCompletion(rows, cols, values, (20, 15), 0.1)
    other = problem.trimming(0.3, 1.5)
    again = lr.RobustCompletion(rows, cols, values, (20, 15), 0.3, 1.5)
    assert (problem.outliers, problem.share) == (0.1, 0.2)
    assert other.scale == again.scale != problem.scale


I, V = np.arange(3), np.ones(3)
ERRORS = {
    "share": (lambda: lr.RobustCompletion(I, I, V, (3, 3), 0.6), ValueError, r"outliers must lie in \(0, 0.5\)"),
    "factor": (lambda: lr.RobustCompletion(I, I, V, (3, 3), factor=0.5), ValueError, "factor must lie in"),
    "batch": (lambda: lr.RobustCompletion(I, I, np.ones((2, 3)), (3, 3)), ValueError, "values must have one axis"),
    "dense": (lambda: lr.RobustCompletion.from_sparse(np.eye(3)), TypeError, "must be a scipy sparse matrix or a"),
    "weights": (
        lambda: lr.robust_pca(lr.MatrixCompletion(I, I, V, (3, 3), weights=V), 1),
        ValueError,
        "matrix has weights",
    ),
    "duplicates": (
        lambda: lr.robust_pca(scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2)), 1),
        ValueError,
        "repeat 1 positions",
    ),
    "pursuit": (
        lambda: lr.solve(
            lr.RobustCompletion(I, I, V, (3, 3)), lr.BurerMonteiro(np.ones((3, 1)), np.ones((3, 1))), PCP()
        ),
        ValueError,
        "PCP needs a rank on entries",
    ),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
