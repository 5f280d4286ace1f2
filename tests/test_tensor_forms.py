"""Every tensor form keeps the contract of `lowrank_sp.testing.check_parameterization`, at several orders."""

import pickle

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.tensors import unfold
from lowrank_sp.testing import check_parameterization

FORMS = [*lr.TENSOR_FORMS.values(), lr.Tucker.of(3, (1, 2)), lr.CP.of(2), lr.Tucker.of(2), lr.TensorTrain.of(5)]
EVERY = pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
CURVED = {lr.FixedRankTrain: lr.FixedRankTrain.to_train, lr.FixedRankTucker: lr.FixedRankTucker.to_tucker}
FLAT = pytest.mark.parametrize("form", [lr.CP, lr.Tucker, lr.TensorTrain], ids=lambda f: f.__name__)


@pytest.mark.covers("P70", "P73", "P74", "P75", "P76")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@EVERY
def test_contract(form, library, batch, dtype):
    check_parameterization(form, rank=2, library=library, dtype=dtype, batch=batch)


@pytest.mark.parametrize("rank", [1, 3])
@EVERY
def test_contract_at_other_sizes(form, rank):
    check_parameterization(form, rank=rank, seed=5)


@pytest.mark.covers("P70", "P73", "P74", "P75", "P76")
def test_parameter_counts_are_the_published_ones():
    m, n, layers, r = 64, 48, 12, 8
    assert lr.CP.parameter_count((m, n, layers), r) == r * (m + n + layers)
    assert lr.Tucker.parameter_count((m, n, layers), r) == (m + n + layers) * r + r**3
    assert lr.Tucker.of(3, (0, 1)).parameter_count((m, n, layers), r) == (m + n) * r + r**2 * layers
    assert lr.TensorTrain.parameter_count((m, n, layers), r) == m * r + n * r**2 + layers * r
    sizes = (4, 6, 8, 10, 3)
    assert lr.TensorTrain.parameter_count(sizes, (2, 3, 4, 3)) == 4 * 2 + 2 * 6 * 3 + 3 * 8 * 4 + 4 * 10 * 3 + 3 * 3


@EVERY
def test_pullback_is_what_autograd_finds(form):
    rng = np.random.default_rng(1)
    shape = (4, 5, 2, 3, 2)[: form.settings[0] if form.settings else 4]
    point = form.random(shape, 2, rng).map(torch.as_tensor)
    g = torch.as_tensor(rng.standard_normal(shape))
    leaves = [a.clone().requires_grad_() for a in point.arrays()]
    (type(point)(*leaves).dense() * g).sum().backward()
    if form not in CURVED:
        for got, leaf in zip(point.pullback(g).arrays(), leaves, strict=True):
            assert torch.allclose(got, leaf.grad)
        return
    # on the manifold: the tensor of the pulled back vector is the orthogonal projection on the tangent space
    tangent = point.pullback(g)
    basis = tangent_basis(point)
    projected = basis @ (basis.T @ g.reshape(-1))
    assert torch.allclose(point.pushforward(tangent).reshape(-1), projected)


def tangent_basis(point):
    """An orthonormal basis of the range of the differential of the form without constraints."""
    flat = CURVED[type(point)._base()](point)
    columns = []
    for i, a in enumerate(flat.arrays()):
        for unit in torch.eye(a.numel(), dtype=a.dtype).reshape(-1, *a.shape):
            columns.append(flat.with_array(i, unit).dense().reshape(-1))
    u, s, _ = torch.linalg.svd(torch.stack(columns, 1), full_matrices=False)
    return u[:, s > 1e-10 * s[0]]


@pytest.mark.covers("O16")
@pytest.mark.parametrize(
    "form",
    [lr.FixedRankTrain, lr.FixedRankTucker, lr.FixedRankTucker.of(4, (0, 1, 2))],
    ids=lambda f: f.__name__,
)
def test_tangent_vectors_have_the_norm_of_their_tensors(form):
    rng = np.random.default_rng(2)
    point = form.random((4, 5, 3, 2), 2, rng)
    tangent = point.project(point.map(lambda a: rng.standard_normal(a.shape)))
    assert np.isclose(np.linalg.norm(point.pushforward(tangent)), tangent.norm())
    new = point.retract(tangent, 0.1)
    assert new.rank == point.rank
    carried = point.transport(new, tangent)
    expected = new.pullback(point.pushforward(tangent))
    assert all(np.allclose(a, b) for a, b in zip(carried.arrays(), expected.arrays(), strict=True))


@FLAT
def test_tensorly_multiplies_out_to_the_same_tensor(form):
    tensorly = pytest.importorskip("tensorly")
    tensorly.set_backend("numpy")
    point = form.random((4, 5, 6), 3, np.random.default_rng(3))
    decomposed = point.to_tensorly()
    assert np.allclose(decomposed.to_tensor(), point.dense())
    back = form.from_tensorly(decomposed)
    assert type(back) is type(point)
    assert all(np.array_equal(a, b) for a, b in zip(back.arrays(), point.arrays(), strict=True))


def test_weights_of_a_tensorly_cp_tensor_are_kept():
    cp_tensor = pytest.importorskip("tensorly.cp_tensor")
    rng = np.random.default_rng(4)
    factors = [rng.standard_normal((n, 2)) for n in (3, 4, 5)]
    decomposed = cp_tensor.CPTensor((np.array([2.0, -1.0]), factors))
    assert np.allclose(lr.CP.from_tensorly(decomposed).dense(), decomposed.to_tensor())


@FLAT
def test_truncation_is_that_of_tensorly(form):
    decomposition = pytest.importorskip("tensorly.decomposition")
    tensor = np.random.default_rng(5).standard_normal((6, 7, 8))
    if form is lr.TensorTrain:
        expected = decomposition.tensor_train(tensor, [1, 3, 4, 1]).to_tensor()
        assert np.allclose(form.from_tensor(tensor, (3, 4)).dense(), expected)
    elif form is lr.Tucker:
        point = form.from_tensor(tensor, (3, 4, 2))
        for k, u in enumerate(point.arrays()[1:]):
            left = np.linalg.svd(unfold(tensor, k, 3))[0][:, : u.shape[1]]
            assert np.allclose(u @ u.T, left @ left.T)
    else:
        exact = lr.CP.random((6, 7, 8), 5, np.random.default_rng(6))
        found = form.from_tensor(exact.dense(), 5)
        assert found.distance(exact) < 1e-9 * exact.frobenius()


@EVERY
def test_ranks_are_those_of_the_unfoldings(form):
    order = form.settings[0] if form.settings else 4
    point = form.random((6, 5, 4, 3, 2)[:order], 2, np.random.default_rng(7))
    dense = point.dense()
    for k in range(order):
        if isinstance(point, lr.parameterizations.TensorTrain | lr.FixedRankTrain):
            if k:
                flat = dense.reshape(int(np.prod(point.shape[:k])), -1)
                assert np.linalg.matrix_rank(flat) == point.rank[k - 1]
        else:
            rank = point.rank if isinstance(point, lr.CP) else point.rank[k]
            assert np.linalg.matrix_rank(unfold(dense, k, order)) <= rank


@pytest.mark.covers("P70", "P73", "P75")
@pytest.mark.parametrize("form, kind", [(lr.CP, lr.DiagonalCore), (lr.Tucker, lr.Core), (lr.TensorTrain, lr.Core)])
def test_slices_are_points_of_matrix_forms_that_apply_and_differentiate(form, kind):
    """A layer of a stack of updates, applied without the tensor; gradients reach the arrays through it."""
    point = form.random((3, 2, 6, 5), 2, np.random.default_rng(8)).map(torch.as_tensor)
    leaves = [a.clone().requires_grad_() for a in point.arrays()]
    x = torch.as_tensor(np.random.default_rng(9).standard_normal((4, 5)))
    part = type(point)(*leaves).matrix(2, 1)
    assert isinstance(part, kind)
    out = part.apply(x)
    assert torch.allclose(out, x @ point.dense()[2, 1].T)
    out.sum().backward()
    g = torch.zeros(point.shape, dtype=torch.float64)
    g[2, 1] = torch.ones(6, 1, dtype=torch.float64) @ x.sum(0)[None]
    for leaf, expected in zip(leaves, point.pullback(g).arrays(), strict=True):
        assert torch.allclose(leaf.grad, expected)


@EVERY
def test_points_can_be_pickled_and_made_from_arrays(form):
    shape = (4, 5, 2, 3, 2)[: form.settings[0] if form.settings else 4]
    point = form.random(shape, 2, np.random.default_rng(10))
    again = pickle.loads(pickle.dumps(point))
    assert type(again) is type(point)
    assert np.array_equal(again.dense(), point.dense())
    assert isinstance(point, form)


def test_the_class_for_an_order_is_found_from_the_arrays():
    rng = np.random.default_rng(11)
    assert type(lr.CP(*(rng.standard_normal((n, 2)) for n in (3, 4, 5)))) is lr.CP.of(3)
    assert type(lr.TensorTrain(np.ones((1, 2, 1)), np.ones((1, 3, 1)))) is lr.TensorTrain.of(2)
    assert lr.Tucker.of(3, (0, 1, 2)) is lr.Tucker.of(3)


@FLAT
def test_scaled_steps_do_not_see_the_gauge(form):
    rng = np.random.default_rng(12)
    target = rng.standard_normal((4, 5, 6))
    problem, ends = lr.TensorFactorization(target), []
    point = form.random((4, 5, 6), 2, rng)
    for start in (point, point.gauge(point.random_gauge(rng))):
        ends.append(lr.solve(problem, start, lr.ScaledGD(0.1), max_iter=10, tol=0).point.dense())
    assert np.allclose(*ends, atol=1e-9)


def test_distance_keeps_small_differences():
    point = lr.Tucker.random((5, 6, 7), 2, np.random.default_rng(13))
    core, *factors = point.arrays()
    near = type(point)(core * (1 + 1e-12), *factors)
    assert np.isclose(near.distance(point), 1e-12 * point.frobenius(), rtol=1e-2)


@pytest.mark.slow  # the import of the compiler
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")
@pytest.mark.parametrize("form", [lr.CP, lr.Tucker, lr.TensorTrain], ids=lambda f: f.__name__)
def test_a_scaled_step_traces_as_one_graph(form):
    rng = np.random.default_rng(14)
    point = form.random((4, 5, 6), 2, rng).map(torch.as_tensor)
    target, kind = torch.as_tensor(rng.standard_normal((4, 5, 6))), type(point)

    def step(arrays):
        here = kind(*arrays)
        return here.retract(here.whiten(here.pullback(here.dense() - target), 0.1), 0.1).arrays()

    expected = step(point.arrays())
    torch._dynamo.reset()
    traced = torch.compile(step, fullgraph=True, backend="eager")(point.arrays())
    assert all(torch.allclose(a, b) for a, b in zip(traced, expected, strict=True))


BAD = {
    "one mode": (lambda: lr.CP.of(1), ValueError, "at least 2 modes"),
    "rank of zero": (lambda: lr.CP.shapes((3, 4, 5), 0), ValueError, "positive integer, got 0"),
    "several ranks for CP": (lambda: lr.CP.shapes((3, 4, 5), (1, 2, 3)), ValueError, "positive integer"),
    "order that does not fit": (lambda: lr.CP.of(3).shapes((3, 4), 2), ValueError, "CP3 holds tensors with 3 modes"),
    "too few ranks": (lambda: lr.Tucker.shapes((3, 4, 5), (2, 2)), ValueError, "3 of them, one per mode"),
    "rank above a mode": (lambda: lr.Tucker.shapes((3, 4, 5), (4, 2, 2)), ValueError, "does not fit shape"),
    "rank above the others": (lambda: lr.Tucker.shapes((9, 4, 5), (5, 2, 2)), ValueError, "product of the others"),
    "rank above all modes": (lambda: lr.Tucker.shapes((3, 4, 5), 6), ValueError, "between 1 and the largest mode"),
    "modes of Tucker": (lambda: lr.Tucker.of(3, (0, 3)), ValueError, r"modes must be some of 0..2"),
    "too many bonds": (lambda: lr.TensorTrain.shapes((3, 4, 5), (2, 2, 2)), ValueError, "2 of them, one per bond"),
    "rank above a bond": (lambda: lr.TensorTrain.shapes((3, 4, 5), (4, 2)), ValueError, "bonds hold at most"),
    "rank above all bonds": (lambda: lr.TensorTrain.shapes((3, 4, 5), 9), ValueError, "between 1 and 5"),
    "index of a slice": (
        lambda: lr.CP.random((3, 4, 5), 2, np.random.default_rng(0)).matrix(),
        ValueError,
        "index must hold 1 integers",
    ),
}


@pytest.mark.parametrize("make, error, message", BAD.values(), ids=BAD)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
