"""Rotations and reflections: contracts, identity starts, published counts, and agreement with published code."""

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

import lowrank_sp as lr
from lowrank_sp.testing import check_parameterization, check_rule

RNG = np.random.default_rng
CASES = [
    (lr.BlockRotation, 6, 3),
    (lr.BlockRotation, 8, 8),
    (lr.Butterfly, 8, 2),
    (lr.Butterfly, 16, 4),
    (lr.Butterfly.of(3), 8, 2),
    (lr.Householder, 7, 1),
    (lr.Householder, 7, 4),
    (lr.Householder.of(2), 8, 3),
    (lr.EtherPlus, 5, 1),
    (lr.EtherPlus, 9, 3),
]
EVERY = pytest.mark.parametrize("form, n, size", CASES, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))


@pytest.mark.covers("lowrank_sp.parameterizations.rotation.*", "lowrank_sp.parameterizations.reflection.*")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@EVERY
def test_contract(form, n, size, library, batch, dtype):
    check_parameterization(form, (n, n), size, library=library, batch=batch, dtype=dtype)


@pytest.mark.parametrize("rule", ["plain", "scaled", "momentum", "adam"])
@pytest.mark.parametrize("form", lr.ROTATIONS.values(), ids=lr.ROTATIONS)
def test_rules(form, rule):
    check_rule(lr.RULES[rule], form)


@pytest.mark.covers("P93", "P94", "P95", "P96")
@EVERY
def test_orthogonal_or_relaxed(form, n, size):
    p = form.random((n, n), size, RNG(0)).dense()
    if form is lr.EtherPlus:
        assert np.linalg.norm(p, 2) <= 2 + 1e-12
    else:
        assert np.allclose(p @ p.T, np.eye(n), atol=1e-12)


@pytest.mark.covers("P93", "P94", "P95", "P96")
@EVERY
def test_the_usual_start_is_the_identity_and_can_move(form, n, size):
    if issubclass(form, lr.Householder) and size % 2:
        with pytest.raises(ValueError, match="odd number"):
            form.identity(n, size, RNG(1))
        return
    start = form.identity(n, size, RNG(1), (2,))
    assert start.batch_shape == (2,)
    assert np.allclose(start.dense(), np.eye(n), atol=1e-12)
    target = RNG(2).standard_normal((n, n))
    assert all(abs(a).max() > 1e-3 for a in start.pullback(target).arrays())


@pytest.mark.covers("P93", "P94", "P95", "P96")
@pytest.mark.parametrize(
    "form, size, count",
    [
        (lr.BlockRotation, 4, lambda n: n // 4 * 6),
        (lr.Butterfly.of(3), 4, lambda n: 3 * (n // 4) * 6),
        (lr.Householder, 3, lambda n: 3 * n),
        (lr.Householder.of(4), 1, lambda n: n),
        (lr.EtherPlus, 4, lambda n: 2 * n),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_parameter_count_is_the_published_one(form, size, count):
    point = form.random((32, 32), size, RNG(3))
    assert sum(a.size for a in point.arrays()) == form.parameter_count((32, 32), size) == count(32)


# by independent code --------------------------------------------------------------------------------------


@pytest.mark.covers("P94")
def test_blocks_are_cayley_transforms():
    point = lr.BlockRotation.random((6, 6), 3, RNG(4))
    blocks = []
    for angles in point.angles[0]:
        q = np.zeros((3, 3))
        q[0, 1], q[0, 2], q[1, 2] = angles
        q = q - q.T
        blocks.append((np.eye(3) + q) @ np.linalg.inv(np.eye(3) - q))
    assert np.allclose(point.dense(), scipy.linalg.block_diag(*blocks))


@pytest.mark.covers("P95")
@pytest.mark.parametrize("side", [24, 33])
@pytest.mark.parametrize("spread", [1e-3, 0.05, 3.0, 30.0])
def test_wide_blocks_in_single_precision_are_the_cayley_transforms_at_small_and_large_angles(side, spread):
    angles = spread * RNG(side).uniform(-1, 1, (1, 2, side * (side - 1) // 2))
    q = np.zeros((2, side, side))
    q[:, *np.triu_indices(side, 1)] = angles[0].astype(np.float32)
    q -= q.mT
    exact = np.stack([scipy.linalg.solve(np.eye(side) - a, np.eye(side) + a) for a in q])
    got = lr.BlockRotation(torch.as_tensor(angles, dtype=torch.float32)).blocks(1)
    np.testing.assert_allclose(got.numpy(), exact, atol=2e-5)


def test_butterflies_pair_half_blocks_at_growing_distances():
    point = lr.Butterfly.of(3).random((16, 16), 4, RNG(5))
    for i in range(3):
        alone = point.map(lambda a, i=i: a * (np.arange(3) == i)[:, None, None]).dense()
        halves = np.abs(alone).reshape(8, 2, 8, 2).max((1, 3)) > 0
        distances = {abs(a - b) for a, b in zip(*halves.nonzero(), strict=True)}
        assert distances == {0, 2**i}


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_pairs_of_equal_reflections_change_no_bit(size, dtype):
    vectors = lr.Householder.identity(50, size, RNG(4)).vectors
    x = RNG(5).standard_normal((33, 50)).astype(dtype)
    assert np.array_equal(lr.Householder(vectors.astype(dtype)).apply(x), x)


@pytest.mark.covers("P96", "P93")
@pytest.mark.parametrize("size", [3, 4])
def test_products_of_reflections_one_by_one(size):
    point = lr.Householder.of(2).random((8, 8), size, RNG(6))
    blocks = []
    for vectors in point.vectors:
        p = np.eye(4)
        for u in vectors.T:
            p = p @ (np.eye(4) - 2 * np.outer(u, u) / (u @ u))
        blocks.append(p)
    assert np.allclose(point.dense(), scipy.linalg.block_diag(*blocks))


@pytest.mark.covers("P93")
def test_relaxed_reflections_block_by_block():
    point = lr.EtherPlus.random((6, 6), 2, RNG(7))
    pairs = zip(point.minus, point.plus, strict=True)
    blocks = [np.eye(3) - np.outer(u, u) / (u @ u) + np.outer(v, v) / (v @ v) for u, v in pairs]
    assert np.allclose(point.dense(), scipy.linalg.block_diag(*blocks))


def jacobian(point, index):
    columns = []
    zero = point.map(lambda a: 0 * a)
    array = point.arrays()[index]
    for unit in np.eye(array.size).reshape(-1, *array.shape):
        columns.append(point.pushforward(zero.with_array(index, unit)).reshape(-1))
    return np.stack(columns, -1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_change_is_thin_and_exactly_zero_at_the_identity(size, dtype):
    rng = RNG(size)
    point = lr.EtherPlus.random((4 * size, 4 * size), size, rng).map(
        lambda a: a + 0.5j * a[::-1] if dtype == "complex128" else a
    )
    left, right = point.change()
    assert point.near_identity
    assert left.shape == right.shape == (4 * size, 2 * size)
    np.testing.assert_allclose(np.eye(4 * size) + left @ right.conj().mT, point.dense(), atol=1e-12)
    left, right = lr.EtherPlus.identity(4 * size, size, rng).change()
    assert np.logical_or((left == 0).all(-2), (right == 0).all(-2)).all()


def test_other_changes_are_not_thin():
    assert not lr.EtherPlus.identity(80, 20, RNG(0)).near_identity
    point = lr.BlockRotation.identity(6, 3, RNG(0))
    assert not point.near_identity
    with pytest.raises(TypeError, match="BlockRotation differs from the identity by a matrix that is not thin"):
        point.change()


@pytest.mark.covers("P94", "P96")
@pytest.mark.parametrize("form, n, size", [(lr.BlockRotation, 6, 3), (lr.Householder, 5, 1), (lr.EtherPlus, 6, 2)])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_whitening_solves_the_normal_equations_of_independent_parts(form, n, size, damping):
    point = form.random((n, n), size, RNG(8))
    grad = point.pullback(RNG(9).standard_normal((n, n)))
    white = point.whiten(grad, damping)
    for i, g in enumerate(grad.arrays()):
        j = jacobian(point, i)
        expected = np.linalg.pinv(j.T @ j + damping * np.eye(g.size)) @ g.reshape(-1)
        assert np.allclose(white.arrays()[i].reshape(-1), expected, atol=1e-8)


@pytest.mark.covers("P94", "P95", "P96")
@pytest.mark.parametrize("form, size", [(lr.BlockRotation, 4), (lr.Butterfly, 2), (lr.Householder, 2)])
def test_a_solve_recovers_a_rotation(form, size):
    truth = form.random((8, 8), size, RNG(10))
    start = form.identity(8, size, RNG(11)) if form is lr.Householder else truth
    start = start.map(lambda a: a + 0.1 * RNG(12).standard_normal(a.shape))
    result = lr.solve(lr.MatrixFactorization(truth.dense()), start, lr.ScaledGD(), max_iter=300)
    assert result.fun < 1e-2 * result.history["loss"][0] or result.fun < 1e-12


def published(config):
    """A layer of PEFT with random parameters: the model, the adapted layer and the parameter."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(16, 5, bias=False)).double()
    model = peft.get_peft_model(base, config(peft)).double()
    parameter = next(p for name, p in model.named_parameters() if p.requires_grad and "boft_s" not in name)
    parameter.data = 0.3 * torch.randn_like(parameter)
    return model, model.base_model.model[0], parameter.detach()


def above(matrices):
    rows, cols = np.triu_indices(matrices.shape[-1], 1)
    return ((matrices - matrices.mT) / 2)[..., rows, cols]


@pytest.mark.slow  # the import of PEFT
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft_n_butterfly_factor")
@pytest.mark.covers("P94", "P95", "P96")
@pytest.mark.parametrize(
    "config, make",
    [
        (
            lambda peft: peft.OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=["0"]),
            lambda value: lr.BlockRotation(value[None]),
        ),
        (
            lambda peft: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"]),
            lambda value: lr.BlockRotation(above(value)),
        ),
        (lambda peft: peft.HRAConfig(r=4, target_modules=["0"]), lambda value: lr.Householder(value[None])),
    ],
    ids=["OFT", "BOFT", "HRA"],
)
def test_outputs_are_those_of_peft_at_equal_parameters(config, make):
    model, layer, value = published(config)
    x = value.new_tensor(RNG(15).standard_normal((3, 16)))
    expected = model(x).detach()
    got = make(value).apply(x) @ layer.get_base_layer().weight.detach().T
    assert np.allclose(got, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft_n_butterfly_factor")
@pytest.mark.covers("P95")
def test_butterflies_are_those_of_peft():
    """From its permutations and Cayley transforms, since its layers do not run with several factors everywhere."""
    config = lambda peft: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["0"])  # noqa: E731
    _, layer, value = published(config)
    raw = value.new_tensor(0.3 * RNG(16).standard_normal((3, 8, 4, 4)))
    blocks = layer.cayley_batch(raw.reshape(24, 4, 4)).reshape(3, 8, 4, 4).numpy()
    product = np.eye(32)
    for i in range(3):
        order = layer.block_butterfly_perm(32, 8 // 2**i, 2, 2)
        permutation = layer.perm2mat(order).double().numpy()
        product = permutation @ scipy.linalg.block_diag(*blocks[i]) @ permutation.T @ product
    x = RNG(17).standard_normal((4, 32))
    assert np.allclose(lr.Butterfly.of(3)(above(raw)).apply(value.new_tensor(x)), x @ product, atol=1e-12)


@EVERY
def test_settings_survive_pickling(form, n, size):
    point = form.random((n, n), size, RNG(13))
    again = pickle.loads(pickle.dumps(point))
    assert type(again) is form
    assert np.array_equal(again.dense(), point.dense())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lr.Butterfly.of(0), "positive integer"),
        (lambda: lr.Householder.of(1.5), "positive integer"),
        (lambda: lr.BlockRotation.shapes((6, 4), 2), "is square"),
        (lambda: lr.BlockRotation.shapes((6, 6), 4), "must divide the side 6; got b = 4"),
        (lambda: lr.BlockRotation.shapes((6, 6), 1), "a side b > 1"),
        (lambda: lr.Butterfly.shapes((6, 6), 3), "b must be even"),
        (lambda: lr.Butterfly.of(3).shapes((8, 8), 4), "must divide the side 8"),
        (lambda: lr.Householder.of(3).shapes((8, 8), 1), "3 blocks must divide the side, got 8"),
        (lambda: lr.EtherPlus.shapes((8, 8), 3), "3 blocks must divide"),
    ],
)
def test_sizes_and_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("form", lr.ROTATIONS.values(), ids=lr.ROTATIONS)
def test_rotations_refuse_to_convert(form):
    with pytest.raises(TypeError, match=f"{form.__name__} has no conversion"):
        lr.BurerMonteiro.random((8, 8), 2, RNG(14)).to(form)
