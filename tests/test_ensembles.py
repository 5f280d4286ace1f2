"""Measurement maps: dot tests, agreement with explicit matrices, linear operators in and out."""

from typing import Any

import numpy as np
import pylops
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import lowrank_sp as lr
from lowrank_sp.problems.ensembles import WrappedOperator, as_ensemble

M, N, COUNT = 4, 5, 12


def dense(rng):
    return lr.DenseEnsemble(rng.standard_normal((COUNT, M, N)))


def complex_dense(rng):
    return lr.DenseEnsemble(rng.standard_normal((COUNT, M, N)) + 1j * rng.standard_normal((COUNT, M, N)))


def rank_one(rng):
    return lr.RankOneEnsemble(rng.standard_normal((COUNT, M)), rng.standard_normal((COUNT, N)))


def orthogonal(rng):
    return lr.SubsampledOrthogonal(rng.choice((-1.0, 1.0), M * N), rng.permutation(M * N)[:COUNT], (M, N))


def wrapped(rng):
    return WrappedOperator(aslinearoperator(rng.standard_normal((COUNT, M * N))), (M, N))


ENSEMBLES = pytest.mark.parametrize(
    "make", [dense, complex_dense, rank_one, orthogonal, wrapped], ids=lambda f: f.__name__
)


def explicit(ensemble):
    """The matrix of the map on vec(W), from its values at unit matrices."""
    dtype = ensemble.like().dtype
    columns = []
    for k in range(M * N):
        unit = np.zeros(M * N, dtype)
        unit[k] = 1
        left, right = unit.reshape(M, N), np.eye(N, dtype=dtype)
        columns.append(ensemble.measure([[lr.BurerMonteiro(left, right)]])[0])
    return np.stack(columns, -1)


def complexify(rng, shape, ensemble):
    z = rng.standard_normal(shape)
    return z + 1j * rng.standard_normal(shape) if ensemble.like().dtype.kind == "c" else z


@ENSEMBLES
def test_dot_test_and_adjoint_matrix(make):
    rng = np.random.default_rng(0)
    ensemble = make(rng)
    matrix = explicit(ensemble)
    y = complexify(rng, COUNT, ensemble)
    point = lr.BurerMonteiro(complexify(rng, (M, 2), ensemble), complexify(rng, (N, 2), ensemble))
    image = ensemble.measure([[point]])[0]
    assert np.allclose(image, matrix @ point.dense().reshape(-1), atol=1e-12)
    back = ensemble.adjoint(y) @ np.eye(N)
    assert np.allclose(back.reshape(-1), matrix.conj().T @ y, atol=1e-12)
    assert np.isclose(np.vdot(image, y).real, np.vdot(point.dense(), back).real)


@ENSEMBLES
def test_sums_groups_and_batches(make):
    rng = np.random.default_rng(1)
    ensemble = make(rng)
    matrix = explicit(ensemble)
    p, q = (lr.BurerMonteiro(rng.standard_normal((3, M, 2)), rng.standard_normal((3, N, 2))) for _ in range(2))
    first, second = ensemble.measure([[p, q], [q]])
    assert np.allclose(first, (p.dense() + q.dense()).reshape(3, -1) @ matrix.T, atol=1e-12)
    assert np.allclose(second, q.dense().reshape(3, -1) @ matrix.T, atol=1e-12)
    back = ensemble.adjoint(first) @ np.eye(N)
    assert np.allclose(back.reshape(3, -1), first @ matrix.conj(), atol=1e-12)


@ENSEMBLES
def test_linear_operator_out_and_in_again(make):
    rng = np.random.default_rng(2)
    ensemble = make(rng)
    operator = ensemble.as_linear_operator()
    matrix = explicit(ensemble)
    assert isinstance(operator, LinearOperator)
    assert np.allclose(operator @ np.eye(M * N), matrix, atol=1e-12)
    assert np.allclose(operator.adjoint() @ np.eye(COUNT), matrix.conj().T, atol=1e-12)
    again = as_ensemble(operator, (M, N))
    assert np.allclose(explicit(again), matrix, atol=1e-12)


@pytest.mark.parametrize("make", [dense, rank_one, orthogonal], ids=lambda f: f.__name__)
def test_torch_equals_numpy(make):
    ensemble = make(np.random.default_rng(3))
    rng = np.random.default_rng(4)
    point = lr.BurerMonteiro.random((M, N), 2, rng, (2,))
    arrays = {k: torch.as_tensor(v) for k, v in vars(ensemble).items() if isinstance(v, np.ndarray)}
    if make is dense:
        twin: Any = lr.DenseEnsemble(arrays["rows"].reshape(COUNT, M, N))
    elif make is rank_one:
        twin = lr.RankOneEnsemble(arrays["left"], arrays["right"])
    else:
        twin = lr.SubsampledOrthogonal(arrays["signs"], arrays["kept"], (M, N))
    y = ensemble.measure([[point]])[0]
    z = twin.measure([[point.map(torch.as_tensor)]])[0]
    assert np.allclose(y, z.numpy(), atol=1e-12)
    g, h = ensemble.adjoint(y) @ np.eye(N), twin.adjoint(z) @ torch.eye(N, dtype=torch.float64)
    assert np.allclose(g, h.numpy(), atol=1e-12)


def test_a_pylops_operator_measures():
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((COUNT, M * N))
    operator = pylops.MatrixMult(matrix) @ pylops.Diagonal(np.arange(1.0, M * N + 1))
    truth = lr.BurerMonteiro.random((M, N), 1, rng)
    values = matrix @ (np.arange(1.0, M * N + 1) * truth.dense().reshape(-1))
    problem = lr.MatrixSensing(operator, values, (M, N))
    assert np.allclose(problem.residual(truth), 0, atol=1e-12)
    pylops.utils.dottest(operator, COUNT, M * N, rtol=1e-10)
    gradient = problem.gradient(lr.BurerMonteiro.random((M, N), 1, rng))
    assert np.isfinite(gradient.left).all()


@pytest.mark.parametrize("shape", [(4, 5), (3, 5), (2, 1), (1, 1)], ids=str)
def test_all_coefficients_of_the_subsampled_map_are_orthogonal(shape):
    """Even and odd sizes: with everything kept the map is an orthogonal matrix."""
    rng = np.random.default_rng(6)
    size = shape[0] * shape[1]
    full = lr.SubsampledOrthogonal(rng.choice((-1.0, 1.0), size), np.arange(size), shape)
    matrix = np.array(full.as_linear_operator() @ np.eye(size))
    assert np.allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)


def test_the_stored_and_flattened_forms_of_a_dense_operator_agree():
    rng = np.random.default_rng(7)
    stack = rng.standard_normal((COUNT, M, N))
    y = rng.standard_normal(COUNT)
    start = lr.BurerMonteiro.random((M, N), 2, rng)
    operators = (
        stack,
        stack.reshape(COUNT, -1),
        aslinearoperator(stack.reshape(COUNT, -1)),
        lr.DenseEnsemble(stack),
    )
    losses = [float(p.loss(p.residual(start))) for p in (lr.MatrixSensing(a, y, (M, N)) for a in operators)]
    expected = 0.5 * np.linalg.norm(np.tensordot(stack, start.dense(), 2) - y) ** 2
    assert np.allclose(losses, expected)


@pytest.mark.covers("T36")
def test_many_gaussian_measurements_approach_the_factorization_loss():
    """The population limit: ``||A(W)||^2`` concentrates around ``||W||_F^2`` as the count grows."""
    point = lr.BurerMonteiro.random((M, N), 2, np.random.default_rng(8))
    size = np.linalg.norm(point.dense()) ** 2
    gaps = []
    for count in (100, 10000):
        ensemble = lr.synthetic.gaussian_ensemble(count, M, N, np.random.default_rng(9))
        gaps.append(abs(np.linalg.norm(ensemble.measure([[point]])[0]) ** 2 / size - 1))
    assert gaps[0] < 0.5
    assert gaps[1] < 0.05
