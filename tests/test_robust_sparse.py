"""Robust PCA with unknown entries: the masked trimmed loss, sparse containers, the one-liner, bad input."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import lowrank_sp as lr
from lowrank_sp.baselines import PCP
from lowrank_sp.problems.robust import keep_largest

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def instance(hidden, shape=(90, 70), rank=2, outliers=0.06, seed=0, **kwargs):
    """A matrix with NaN, the instance behind it, and which entries are known."""
    made = lr.synthetic.robust(*shape, rank, outliers, seed=seed, **kwargs)
    known = np.random.default_rng(seed).random(shape) >= hidden
    return np.where(known, made.data, np.nan), made, known


@pytest.mark.covers("S05")
@LIBRARIES
def test_the_masked_trimmed_loss_has_the_gradient_of_its_model(convert):
    matrix, _, known = instance(0.4, (14, 11))
    problem = lr.RobustPCA(convert(matrix), 0.1)
    point = lr.BurerMonteiro.random((14, 11), 2, np.random.default_rng(1))
    leaves = point.map(lambda a: torch.as_tensor(a).requires_grad_())
    gap = torch.where(torch.as_tensor(known), leaves.dense() - torch.as_tensor(matrix).nan_to_num(), 0.0)
    per_row, per_column = round(0.2 * known.sum(1).max()), round(0.2 * known.sum(0).max())
    size = abs(gap.detach().numpy())
    largest = size >= np.sort(size, 1)[:, [-per_row]]
    largest &= size >= np.sort(size, 0)[[-per_column], :]
    loss = 0.5 * (gap[torch.as_tensor(~largest)] ** 2).sum()
    loss.backward()
    ours = point.map(convert)
    assert np.isclose(float(problem.loss(problem.residual(ours))), loss.item())
    for g, leaf in zip(problem.gradient(ours).arrays(), leaves.arrays(), strict=True):
        assert np.allclose(np.asarray(g), leaf.grad, atol=1e-12)
    assert not np.asarray(problem.sparse_part(ours))[~known].any()


@pytest.mark.covers("S05")
@pytest.mark.parametrize("solver", ["GD", "ScaledGD", "AltScaledGD", "ScaledCG", "ALS", "RiemannianGD"])
def test_solvers_recover_what_is_hidden_and_what_is_wrong(solver):
    matrix, made, known = instance(0.3)
    problem = lr.RobustPCA(matrix, 0.1, truth=made.truth)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    result = lr.solve(problem, start, lr.SOLVERS[solver](), max_iter=800)
    assert result.history["error"][-1] < 1e-7
    truth = np.where(known, made.data - made.truth.dense(), 0)
    large = abs(truth) > 1e-3
    assert np.allclose(problem.sparse_part(result.point)[large], truth[large], atol=1e-5)


@pytest.mark.covers("S05")
def test_pursuit_fills_in_what_is_hidden():
    matrix, made, _ = instance(0.2, (50, 40), outliers=0.04)
    problem = lr.RobustPCA(matrix, truth=made.truth)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    result = lr.solve(problem, start, PCP(), max_iter=600, tol=1e-9)
    assert result.history["error"][-1] < 1e-6


@pytest.mark.covers("S05")
@LIBRARIES
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("hidden", [0.2, 0.5])
def test_the_one_liner_takes_unknown_entries(convert, noise, hidden):
    matrix, made, known = instance(hidden, (120, 90), 3, condition_number=20.0, noise=noise, seed=1)
    result, sparse = lr.robust_pca(convert(matrix), 3)
    assert result.success
    assert made.error(result.point.map(np.asarray)) < max(1e-8, 1.5 * noise)
    clean, sparse = made.truth.dense(), np.asarray(sparse)
    large = known & (abs(made.data - clean) > 0.5 * np.sqrt((clean**2).mean()))
    assert ((sparse != 0) == large).mean() > 0.99
    assert not sparse[~known].any()


@pytest.mark.covers("S05")
def test_the_rank_is_found_beside_outliers_and_unknown_entries():
    matrix, made, _ = instance(0.2)
    result, _ = lr.robust_pca(matrix, "auto")
    assert result.point.rank == 2
    assert made.error(result.point) < 1e-8


def csr(matrix):
    rows, cols = (~np.isnan(matrix)).nonzero()
    return scipy.sparse.csr_array((matrix[rows, cols], (rows, cols)), shape=matrix.shape)


def torch_coo(matrix):
    rows, cols = (~np.isnan(matrix)).nonzero()
    values = torch.as_tensor(matrix[rows, cols])
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.sparse_coo_tensor(torch.as_tensor(np.stack((rows, cols))), values, matrix.shape)


CONTAINERS = {
    "csr": csr,
    "coo": lambda a: csr(a).tocoo(),
    "csc matrix": lambda a: scipy.sparse.csc_matrix(csr(a)),
    "torch coo": torch_coo,
    "frame": pd.DataFrame,
    "float32": lambda a: a.astype(np.float32),
}


@pytest.mark.covers("S05")
@pytest.mark.parametrize("convert", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_of_known_entries_gives_the_same_separation(convert):
    matrix, made, _ = instance(0.3)
    matrix[np.isfinite(matrix).nonzero()[0][0], 0] = 0.0  # a stored zero is known
    reference, _ = lr.robust_pca(matrix, 2)
    result, sparse = lr.robust_pca(convert(matrix), 2)
    single = convert is CONTAINERS["float32"]
    assert np.allclose(result.point.dense(), reference.point.dense(), atol=1e-4 if single else 1e-9)
    assert (sparse.dtype == np.float32) == single
    assert torch.is_tensor(sparse) == (convert is torch_coo)
    assert made.error(result.point.map(np.asarray)) < (1e-3 if single else 1e-8)


def test_integers_in_sparse_matrices_become_floating():
    stored = scipy.sparse.coo_array(np.diag([3, 4, 5]))
    with pytest.warns(UserWarning, match="no observed entry"):
        problem = lr.RobustPCA(scipy.sparse.coo_array(([7], ([0], [1])), shape=(2, 2)))
    assert problem.data.tolist() == [[0, 7], [0, 0]]
    assert lr.RobustPCA(stored).counts == (1, 1)


def test_batches_with_different_unknown_entries_are_a_loop():
    made = [instance(0.3, (30, 25), seed=k)[0] for k in range(2)]
    both = lr.RobustPCA(np.stack(made), 0.05)
    start = lr.inits.spectral(both, lr.BurerMonteiro, 2)
    residual = both.residual(start)
    for k, matrix in enumerate(made):
        one = lr.RobustPCA(matrix, 0.05)
        gap = one.masked(start.map(lambda a, k=k: a[k]).dense() - one.data)
        assert np.allclose(residual[k], gap - keep_largest(gap, both.share, both.counts))


def test_another_share_leaves_the_first_problem_alone():
    matrix, _, _ = instance(0.2, (20, 15))
    problem = lr.RobustPCA(matrix, 0.1)
    other, again = problem.trimming(0.3, 1.5), lr.RobustPCA(matrix, 0.3, 1.5)
    assert (problem.outliers, problem.share) == (0.1, 0.2)
    assert other.scale == again.scale != problem.scale
    assert np.array_equal(other.surrogate(), again.surrogate())


def test_a_fully_known_matrix_takes_the_path_without_a_mask():
    assert lr.RobustPCA(np.ones((4, 3))).known is None
    assert lr.RobustPCA(np.ones((4, 3), int)).known is None


NAN = np.full((4, 3), np.nan)
ERRORS = {
    "all unknown": (lambda: lr.robust_pca(NAN, 1), ValueError, "matrix holds 12 NaN and nothing else"),
    "infinite": (lambda: lr.RobustPCA(np.where(np.eye(4, 3), np.inf, NAN)), ValueError, "matrix holds 3 NaN or inf"),
    "nothing stored": (lambda: lr.RobustPCA(scipy.sparse.csr_array((4, 3))), ValueError, "matrix is empty"),
    "stored NaN": (
        lambda: lr.RobustPCA(scipy.sparse.coo_array(([np.nan], ([0], [0])), shape=(2, 2))),
        ValueError,
        "matrix holds 1 NaN",
    ),
    "duplicates": (
        lambda: lr.RobustPCA(scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))),
        ValueError,
        "matrix stores 2 entries at 1 positions",
    ),
    "text column": (lambda: lr.RobustPCA(pd.DataFrame({"a": ["x"], "b": [1.0]})), TypeError, "numeric columns"),
    "objects": (lambda: lr.RobustPCA([["a", "b"]]), TypeError, "matrix must be numeric"),
    "share": (lambda: lr.RobustPCA(np.ones((4, 3))).trimming(0.6), ValueError, r"outliers must lie in \(0, 0.5\)"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.slow
@pytest.mark.covers("S05")
def test_the_one_liner_succeeds_on_random_instances_with_unknown_entries():
    """Sizes, ranks, condition numbers to 100, noise to 1 %, up to 10 % outliers, up to half unknown: 36 of 40."""
    rng = np.random.default_rng(2)
    good = 0
    for seed in range(40):
        shape, rank = tuple(int(k) for k in rng.integers(80, 200, 2)), int(rng.integers(1, 5))
        condition_number = 10 ** rng.uniform(0, 2) if rank > 1 else 1.0
        noise, outliers, hidden = rng.choice([0, 1e-3, 1e-2]), rng.uniform(0.01, 0.1), rng.uniform(0.05, 0.5)
        matrix, made, _ = instance(hidden, shape, rank, outliers, seed, condition_number=condition_number, noise=noise)
        result, _ = lr.robust_pca(matrix, rank)
        good += bool(result.success and made.error(result.point) < max(1e-6, 3 * noise))
    assert good >= 36, good
