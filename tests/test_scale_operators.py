"""Linear operators of scipy and PyLops as measurement maps, and ours as theirs."""

import numpy as np
import pylops
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator, lsqr, svds

import lowrank_sp as lr
from lowrank_sp.operators import as_linear_operator

SHAPE = (7, 6)


def dense_of(operator):
    """All columns of an operator."""
    return np.stack([operator.matvec(e) for e in np.eye(operator.shape[1])], axis=1)


def check_operator(operator, expected):
    """An operator against a matrix: products, blocks of them, adjoints, type, and scipy's own dot test."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((expected.shape[1], 3)), rng.standard_normal((expected.shape[0], 2))
    assert isinstance(operator, LinearOperator)
    assert operator.shape == expected.shape
    assert np.dtype(operator.dtype).kind == expected.dtype.kind
    assert np.allclose(operator @ x, expected @ x)
    assert np.allclose(operator.matvec(x[:, 0]), expected @ x[:, 0])
    assert np.allclose(operator.H @ y, expected.conj().T @ y)
    assert np.allclose(operator.rmatvec(y[:, 0]), expected.conj().T @ y[:, 0])


def complex_stack(seed=0, count=20):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *SHAPE)) + 1j * rng.standard_normal((count, *SHAPE))


@pytest.mark.parametrize("name", sorted(lr.FORMS))
def test_points_are_operators(name):
    point = lr.FORMS[name].random((6, 6), 2, np.random.default_rng(0))
    check_operator(as_linear_operator(point), point.dense())


@pytest.mark.parametrize("form", [lr.BurerMonteiro, lr.SymmetricBurerMonteiro, lr.Core, lr.Hadamard, lr.Kronecker])
def test_complex_points_are_operators(form):
    a, b = (form.random((6, 6), 2, np.random.default_rng(k)) for k in range(2))
    point = a.map(lambda x, y: x + 1j * y, b)
    check_operator(as_linear_operator(point), point.dense())


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_operators(weighted):
    rng = np.random.default_rng(1)
    mask = rng.random(SHAPE) < 0.6
    mask[0] = mask[:, 0] = True
    rows, cols = mask.nonzero()
    weights = rng.uniform(1, 2, rows.size) if weighted else None
    values = rng.standard_normal(rows.size) + 1j * rng.standard_normal(rows.size)
    problem = lr.MatrixCompletion(rows, cols, values, SHAPE, weights=weights)
    gradient = problem.backproject(problem.data)
    expected = np.zeros(SHAPE, complex)
    expected[rows, cols] = values * (1 if weights is None else weights)
    check_operator(as_linear_operator(gradient), expected)
    check_operator(as_linear_operator(gradient.adjoint()), expected.conj().T)


def test_residuals_of_sparse_factorizations_are_operators():
    a = np.random.default_rng(2).standard_normal(SHAPE)
    problem = lr.MatrixFactorization(aslinearoperator(a))
    point = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(3))
    check_operator(as_linear_operator(problem.residual(point)), point.dense() - a)


def ensembles():
    rng = np.random.default_rng(4)
    yield "dense", lr.DenseEnsemble(complex_stack().real)
    yield "complex dense", lr.DenseEnsemble(complex_stack())
    yield "rank one", lr.RankOneEnsemble(rng.standard_normal((20, 7)), rng.standard_normal((20, 6)))
    yield "orthogonal", lr.SubsampledOrthogonal(rng.choice((-1.0, 1.0), 42), np.arange(20), SHAPE)
    yield "quadratic", lr.QuadraticEnsemble(rng.standard_normal((20, 6)))


@pytest.mark.parametrize("ensemble", [e for _, e in ensembles()], ids=[n for n, _ in ensembles()])
def test_measurement_maps_are_operators_and_come_back(ensemble):
    operator = as_linear_operator(ensemble)
    m, n = ensemble.shape
    expected = dense_of(operator)
    w = np.random.default_rng(5).standard_normal((m, n))
    assert np.allclose(expected @ w.ravel(), ensemble.measure([[lr.BurerMonteiro(w, np.eye(n))]])[0])
    check_operator(operator, expected)
    again = lr.MatrixSensing(operator, np.ones(20, expected.dtype), (m, n))
    direct = lr.MatrixSensing(ensemble, np.ones(20, expected.dtype), (m, n))
    point = lr.BurerMonteiro.random((m, n), 2, np.random.default_rng(6)).map(lambda a: a.astype(expected.dtype))
    for a, b in zip(again.gradient(point).arrays(), direct.gradient(point).arrays(), strict=True):
        assert np.allclose(a, b)


def pylops_matrix(a):
    return pylops.MatrixMult(a, dtype=a.dtype)


@pytest.mark.parametrize("wrap", [aslinearoperator, pylops_matrix], ids=["scipy", "pylops"])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_operators_measure_as_stacks_do(kind, wrap):
    """``<M_i, W> = sum conj(M_i) W``: an operator with the rows ``conj(vec(M_i))``."""
    stack = complex_stack(count=60)
    stack = stack if kind == "complex" else stack.real
    truth = lr.synthetic.low_rank(*SHAPE, 1, seed=0, dtype=stack.dtype)
    rows = stack.reshape(60, -1).conj()
    y = rows @ truth.dense().ravel()
    operator = wrap(rows)
    problems = [lr.MatrixSensing(o, y, SHAPE) for o in (operator, stack)]
    gradients = [p.gradient(truth.map(lambda a: a + 0.1)) for p in problems]
    assert all(np.allclose(a, b) for a, b in zip(*(g.arrays() for g in gradients), strict=True))
    found = lr.sense(operator, y, SHAPE, rank=1)
    assert np.allclose(found.point.dense(), truth.dense(), atol=1e-6)


def test_theirs_use_ours():
    """scipy's SVD of a point, a PyLops composition with it, and least squares with a measurement map of ours."""
    point = lr.BurerMonteiro.random((30, 20), 3, np.random.default_rng(7))
    found = np.sort(svds(as_linear_operator(point), k=3, return_singular_vectors=False))
    assert np.allclose(found, np.linalg.svd(point.dense(), compute_uv=False)[2::-1])
    composed = pylops.Diagonal(np.arange(30.0)) @ pylops.LinearOperator(as_linear_operator(point))
    x = np.ones(20)
    assert np.allclose(composed @ x, np.arange(30.0) * (point.dense() @ x))
    ensemble = lr.DenseEnsemble(np.random.default_rng(8).standard_normal((60, *SHAPE)))
    w = np.random.default_rng(9).standard_normal(42)
    operator = as_linear_operator(ensemble)
    assert np.allclose(lsqr(operator, operator @ w, atol=1e-14, btol=1e-14)[0], w, atol=1e-8)


BAD = {
    "a batch of points": (lr.BurerMonteiro(np.ones((2, 4, 1)), np.ones((2, 3, 1))), ValueError, r"batch axes \(2,\)"),
    "torch": (lr.BurerMonteiro(torch.ones(4, 1), torch.ones(3, 1)), TypeError, "NumPy arrays"),
    "a tensor": (torch.ones(4, 3), TypeError, "matrix must be a point"),
    "an array": (np.ones((4, 3)), TypeError, "matrix must be a point"),
    "text": ("matrix", TypeError, "matrix must be a point"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_operator(case):
    matrix, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        as_linear_operator(matrix)


def test_batches_and_tensors_of_gradients_are_refused():
    rows, cols = np.nonzero(np.ones((3, 2)))
    batch = lr.MatrixCompletion(rows, cols, np.ones((4, 6)), (3, 2))
    with pytest.raises(ValueError, match=r"batch axes \(4,\)"):
        as_linear_operator(batch.backproject(batch.data))
    tensors = lr.MatrixCompletion(*map(torch.as_tensor, (rows, cols, np.ones(6))), (3, 2))
    with pytest.raises(TypeError, match="NumPy arrays"):
        as_linear_operator(tensors.backproject(tensors.data))
