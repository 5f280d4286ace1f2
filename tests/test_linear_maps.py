"""Operators of users: sparse matrices, dot tests, and errors that say what an operator is."""

import numpy as np
import pylops
import pytest
import scipy.sparse as sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import lowrank_sp as lr

M, N, COUNT = 6, 5, 28
SHAPE = (M, N)


def gaussian(seed=0):
    return np.random.default_rng(seed).standard_normal((COUNT, M * N))


def problem(operator, dtype=float):
    return lr.MatrixSensing(operator, np.ones(COUNT, dtype), SHAPE)


@pytest.mark.parametrize("kind", ["csr_array", "coo_matrix", "dok_array"])
def test_sparse_matrices_measure(kind):
    dense = gaussian() * (np.random.default_rng(1).random((COUNT, M * N)) < 0.3)
    point = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(2))
    operator = getattr(sparse, kind)(dense)
    assert np.allclose(problem(operator).residual(point), problem(dense).residual(point))
    tensor = lr.CP.random((3, 2, 5), 2, np.random.default_rng(3))
    there, here = (lr.TensorSensing(a, np.ones(COUNT), (3, 2, 5)) for a in (operator, dense))
    assert np.allclose(there.gradient(tensor).arrays()[0], here.gradient(tensor).arrays()[0])


def test_operators_with_an_adjoint_pass_without_a_warning():
    complex_ = gaussian() + 1j * gaussian(1)
    problem(aslinearoperator(complex_), complex)
    problem(pylops.MatrixMult(gaussian().astype("float32"), dtype="float32"), "float32")
    kept = np.arange(COUNT)
    spectrum = pylops.signalprocessing.FFT2D(SHAPE, dtype="complex128")
    problem(pylops.Restriction(M * N, kept, dtype="complex128") @ spectrum, complex)
    # Linear over the real numbers only.
    problem(pylops.Real(COUNT, dtype="complex128") @ pylops.MatrixMult(complex_, dtype="complex128"), complex)


@pytest.mark.parametrize("backward", [lambda a: -a.T, lambda a: a.T * 1.5, lambda a: a.conj().T[::-1]])
def test_a_wrong_adjoint_is_a_warning(backward):
    matrix = gaussian()
    operator = LinearOperator(matrix.shape, matvec=matrix.dot, rmatvec=backward(matrix).dot, dtype=float)
    with pytest.warns(UserWarning, match="operator and its adjoint do not fit"):
        problem(operator)
    with pytest.warns(UserWarning, match="operator and its adjoint do not fit"):
        lr.TensorSensing(operator, np.ones(COUNT), (3, 2, 5))


def test_a_forgotten_conjugate_is_a_warning():
    matrix = gaussian() + 1j * gaussian(1)
    operator = LinearOperator(matrix.shape, matvec=matrix.dot, rmatvec=matrix.T.dot, dtype=complex)
    with pytest.warns(UserWarning, match="operator and its adjoint do not fit"):
        problem(operator, complex)


def test_single_precision_stays():
    single = problem(aslinearoperator(gaussian().astype("float32")), "float32")
    assert single.like().dtype == np.float32
    assert lr.inits.gaussian(single, lr.BurerMonteiro, 2, seed=0).left.dtype == np.float32


BAD = {
    "a function": (lambda w: w, TypeError, "operator must be an array .* got function; .* makes one of matvec and"),
    "no adjoint": (LinearOperator((COUNT, M * N), matvec=gaussian().dot, dtype=float), TypeError, "has no adjoint"),
    "NaN in a sparse matrix": (sparse.csr_array(gaussian() * np.nan), ValueError, "operator holds 840 NaN"),
    "too few columns": (sparse.csr_array(gaussian()[:, 1:]), ValueError, "vectors of length 29"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_operators(case):
    operator, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        problem(operator)
