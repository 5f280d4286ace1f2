"""Problems against dense brute force: completion by a mask, implicit targets, synthetic data."""

import numpy as np
import pylops
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator

import lowrank_sp as lr

SHAPE = (9, 7)


def masked(seed=0, dtype=float, batch=()):
    """A matrix with unknown entries as NaN, and its mask."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((*batch, *SHAPE)).astype(dtype)
    if np.dtype(dtype).kind == "c":
        array = array + 1j * rng.standard_normal((*batch, *SHAPE))
    mask = rng.random(SHAPE) < 0.6
    mask[0], mask[:, 0] = True, True
    return np.where(mask, array, np.nan), mask


def complex_point(rng, rank):
    a, b = (lr.BurerMonteiro.random(SHAPE, rank, rng) for _ in range(2))
    return a.map(lambda x, y: x + 1j * y, b)


@pytest.mark.covers("S03")
@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_completion_is_masked_factorization(convert, dtype):
    array, mask = masked(dtype=dtype)
    problem = lr.MatrixCompletion.from_array(convert(array))
    point = complex_point(np.random.default_rng(1), 2)
    point = point if dtype is complex else point.map(lambda a: a.real.copy())
    gap = np.where(mask, point.dense() - array, 0)
    ours = point.map(convert)
    residual = problem.residual(ours)
    assert np.isclose(float(problem.loss(residual)), 0.5 * np.linalg.norm(gap) ** 2)
    gradient = problem.gradient(ours)
    assert np.allclose(gradient.left, gap @ point.right, atol=1e-12)
    assert np.allclose(gradient.right, gap.conj().T @ point.left, atol=1e-12)
    assert np.isclose(problem.observed, mask.mean())


@pytest.mark.covers("S03")
def test_three_ways_to_state_a_completion_problem():
    array, mask = masked()
    rows, cols = np.nonzero(mask)
    order = np.random.default_rng(2).permutation(rows.size)
    rows, cols = rows[order], cols[order]
    sparse = scipy.sparse.coo_array((array[rows, cols], (rows, cols)), shape=SHAPE)
    start = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(3))
    losses = [
        float(p.loss(p.residual(start)))
        for p in (
            lr.MatrixCompletion(rows, cols, array[rows, cols], SHAPE),
            lr.MatrixCompletion.from_array(array),
            lr.MatrixCompletion.from_sparse(sparse),
            lr.MatrixCompletion.from_sparse(sparse.tocsc()),
        )
    ]
    assert np.allclose(losses, losses[0], rtol=1e-14)


def test_explicit_zeros_of_a_sparse_matrix_are_observations():
    sparse = scipy.sparse.coo_array((np.array([0.0, 2.0]), (np.array([0, 1]), np.array([0, 1]))), shape=(2, 2))
    problem = lr.MatrixCompletion.from_sparse(sparse)
    assert problem.data.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_batched_completion_is_a_loop(convert):
    array, mask = masked(batch=(3,))
    rows, cols = np.nonzero(mask)
    problem = lr.MatrixCompletion(*map(convert, (rows, cols, array[:, rows, cols])), SHAPE)
    points = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(4), (3,))
    losses = problem.loss(problem.residual(points.map(convert)))
    gradient = problem.gradient(points.map(convert))
    for k in range(3):
        one = lr.MatrixCompletion.from_array(array[k])
        point = points.map(lambda a, k=k: a[k])
        assert np.isclose(losses[k], one.loss(one.residual(point)))
        assert np.allclose(gradient.right[k], one.gradient(point).right, atol=1e-12)


@pytest.mark.covers("O03")
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("index", [0, 1])
def test_completion_blocks_are_row_by_row_least_squares(convert, index):
    """Each row of a block against ``numpy.linalg.lstsq`` on its observed entries."""
    array, mask = masked(5)
    problem = lr.MatrixCompletion.from_array(convert(array))
    point = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(6))
    ours = point.map(convert)
    gradient = problem.gradient(ours).arrays()[index]
    change = np.asarray(problem.solve_block(ours, gradient, index, 0.0))
    array, mask = (array, mask) if index == 0 else (array.T, mask.T)
    other = point.right if index == 0 else point.left
    for i, seen in enumerate(mask):
        expected = np.linalg.lstsq(other[seen], array[i, seen], rcond=None)[0]
        if seen.sum() >= 2:
            assert np.allclose(point.arrays()[index][i] + change[i], expected, atol=1e-9)


@pytest.mark.covers("O03")
@pytest.mark.parametrize("index", [0, 1])
def test_sensing_blocks_lead_to_least_squares(index):
    """One call gains a factor of ten in the gradient, in the metric of the Gram matrix; repeated, the solution."""
    rng = np.random.default_rng(7)
    stack = rng.standard_normal((80, *SHAPE))
    problem = lr.MatrixSensing(stack, rng.standard_normal(80), SHAPE)
    point = lr.BurerMonteiro.random(SHAPE, 2, rng)
    other = point.arrays()[1 - index]
    metric = np.linalg.inv(other.T @ other)
    design = stack @ point.right if index == 0 else stack.transpose(0, 2, 1) @ point.left
    norms = []
    for _ in range(12):
        gradient = problem.gradient(point).arrays()[index]
        norms.append(np.trace(gradient @ metric @ gradient.T) ** 0.5)
        change = problem.solve_block(point, gradient, index, 0.0)
        point = point.with_array(index, point.arrays()[index] + change)
    assert (np.diff(np.log10(norms)) < -0.95).all()
    expected = np.linalg.lstsq(design.reshape(80, -1), problem.data, rcond=None)[0]
    assert np.allclose(point.arrays()[index].reshape(-1), expected, atol=1e-9)


def implicit_targets(a):
    return [
        scipy.sparse.csr_array(a),
        scipy.sparse.csc_matrix(a),
        aslinearoperator(a),
        pylops.MatrixMult(a),
    ]


@pytest.mark.covers("S02")
@pytest.mark.parametrize("kind", range(4), ids=["csr_array", "csc_matrix", "scipy operator", "pylops operator"])
def test_implicit_targets_equal_the_dense_one(kind):
    rng = np.random.default_rng(8)
    a = rng.standard_normal(SHAPE) * (rng.random(SHAPE) < 0.5)
    dense, implicit = lr.MatrixFactorization(a), lr.MatrixFactorization(implicit_targets(a)[kind])
    point = lr.BurerMonteiro.random(SHAPE, 2, rng)
    assert np.isclose(implicit.loss(implicit.residual(point)), dense.loss(dense.residual(point)))
    for x, y in zip(implicit.gradient(point).arrays(), dense.gradient(point).arrays(), strict=True):
        assert np.allclose(x, y, atol=1e-12)
    for solver in (lr.ScaledGD(), lr.AltScaledGD(), lr.GD(0.05), lr.RiemannianGD(), lr.ALS()):
        start = lr.inits.nystrom_two_sided(dense, lr.BurerMonteiro, 2, seed=0)
        ends = [lr.solve(p, start, solver, max_iter=5, tol=0).point.dense() for p in (implicit, dense)]
        assert np.allclose(ends[0], ends[1], atol=1e-8), solver.name


@pytest.mark.parametrize("kind", range(4), ids=["csr_array", "csc_matrix", "scipy operator", "pylops operator"])
@pytest.mark.parametrize("name", ["nystrom", "nystrom_two_sided", "half_nystrom", "spectral"])
def test_starts_of_implicit_targets_equal_those_of_dense_ones(kind, name):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((SHAPE[0], 2)) @ rng.standard_normal((2, SHAPE[1]))
    init = lr.inits.INITS[name]
    ends = [
        init(lr.MatrixFactorization(t), lr.BurerMonteiro, 2, seed=0).dense() for t in (implicit_targets(a)[kind], a)
    ]
    assert np.allclose(ends[0], ends[1], atol=1e-8)


@pytest.mark.parametrize("make", [aslinearoperator, pylops.MatrixMult], ids=["scipy", "pylops"])
def test_the_norm_of_an_operator_is_found_or_taken(make):
    a = np.random.default_rng(10).standard_normal((5, 300))
    assert np.isclose(lr.MatrixFactorization(make(a)).scale, np.linalg.norm(a) ** 2)
    assert lr.MatrixFactorization(make(a), square=4.0).scale == 4.0


@pytest.mark.parametrize("symmetric", [False, True])
def test_low_rank_instances_have_the_stated_spectrum(symmetric):
    truth = lr.synthetic.low_rank(20, 20, 4, condition_number=8.0, seed=0, symmetric=symmetric)
    s = np.linalg.svd(truth.dense(), compute_uv=False)
    assert np.allclose(s[:4], np.linspace(1, 1 / 8, 4))
    assert s[4:].max() < 1e-14
    assert lr.metrics.balancedness(truth) < 1e-14
    assert not symmetric or np.linalg.eigvalsh(truth.dense()).min() > -1e-14


@pytest.mark.parametrize("name", ["factorization", "sensing", "completion"])
def test_synthetic_problems_carry_their_truth_and_noise(name):
    make = getattr(lr.synthetic, name)
    clean, noisy = make(40, 30, rank=2, seed=0), make(40, 30, rank=2, noise=0.1, seed=0)
    assert np.allclose(clean.residual(clean.truth), 0, atol=1e-12)
    relative = np.linalg.norm(noisy.residual(noisy.truth)) / np.linalg.norm(clean.data)
    assert 0.08 < relative < 0.12
    assert np.allclose(clean.truth.dense(), noisy.truth.dense())
    assert np.array_equal(make(40, 30, rank=2, seed=0).data, clean.data)
    assert not np.array_equal(make(40, 30, rank=2, seed=1).data, clean.data)


@pytest.mark.parametrize("ensemble", ["gaussian", "rank-one", "subsampled-orthogonal"])
def test_synthetic_ensembles_keep_the_size_of_a_matrix_on_average(ensemble):
    problem = lr.synthetic.sensing(16, 12, rank=2, measurements=180, seed=0, ensemble=ensemble)
    ratio = np.linalg.norm(problem.data) / np.linalg.norm(problem.truth.dense())
    assert 0.7 < ratio < 1.4
    assert problem.operator.count == 180


@pytest.mark.parametrize("observed", [0.001, 0.1, 0.9, 1.0])
def test_sampled_positions_are_distinct_and_as_many_as_asked(observed):
    from lowrank_sp.problems.sampling import sample_positions

    count = max(1, round(observed * 6000))
    found = sample_positions(np.random.default_rng(0), 6000, count)
    assert len(set(found.tolist())) == count
    assert found.min() >= 0
    assert found.max() < 6000
