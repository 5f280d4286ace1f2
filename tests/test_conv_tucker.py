"""Kernels as Tucker tensors: written out, against tensorly, counted, and as matrices of kernels of size one."""

import numpy as np
import pytest

from lowrank_sp.parameterizations import ConvTucker, Core
from lowrank_sp.testing import check_parameterization

RNG = np.random.default_rng


@pytest.mark.covers("P30")
def test_is_tensorlys_tucker_tensor_with_three_modes_as_columns():
    tensorly = pytest.importorskip("tensorly")
    tensorly.set_backend("numpy")
    point = ConvTucker.of(3, 2).random((6, 30), 2, RNG(0))
    core, *factors = point.arrays()
    expected = tensorly.tucker_to_tensor((core, factors))
    assert expected.shape == (6, 5, 3, 2)
    assert np.allclose(point.dense(), expected.reshape(6, 30))
    written = np.einsum("abcd,oa,ib,yc,xd->oiyx", core, *factors)
    assert np.allclose(point.dense(), written.reshape(6, 30))


@pytest.mark.covers("P30")
def test_kernels_of_size_one_are_matrices_with_a_core():
    point = ConvTucker.random((6, 5), 2, RNG(1))
    scale = (point.rows * point.cols).item()
    assert np.allclose(point.dense(), scale * Core(point.left, point.core[..., 0, 0], point.inputs).dense())


@pytest.mark.covers("P30")
def test_parameter_count():
    m, n, r = 64, 32, 8
    assert ConvTucker.of(3, 3).parameter_count((m, n * 9), r) == (m + n) * r + 3 * 3 + 3 * 3 + r * r * 3 * 3
    assert ConvTucker.of(5, 1).parameter_count((m, n * 5), 2) == (m + n) * 2 + 5 * 2 + 1 + 2 * 2 * 2


@pytest.mark.parametrize("form", [ConvTucker.of(3, 2), ConvTucker.of(1, 3)], ids=lambda f: f.__name__)
def test_contract_of_kernels(form):
    for library in ("numpy", "torch"):
        check_parameterization(form, (5, 18), 2, library=library, batch=(2,))
    check_parameterization(form, (5, 18), 3, dtype="complex128")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvTucker.of(0, 3), "height must be a positive integer, got 0"),
        (lambda: ConvTucker.of(3, 1.5), "width must be a positive integer, got 1.5"),
        (lambda: ConvTucker.of(3, 3).shapes((4, 10), 1), "10 columns holds no kernels of 3 x 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
