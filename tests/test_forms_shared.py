"""Forms that share factors among layers, and elementwise functions: counts, ranks and matrices by independent code."""

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.testing import check_parameterization

RNG = np.random.default_rng
SHAPE = (12, 8)
VARIANTS = [
    (lr.RaSA.of(2, 3), 4),
    (lr.RaSA.of(2, 2), 3),
    (lr.ProLoRA.of(4, 2), 1),
    (lr.ProLoRA.of(1, 1), 2),
    (lr.Sine.of(3.0, 2.0), 2),
    (lr.Sinter.of(0.5, 2.0), 2),
]


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form, size", VARIANTS, ids=lambda v: v.__name__ if isinstance(v, type) else None)
def test_contract_of_forms_with_settings(form, size, library, batch, dtype):
    check_parameterization(form, SHAPE, size, library=library, batch=batch, dtype=dtype)


@pytest.mark.covers("P62", "P64", "P66", "P103", "P104")
@pytest.mark.parametrize(
    "form, size, count",
    [
        (lr.TiedLoRA, 3, lambda m, n: (m + n) * 3 + m + 3),
        (lr.BSLoRA, 2, lambda m, n: 3 * (m + n) * 2),
        (lr.BSLoRA.of(20, 10), 2, lambda m, n: (m + n) * 2 + 2 * 30 * 2),
        (lr.ProLoRA, 3, lambda m, n: (m + n) * (1 + 3)),
        (lr.ProLoRA.of(4, 2), 3, lambda m, n: (m + n) * (2 + 3)),
        (lr.Sine, 3, lambda m, n: (m + n) * 3),
        (lr.Sinter, 3, lambda m, n: (m + n) * 3),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_parameter_count_is_the_published_one(form, size, count):
    point = form.random(SHAPE, size, RNG(0))
    assert sum(a.size for a in point.arrays()) == form.parameter_count(SHAPE, size) == count(*SHAPE)


@pytest.mark.covers("P63")
def test_parameter_count_of_a_published_model_with_pooled_ranks():
    """The seven maps of each of 32 layers, one rank in eight pooled: the factors of LoRA and 39 values a module."""
    layer = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    form = lr.RaSA.of(1, 32)
    total = 0
    for shape in layer:
        left, right, left_pool, right_pool, values = (int(np.prod(core)) for core in form.shapes(shape, 8))
        assert values == 39
        total += 32 * (left + right + values) + left_pool + right_pool
    assert total == 20_980_256


@pytest.mark.covers("P62", "P63", "P64", "P66", "P103")
@pytest.mark.parametrize(
    "form, size, rank",
    [
        (lr.TiedLoRA, 3, 3),
        (lr.RaSA.of(1, 4), 2, 5),
        (lr.BSLoRA, 2, 6),
        (lr.ProLoRA, 2, 5),
        (lr.ProLoRA.of(4, 1), 1, 5),
        (lr.Sine, 2, 8),
        (lr.Sinter, 2, 8),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_reachable_rank(form, size, rank):
    point = form.random(SHAPE, size, RNG(1))
    assert point.rank == np.linalg.matrix_rank(point.dense()) == rank


def complex_point(form, size):
    rng = RNG(2)
    return form.random(SHAPE, size, rng).map(lambda a: a + 1j * rng.standard_normal(a.shape))


@pytest.mark.covers("P62")
def test_tied_factors_with_their_own_scales():
    b, left, d, right = complex_point(lr.TiedLoRA, 3).arrays()
    assert np.allclose(lr.TiedLoRA(b, left, d, right).dense(), np.diag(b) @ left @ np.diag(d) @ right.conj().T)


@pytest.mark.covers("P63")
def test_own_and_pooled_ranks_are_gated_together():
    left, right, left_pool, right_pool, values = complex_point(lr.RaSA.of(1, 3), 3).arrays()
    expected = (left * values[:2]) @ right.conj().T + (left_pool * values[2:]) @ right_pool.conj().T
    assert np.allclose(lr.RaSA(left, right, left_pool, right_pool, values).dense(), expected)


@pytest.mark.covers("P64")
def test_shared_factors_are_cut_to_the_module():
    point = complex_point(lr.BSLoRA.of(20, 10), 2)
    x, y, p, q, s, t = point.arrays()
    expected = x @ y.conj().T + (p @ q.conj().T)[:12, :8] + (s @ t.conj().T)[:12, :8]
    assert np.allclose(point.dense(), expected)
    pulled = point.pullback(RNG(3).standard_normal(SHAPE))
    assert not pulled.left_layer[12:].any()
    assert not point.whiten(pulled, 0.1).right_model[8:].any()
    torch = pytest.importorskip("torch")
    g = RNG(4).standard_normal(SHAPE)
    leaves = [torch.as_tensor(a.real).requires_grad_() for a in point.arrays()]
    (type(point)(*leaves).dense() * torch.as_tensor(g)).sum().backward()
    real = point.map(lambda a: a.real).pullback(g)
    assert all(np.allclose(a.grad, b) for a, b in zip(leaves, real.arrays(), strict=True))


@pytest.mark.covers("P66")
@pytest.mark.parametrize("copies", [2, 4])
def test_tiles_are_rotated_copies_of_a_chunk(copies):
    point = complex_point(lr.ProLoRA.of(copies, 1), 2)
    tall = np.concatenate([np.roll(point.left_chunk, p, 1) for p in range(copies)])
    wide = np.concatenate([np.roll(point.right_chunk, 2 * p, 1) for p in range(copies)])
    assert np.allclose(point.dense(), point.left @ point.right.conj().T + tall @ wide.conj().T)


@pytest.mark.covers("P103", "P104")
def test_functions_of_every_entry():
    rng = RNG(5)
    x, y = rng.standard_normal((12, 2)), rng.standard_normal((8, 2))
    z = x @ y.T
    assert np.allclose(lr.Sine.of(3.0, 2.0)(x, y).dense(), np.sin(3.0 * z) / 2.0)
    assert np.allclose(lr.Sinter.of(0.5, 2.0)(x, y).dense(), 0.5 * np.sin(2.0 * z) * z + z)


def block_jacobian(point, index):
    zero, columns = point.map(lambda a: 0 * a), []
    array = point.arrays()[index]
    for unit in np.eye(array.size).reshape(-1, *array.shape):
        columns.append(point.pushforward(zero.with_array(index, unit)).reshape(-1))
    return np.stack(columns, -1)


@pytest.mark.covers("P63", "P64", "P66")
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(
    "form, size", [(lr.RaSA.of(2, 2), 3), (lr.BSLoRA, 2), (lr.BSLoRA.of(14, 9), 2), (lr.ProLoRA.of(4, 2), 1)]
)
def test_whitening_solves_the_normal_equations_of_every_array(form, size, damping):
    point = form.random(SHAPE, size, RNG(6))
    grad = point.pullback(RNG(7).standard_normal(SHAPE))
    white = point.whiten(grad, damping)
    for i, g in enumerate(grad.arrays()):
        j = block_jacobian(point, i)
        expected = np.linalg.pinv(j.T @ j + damping * np.eye(g.size), hermitian=True) @ g.reshape(-1)
        assert np.allclose(white.arrays()[i].reshape(-1), expected, atol=1e-8)


@pytest.mark.parametrize("form", [lr.TiedLoRA, lr.RaSA.of(1, 2), lr.BSLoRA.of(20, 10)], ids=lambda f: f.__name__)
def test_products_are_kept(form):
    left, right = (RNG(8).standard_normal((k, 3)) for k in SHAPE)
    assert np.allclose(form.from_product(left, right).dense(), left @ right.T)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lr.RaSA.of(0, 2), "pooled must be a positive integer"),
        (lambda: lr.RaSA.of(1, 0.5), "layers must be a positive integer"),
        (lambda: lr.RaSA.of(3, 2).shapes(SHAPE, 3), "3 of the ranks"),
        (lambda: lr.BSLoRA.of(0, 4), "positive integers"),
        (lambda: lr.BSLoRA.of(10, 10).shapes(SHAPE, 2), "do not cover"),
        (lambda: lr.ProLoRA.of(0), "copies must be an integer of at least 1"),
        (lambda: lr.ProLoRA.of(2, 0), "unshared must be"),
        (lambda: lr.ProLoRA.of(5).shapes(SHAPE, 1), "5 copies must divide"),
        (lambda: lr.Sine.of(0.0, 1.0), "must be positive"),
        (lambda: lr.Sinter.of(1.0, -1.0), "must be positive"),
    ],
)
def test_sizes_and_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
