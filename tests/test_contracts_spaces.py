"""Every registered space keeps the contract of `lowrank_sp.testing.check_space`."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.spaces import SPACES, Flat, Stiefel
from lowrank_sp.testing import check_space


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_contract(space, library, batch, dtype):
    check_space(space, library=library, batch=batch, dtype=dtype)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_contract_of_square_and_single_column_points(space):
    check_space(space, (4, 4))
    check_space(space, (5, 1))


@pytest.mark.covers("T35", "O11")
@pytest.mark.parametrize("space", [lr.spaces.STIEFEL, lr.spaces.STIEFEL_QR], ids=["polar", "qr"])
def test_many_retractions_stay_orthonormal_to_rounding(space):
    rng = np.random.default_rng(0)
    x = space.random(rng, (20, 4))
    for _ in range(200):
        x = space.retract(x, rng.standard_normal(x.shape), 0.5)
    assert np.abs(x.T @ x - np.eye(4)).max() < 1e-13


@pytest.mark.covers("T35")
def test_polar_retraction_is_the_published_formula():
    """``(x - lr e)(I + lr^2 e^T e)^{-1/2}`` for a tangent ``e``, by scipy's fractional matrix power."""
    from scipy.linalg import fractional_matrix_power

    rng = np.random.default_rng(1)
    x = lr.spaces.STIEFEL.random(rng, (8, 3))
    e = lr.spaces.STIEFEL.project(x, rng.standard_normal(x.shape))
    expected = (x - 0.7 * e) @ fractional_matrix_power(np.eye(3) + 0.49 * e.T @ e, -0.5)
    assert np.allclose(lr.spaces.STIEFEL.retract(x, e, 0.7), expected, atol=1e-13)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 2)], ids=["one-size", "two-sizes"])
def test_many_retractions_at_once_are_those_of_each(sizes, convert):
    """Of arrays with other rows, batches and spaces; with one small batch for all where columns are as many."""
    spaces, rng, parts = lr.spaces, np.random.default_rng(2), []
    kinds = [(spaces.STIEFEL, (2, 9, sizes[0])), (spaces.FLAT, (4, 4)), (spaces.STIEFEL, (7, sizes[1]))]
    for space, shape in [*kinds, (spaces.STIEFEL_QR, (6, 3))]:
        x = space.random(rng, shape)
        parts.append((space, convert(x), convert(rng.standard_normal(shape)), 0.3))
    for new, (space, *rest) in zip(spaces.retract_all(parts), parts, strict=True):
        expected = space.retract(*map(np.asarray, rest[:2]), rest[2])
        assert np.allclose(np.asarray(new), expected, atol=1e-12)
    assert spaces.retract_all([]) == []


class Sliding(Flat):
    """A retraction with the wrong speed."""

    def retract(self, x, direction, lr):
        return x - 2 * lr * direction


class Falling(Stiefel):
    """A retraction that leaves the space."""

    def retract(self, x, direction, lr):
        y = super().retract(x, direction, lr)
        return y + lr**2


@pytest.mark.parametrize("space, message", [(Sliding(), "first order"), (Falling(), "lands on the space")])
def test_the_contract_notices_a_broken_space(space, message):
    with pytest.raises(AssertionError, match=message):
        check_space(space)
