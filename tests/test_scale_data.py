"""Completion from any container of entries, with weights, and in single precision from end to end."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_sp as lr

SHAPE = (14, 11)


def entries(seed=0, dtype=float, shape=SHAPE):
    """Positions and values of a matrix of rank two, every row and column observed."""
    rng = np.random.default_rng(seed)
    truth = (rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))).astype(dtype)
    mask = rng.random(shape) < 0.7
    mask[0] = mask[:, 0] = True
    rows, cols = mask.nonzero()
    order = rng.permutation(rows.size)
    return rows[order], cols[order], truth[rows[order], cols[order]], truth


def scipy_of(kind):
    return lambda r, c, v: getattr(scipy.sparse, kind)(scipy.sparse.coo_array((v, (r, c)), shape=SHAPE))


def torch_coo(r, c, v):
    return torch.sparse_coo_tensor(torch.as_tensor(np.stack((r, c))), torch.as_tensor(v), SHAPE, check_invariants=True)


def torch_csr(r, c, v):
    a = scipy.sparse.csr_array(scipy.sparse.coo_array((v, (r, c)), shape=SHAPE))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*beta state", UserWarning)
        return torch.sparse_csr_tensor(
            *(torch.as_tensor(x) for x in (a.indptr, a.indices, a.data)), SHAPE, check_invariants=True
        )


CONTAINERS = {
    **{k: scipy_of(k) for k in ("coo_array", "csr_array", "csc_array", "coo_matrix", "csr_matrix", "csc_matrix")},
    "torch coo": torch_coo,
    "torch coalesced coo": lambda r, c, v: torch_coo(r, c, v).coalesce(),
    "torch csr": torch_csr,
}


@pytest.mark.covers("S03")
@pytest.mark.parametrize("dtype", [float, np.float32])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(kind, dtype):
    rows, cols, values, truth = entries(dtype=dtype)
    plain = lr.MatrixCompletion(rows, cols, values, SHAPE)
    problem = lr.MatrixCompletion.of(CONTAINERS[kind](rows, cols, values))
    assert np.array_equal(problem.pattern.rows, plain.pattern.rows)
    assert np.array_equal(problem.pattern.cols, plain.pattern.cols)
    assert np.array_equal(problem.data, plain.data)
    assert isinstance(problem.data, torch.Tensor) == ("torch" in kind)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 2), lr.ALS())
    assert result.success
    assert np.allclose(result.point.dense(), truth, atol=1e-7 if dtype is float else 1e-2)


def test_entries_are_sorted_once_and_never_shared():
    rows, cols, values, _ = entries()
    order = np.lexsort((cols, rows))
    for perm in (np.arange(rows.size), order):
        given = values[perm].copy()
        problem = lr.MatrixCompletion(rows[perm], cols[perm], given, SHAPE)
        assert np.array_equal(problem.values, values[order])
        given[:] = 0
        assert problem.values.any()
        assert problem.pattern.rows.dtype == np.int32


@pytest.mark.parametrize("index", [np.int16, np.uint32, np.int64])
def test_types_of_indices(index):
    rows, cols, values, _ = entries()
    problem = lr.MatrixCompletion(rows.astype(index), cols.astype(index), values, SHAPE)
    assert np.array_equal(problem.data, lr.MatrixCompletion(rows, cols, values, SHAPE).data)


# weights ------------------------------------------------------------------------------------------------


def weighted(seed=0, convert=np.asarray, rank=2, noise=0.3):
    rows, cols, values, _ = entries(seed)
    rng = np.random.default_rng(seed + 1)
    values, weights = values + noise * rng.standard_normal(values.size), rng.uniform(0.1, 4.0, values.size)
    problem = lr.MatrixCompletion(*map(convert, (rows, cols, values)), SHAPE, weights=convert(weights))
    dense, mask = np.zeros(SHAPE), np.zeros(SHAPE)
    dense[rows, cols], mask[rows, cols] = values, weights
    return problem, dense, mask


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_the_weighted_loss_and_its_gradient(convert):
    problem, dense, weights = weighted(convert=convert)
    point = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(3))
    x, y = (torch.tensor(a, requires_grad=True) for a in point.arrays())
    loss = 0.5 * (torch.as_tensor(weights) * (x @ y.T - torch.as_tensor(dense)) ** 2).sum()
    loss.backward()
    ours = point.map(convert)
    assert np.isclose(float(problem.loss(problem.residual(ours))), float(loss.detach()))
    gradient = problem.gradient(ours)
    assert np.allclose(gradient.left, x.grad)
    assert np.allclose(gradient.right, y.grad)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("index", [0, 1])
def test_weighted_blocks_are_weighted_least_squares(convert, index):
    problem, dense, weights = weighted(convert=convert)
    point = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(4))
    change, _ = problem.sweep_block(point.map(convert), index, 0.0)
    moved = point.arrays()[index] + np.asarray(change)
    dense, weights = (dense, weights) if index == 0 else (dense.T, weights.T)
    other = point.arrays()[1 - index]
    for i, w in enumerate(weights):
        if (w > 0).sum() > 2:
            expected = np.linalg.lstsq(w[:, None] ** 0.5 * other, w**0.5 * dense[i], rcond=None)[0]
            assert np.allclose(moved[i], expected)


@pytest.mark.parametrize(
    "solver",
    [
        lr.ALS(),
        lr.GD(),
        lr.ScaledGD(),
        lr.AltScaledGD(),
        lr.ScaledCG(),
        lr.RiemannianGD(),
        lr.RiemannianCG(),
        lr.PrecGD(),
    ],
    ids=lambda s: s.name,
)
def test_every_solver_finds_the_weighted_optimum(solver):
    """On data of full rank the best loss is told by scipy; noise makes the weighted and the plain optimum differ."""
    from scipy.optimize import least_squares

    problem, dense, weights = weighted(noise=0.05)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    root = weights**0.5

    def gap(z):
        return (root * (z[: 2 * SHAPE[0]].reshape(-1, 2) @ z[2 * SHAPE[0] :].reshape(-1, 2).T - dense)).ravel()

    reference = least_squares(
        gap, np.concatenate([a.ravel() for a in start.arrays()]), xtol=1e-15, ftol=1e-15, gtol=1e-12
    )
    result = lr.solve(problem, start, solver, max_iter=5000, tol=1e-12)
    assert np.isclose(result.fun, reference.cost, rtol=1e-6)


def test_equal_weights_change_the_scale_of_the_loss_alone():
    rows, cols, values, _ = entries()
    plain = lr.MatrixCompletion(rows, cols, values, SHAPE)
    double = lr.MatrixCompletion(rows, cols, values, SHAPE, weights=np.full(values.size, 4.0))
    assert np.allclose(double.surrogate().values, plain.surrogate().values)
    ends = []
    for problem in (plain, double):
        start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
        ends.append(lr.solve(problem, start, lr.ScaledCG(), max_iter=7, tol=0))
    assert np.isclose(ends[1].fun, 4 * ends[0].fun, rtol=1e-6)
    assert np.allclose(ends[0].point.dense(), ends[1].point.dense(), atol=1e-10)
    assert plain.nonexpansive
    assert not double.nonexpansive


def test_weights_from_arrays_and_sparse_matrices():
    rows, cols, values, _ = entries()
    weights = np.random.default_rng(5).uniform(1, 2, SHAPE)
    expected = lr.MatrixCompletion(rows, cols, values, SHAPE, weights=weights[rows, cols])
    array = np.full(SHAPE, np.nan)
    array[rows, cols] = values
    sparse = scipy.sparse.coo_array((values, (rows, cols)), shape=SHAPE)
    for problem in (
        lr.MatrixCompletion.from_array(array, weights=weights),
        lr.MatrixCompletion.from_sparse(sparse, weights=weights[rows, cols]),
    ):
        assert np.array_equal(problem.data, expected.data)
        assert np.allclose(problem.values, expected.values)


def test_inverse_variances_help():
    """With noise of very different sizes the weights of the synthetic instance at least halve the error."""
    problem = lr.synthetic.completion(80, 60, rank=2, observed=0.5, noise=0.2, noise_spread=100.0, seed=0)
    plain = lr.MatrixCompletion(
        problem.pattern.rows, problem.pattern.cols, problem.values, problem.shape, problem.truth
    )
    errors = [float(p.error(lr.complete(p, rank=2).point)) for p in (problem, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_noise_of_the_synthetic_instance():
    """Weighted residuals are standardized, and the spread is that asked for."""
    problem = lr.synthetic.completion(200, 150, rank=2, observed=0.5, noise=0.1, noise_spread=10.0, seed=1)
    gap = problem.residual(problem.truth)
    assert 0.97 < np.std(gap) < 1.03
    deviations = 1 / problem.roots
    assert 9 < deviations.max() / deviations.min() <= 10
    relative = np.linalg.norm(gap * deviations) / np.linalg.norm(
        problem.truth.entries(problem.pattern.rows, problem.pattern.cols)
    )
    assert 0.09 < relative < 0.11
    alike = lr.synthetic.completion(20, 15, rank=2, noise=0.1, seed=1)
    assert alike.roots is None


# single precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", ["ALS", "ScaledGD", "ScaledCG", "AltScaledGD", "RiemannianCG", "PrecGD", "GD"])
def test_single_precision_stays(name, convert):
    rows, cols, values, truth = entries(dtype=np.float32, shape=(40, 30))
    problem = lr.MatrixCompletion(*map(convert, (rows, cols, values)), (40, 30))
    kind = problem.data.dtype
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    assert {a.dtype for a in start.arrays()} == {kind}
    assert problem.residual(start).dtype == kind
    result = lr.solve(problem, start, lr.SOLVERS[name](), max_iter=300)
    assert {a.dtype for a in result.point.arrays()} == {kind}
    assert np.linalg.norm(np.asarray(result.point.dense()) - truth) < 1e-3 * np.linalg.norm(truth)


@pytest.mark.parametrize(("noise", "spread"), [(0.0, 1.0), (0.1, 1.0), (0.1, 5.0)])
def test_synthetic_instances_in_single_precision(noise, spread):
    problem = lr.synthetic.completion(
        20, 16, rank=2, observed=0.8, noise=noise, noise_spread=spread, seed=0, dtype=np.float32
    )
    assert problem.data.dtype == problem.values.dtype == np.float32
    assert lr.complete(problem, rank=2).point.left.dtype == np.float32


def test_half_precision_is_raised_to_single():
    rows, cols, values, _ = entries(dtype=np.float16)
    assert lr.MatrixCompletion(rows, cols, values, SHAPE).data.dtype == np.float32


# bad input ------------------------------------------------------------------------------------------------

R, C, V, _ = entries()
BAD = {
    "negative weights": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=-np.ones(R.size)), ValueError, "positive"),
    "zero weights": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=0 * V), ValueError, "leave out the entries"),
    "NaN weights": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=V * np.nan), ValueError, "weights holds"),
    "short weights": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=np.ones(3)), ValueError, "weights must have"),
    "one weight": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=2.0), ValueError, "weights must have"),
    "textual weights": (lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=["a"]), TypeError, "weights must be"),
    "weights in torch": (
        lambda: lr.MatrixCompletion(R, C, V, SHAPE, weights=torch.ones(R.size)),
        TypeError,
        "share a library",
    ),
    "weights of another shape": (
        lambda: lr.MatrixCompletion.from_array(np.ones(SHAPE), weights=np.ones((3, 3))),
        ValueError,
        r"weights must have shape \(14, 11\)",
    ),
    "dense in from_sparse": (lambda: lr.MatrixCompletion.from_sparse(np.ones(SHAPE)), TypeError, "matrix must be a"),
    "dense tensor in from_sparse": (
        lambda: lr.MatrixCompletion.from_sparse(torch.ones(SHAPE)),
        TypeError,
        "torch sparse tensor, got Tensor",
    ),
    "sparse tensor of three axes": (
        lambda: lr.MatrixCompletion.of(torch.ones(2, 3, 4).to_sparse()),
        ValueError,
        "two axes",
    ),
    "empty sparse tensor": (lambda: lr.MatrixCompletion.of(torch.zeros(2, 3).to_sparse()), ValueError, "empty"),
    "repeated positions in a tensor": (
        lambda: lr.MatrixCompletion.of(torch_coo(np.array([1, 1]), np.array([2, 2]), np.ones(2))),
        ValueError,
        r"repeat 1 positions, the first is \(1, 2\)",
    ),
    "no matrix": (lambda: lr.MatrixCompletion.of("matrix"), TypeError, "array must be floating"),
    "spread below one": (
        lambda: lr.synthetic.completion(9, 8, rank=1, noise=0.1, noise_spread=0.5),
        ValueError,
        "noise_spread must be",
    ),
    "spread without noise": (
        lambda: lr.synthetic.completion(9, 8, rank=1, noise_spread=5.0),
        ValueError,
        "needs noise",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_entries(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
