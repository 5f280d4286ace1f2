"""The small batched linear algebra against scipy, in both libraries."""

import numpy as np
import pytest
import scipy.linalg
import torch

from lowrank_sp import xp

LIBRARY = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
DTYPE = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def normal(rng, shape, dtype):
    z = rng.standard_normal(shape)
    return z + 1j * rng.standard_normal(shape) if dtype == "complex128" else z


def psd(rng, r, dtype, condition=10.0, batch=2):
    """Hermitian matrices (batch, r, r) with the given condition number."""
    q = np.linalg.qr(normal(rng, (batch, r, r), dtype))[0]
    return (q * np.geomspace(1, 1 / condition, r)) @ q.conj().mT


def loop(function, *stacks):
    return np.stack([function(*matrices) for matrices in zip(*stacks, strict=True)])


@DTYPE
@LIBRARY
def test_powers(convert, dtype):
    p = psd(np.random.default_rng(0), 4, dtype)
    assert np.allclose(xp.power_psd(convert(p), 0.5), loop(scipy.linalg.sqrtm, p), atol=1e-12)
    for exponent in (-0.5, 0.3):
        expected = loop(lambda a, e=exponent: scipy.linalg.fractional_matrix_power(a, e), p)
        assert np.allclose(xp.power_psd(convert(p), exponent), expected, atol=1e-11)


@DTYPE
@LIBRARY
@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_newton_schulz(convert, dtype, condition):
    p = psd(np.random.default_rng(1), 5, dtype, condition)
    root, inverse_root = xp.sqrt_newton_schulz(convert(p), 30)
    expected = loop(scipy.linalg.sqrtm, p)
    assert np.allclose(root, expected, atol=1e-9)
    assert np.allclose(inverse_root, np.linalg.inv(expected), rtol=1e-6, atol=1e-6)


@DTYPE
@LIBRARY
def test_division_solution_and_inverse(convert, dtype):
    rng = np.random.default_rng(2)
    p, g = psd(rng, 4, dtype), normal(rng, (2, 6, 4), dtype)
    damped = p + 0.2 * np.eye(4)
    expected = loop(lambda a, b: scipy.linalg.solve(a.T, b.T).T, damped, g)
    assert np.allclose(xp.divide_psd(convert(g), convert(p), 0.2), expected, atol=1e-12)
    expected = loop(lambda a, b: scipy.linalg.solve(a, b.conj().T), damped, g)
    assert np.allclose(xp.solve_psd(convert(p), convert(g.conj().mT), 0.2), expected, atol=1e-12)
    assert np.allclose(xp.inv_psd(convert(p), 0.2), loop(scipy.linalg.inv, damped), atol=1e-12)


@LIBRARY
def test_one_damping_for_each_batch_element(convert):
    rng = np.random.default_rng(3)
    p, g, damping = psd(rng, 3, "float64"), rng.standard_normal((2, 5, 3)), np.array([0.1, 2.0])
    expected = loop(lambda a, b, d: b @ scipy.linalg.inv(a + d * np.eye(3)), p, g, damping)
    assert np.allclose(xp.divide_psd(convert(g), convert(p), convert(damping)), expected, atol=1e-12)


@LIBRARY
def test_division_is_accurate_for_ill_conditioned_matrices(convert):
    """``g = x p`` with a condition number of 1e12 comes back to the rounding of a backward stable solve."""
    rng = np.random.default_rng(4)
    p, x = psd(rng, 4, "float64", 1e12), rng.standard_normal((2, 6, 4))
    back = np.asarray(xp.divide_psd(convert(x @ p), convert(p))) @ p
    assert np.abs(back - x @ p).max() < 1e-13


@LIBRARY
def test_division_of_long_gradients_in_single_precision(convert):
    """A gradient ``E y`` over ``y^T y``, of condition number 1e6: the residual stays near that of ``y`` alone."""
    rng = np.random.default_rng(4)
    q, turn = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((512, 8), (8, 8)))
    y = (q * np.geomspace(1, 1e-3, 8)) @ turn
    g = (rng.standard_normal((512, 512)) @ y).astype("float32")
    p = (y.T @ y).astype("float32")
    back = np.asarray(xp.divide_psd(convert(g), convert(p)), dtype="float64") @ (p + 0.0)
    assert np.linalg.norm(back - g) < 5e-4 * np.linalg.norm(g)


@DTYPE
@LIBRARY
def test_riccati(convert, dtype):
    rng = np.random.default_rng(5)
    px, py = psd(rng, 4, dtype), psd(rng, 4, dtype, 50.0)
    s, s_inv = (np.asarray(a) for a in xp.riccati(convert(px), convert(py)))
    assert np.allclose(s @ px @ s, py, atol=1e-12)
    assert np.allclose(s @ s_inv, np.eye(4), atol=1e-12)
    assert (np.linalg.eigvalsh(s) > 0).all()
    assert np.allclose(s, s.conj().mT, atol=1e-12)
    closed = loop(lambda a, b: scipy.linalg.inv(a) @ scipy.linalg.sqrtm(a @ b), px, py)
    assert np.allclose(s, closed, atol=1e-10)


@DTYPE
@LIBRARY
def test_sylvester(convert, dtype):
    rng = np.random.default_rng(6)
    p, q, c = psd(rng, 4, dtype), psd(rng, 3, dtype), normal(rng, (2, 4, 3), dtype)
    expected = loop(scipy.linalg.solve_sylvester, p, q, c)
    assert np.allclose(xp.sylvester_psd(convert(p), convert(q), convert(c)), expected, atol=1e-11)


@DTYPE
@LIBRARY
def test_polar_and_orthonormalize(convert, dtype):
    x = normal(np.random.default_rng(7), (2, 6, 3), dtype)
    polar = loop(lambda a: scipy.linalg.polar(a)[0], x)
    assert np.allclose(xp.polar(convert(x)), polar, atol=1e-12)
    q = np.asarray(xp.orthonormalize(convert(x)))
    assert np.allclose(q.conj().mT @ q, np.eye(3), atol=1e-13)
    r = q.conj().mT @ x
    diagonal = np.diagonal(r, axis1=-2, axis2=-1)
    assert np.allclose(np.tril(r, -1), 0, atol=1e-13)
    assert np.allclose(diagonal.imag, 0, atol=1e-13)
    assert (diagonal.real > 0).all()


@LIBRARY
@pytest.mark.parametrize("rank", [0, 1])
def test_zero_and_singular_matrices_stay_finite(convert, rank):
    x = np.zeros((5, 3))
    x[:, :rank] = 1.0
    p, thin = convert(x.T @ x), convert(x)
    values = [
        xp.inv_psd(p),
        xp.divide_psd(thin, p),
        xp.solve_psd(p, p),
        xp.power_psd(p, -0.5),
        *xp.riccati(p, convert(np.eye(3))),
        *xp.riccati(convert(np.eye(3)), p),
        xp.sylvester_psd(p, p, p),
        xp.polar(thin),
        xp.orthonormalize(thin),
    ]
    assert all(np.isfinite(np.asarray(v)).all() for v in values)


@LIBRARY
def test_a_large_matrix_in_a_batch_does_not_raise_the_floor_of_the_others(convert):
    rng = np.random.default_rng(12)
    size = np.array([1e9, 1e-9])[:, None, None]
    p, q, c = (size * a for a in (psd(rng, 3, "float64"), psd(rng, 4, "float64"), rng.standard_normal((2, 3, 4))))
    expected = loop(scipy.linalg.solve_sylvester, p, q, c)
    assert np.allclose(xp.sylvester_psd(convert(p), convert(q), convert(c)), expected, rtol=1e-9)


@LIBRARY
@DTYPE
def test_inverse_cholesky_makes_orthonormal_columns(convert, dtype):
    a = normal(np.random.default_rng(13), (2, 6, 3), dtype)
    inverse = np.asarray(xp.inverse_cholesky(convert(a.conj().mT @ a)))
    q = a @ inverse.conj().mT
    assert np.allclose(q.conj().mT @ q, np.eye(3))


@LIBRARY
def test_a_zero_numerator_over_a_zero_gram_matrix_is_zero(convert):
    zero = convert(np.zeros((3, 3)))
    assert not np.asarray(xp.divide_psd(convert(np.zeros((5, 3))), zero)).any()


@LIBRARY
def test_one_zero_matrix_in_a_batch_does_not_disturb_the_others(convert):
    rng = np.random.default_rng(8)
    p, g = psd(rng, 3, "float64"), rng.standard_normal((2, 5, 3))
    expected = np.linalg.solve(p[0].T, g[0].T).T
    p[1] = 0
    g[1] = 0
    assert np.allclose(np.asarray(xp.divide_psd(convert(g), convert(p)))[0], expected, atol=1e-12)
    px = np.stack((p[0], np.zeros((3, 3))))
    py = np.stack((np.eye(3), np.eye(3)))
    s, s_inv = (np.asarray(a) for a in xp.riccati(convert(px), convert(py)))
    assert np.allclose(s[0] @ p[0] @ s[0], np.eye(3), atol=1e-12)
    assert np.array_equal(s[1], np.eye(3))
    assert np.array_equal(s_inv[1], np.eye(3))


@DTYPE
@LIBRARY
def test_inner_products(convert, dtype):
    rng = np.random.default_rng(9)
    a, b = normal(rng, (2, 4, 3), dtype), normal(rng, (2, 4, 3), dtype)
    expected = [
        sum((x.conj() * y).real for x, y in zip(u.flat, v.flat, strict=True)) for u, v in zip(a, b, strict=True)
    ]
    assert np.allclose(xp.inner(convert(a), convert(b)), expected)
    assert np.isclose(float(xp.inner(convert(a[0]), convert(b[0]))), expected[0])


def test_namespace_refuses_mixtures_and_strangers():
    with pytest.raises(TypeError, match="share a library"):
        xp.namespace(np.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match="expected a numpy array"):
        xp.namespace([1.0, 2.0])
    assert xp.namespace(np.ones(2), np.float64(1)) is np
    assert xp.namespace(torch.ones(2)) is torch


@pytest.mark.parametrize("order", ["C", "F"])
def test_damping_does_not_depend_on_the_memory_layout(order):
    rng = np.random.default_rng(10)
    p, g = psd(rng, 4, "float64")[0], rng.standard_normal((6, 4))
    stored = np.array(p, order=order)
    damped = p + 0.5 * np.eye(4)
    assert np.allclose(xp.divide_psd(g, stored, 0.5) @ damped, g, atol=1e-12)
    assert np.allclose(damped @ xp.solve_psd(stored, g.T, 0.5), g.T, atol=1e-12)
    assert np.array_equal(stored, p)


@pytest.mark.parametrize("rows", [3, 400])
def test_short_and_long_numerators_agree_with_a_solve(rows):
    rng = np.random.default_rng(11)
    p, g = psd(rng, 4, "float64", 100.0)[0], rng.standard_normal((rows, 4))
    assert np.allclose(xp.divide_psd(g, p), scipy.linalg.solve(p, g.T).T, atol=1e-11)
