"""The hierarchical Tucker form against sums written out, singular values of matricizations, and recovery."""

import pickle

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.testing import check_parameterization

HT = lr.HierarchicalTucker


def matricized(tensor, modes):
    """Rows of some modes against columns of the others."""
    others = [k for k in range(tensor.ndim) if k not in modes]
    return tensor.transpose(*modes, *others).reshape(int(np.prod([tensor.shape[k] for k in modes])), -1)


def tail(matrix, rank):
    """The distance to the matrices of a rank."""
    return np.sqrt((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())


@pytest.mark.covers("P79")
def test_four_modes_written_out():
    point = HT.random((3, 4, 2, 5), 2, np.random.default_rng(0))
    root, left, right, u, v, w, z = point.arrays()
    expected = np.einsum("pq,pab,qcd,ia,jb,kc,ld->ijkl", root[0], left, right, u, v, w, z)
    assert np.allclose(point.dense(), expected)
    assert point.names == ("root", "node1", "node2", "factor0", "factor1", "factor2", "factor3")


@pytest.mark.covers("P79")
def test_three_and_five_modes_written_out():
    rng = np.random.default_rng(1)
    root, node, u, v, w = HT.random((3, 4, 5), 2, rng).arrays()
    expected = np.einsum("pq,pab,ia,jb,kq->ijk", root[0], node, u, v, w)
    assert np.allclose(HT(root, node, u, v, w).dense(), expected)
    point = HT.random((2, 3, 4, 3, 2), (2, 3, 4, 2, 2, 4, 3, 4), rng)
    root, left, deep, right, *u = point.arrays()
    expected = np.einsum("pq,pac,abd,qef,ib,jd,kc,le,mf->ijklm", root[0], left, deep, right, u[0], u[1], *u[2:])
    assert np.allclose(point.dense(), expected)
    assert point.rank == (2, 3, 4, 2, 2, 4, 3, 4)


@pytest.mark.covers("P79")
def test_two_modes_are_three_factors():
    root, u, v = HT.random((5, 4), 2, np.random.default_rng(2)).arrays()
    assert np.allclose(HT(root, u, v).dense(), u @ root[0] @ v.T)


@pytest.mark.covers("P79")
def test_parameter_counts_grow_linearly_with_the_modes():
    n, r = 12, 3
    for order in range(3, 8):
        assert HT.parameter_count((n,) * order, r) == order * n * r + (order - 2) * r**3 + r**2


@pytest.mark.covers("P79")
def test_sizes_of_the_nodes_are_the_ranks_of_their_matricizations():
    point = HT.random((4, 5, 6, 3), (3, 4, 2, 3, 5, 5), np.random.default_rng(3))
    dense = point.dense()
    groups = [(0,), (1,), (2,), (3,), (0, 1), (2, 3)]
    assert tuple(np.linalg.matrix_rank(matricized(dense, g)) for g in groups) == point.rank
    assert HT.of(4).parameter_count((4, 5, 6, 3), (3, 4, 2, 3, 5, 5)) == sum(a.size for a in point.arrays())


@pytest.mark.covers("P79")
def test_truncation_is_within_the_bound_of_the_singular_values():
    tensor = np.random.default_rng(4).standard_normal((5, 4, 6, 3))
    ranks = (3, 3, 4, 2, 4, 4)
    point = HT.from_tensor(tensor, ranks)
    groups = [(0,), (1,), (2,), (3,), (0, 1)]  # (2, 3) has the singular values of (0, 1)
    tails = [tail(matricized(tensor, g), r) for g, r in zip(groups, ranks, strict=False)]
    error = np.linalg.norm(point.dense() - tensor)
    assert max(tails) <= error <= np.linalg.norm(tails)
    best = HT.from_tensor(point.dense(), ranks)
    assert np.allclose(best.dense(), point.dense())


@pytest.mark.covers("P79")
def test_the_first_factor_spans_the_leading_singular_vectors_of_tensorlys_unfolding():
    tensorly = pytest.importorskip("tensorly")
    tensorly.set_backend("numpy")
    tensor = np.random.default_rng(5).standard_normal((5, 4, 6, 3))
    factor = HT.from_tensor(tensor, 3).arrays()[3]
    leading = np.linalg.svd(tensorly.unfold(tensor, 0))[0][:, :3]
    assert np.allclose(factor @ factor.T, leading @ leading.T)


def test_balanced_frames_are_orthonormal():
    point = HT.random((4, 5, 6, 3, 2), 2, np.random.default_rng(6))
    root, *rest = point.balanced().arrays()
    for array in rest:
        rows = array.reshape(array.shape[0], -1) if array.ndim == 3 else array.T
        assert np.allclose(rows @ rows.T, np.eye(len(rows)))
    assert np.isclose(np.linalg.norm(root), point.frobenius())


@pytest.mark.parametrize("order", [2, 3, 5])
def test_contract_at_other_orders(order):
    for rank in (1, 3):
        check_parameterization(HT.of(order), rank=rank, seed=order)


@pytest.mark.covers("P79")
def test_missing_entries_are_found_from_a_spectral_start():
    truth = HT.random((8, 7, 6, 5), 2, np.random.default_rng(7))
    dense = truth.dense()
    seen = np.random.default_rng(8).random(dense.shape) < 0.4
    result = lr.complete_tensor(np.where(seen, dense, np.nan), 2, HT, max_iter=300)
    assert isinstance(result.point, HT)
    assert np.linalg.norm(result.point.dense() - dense) < 1e-4 * np.linalg.norm(dense)


@pytest.mark.parametrize("solver", [lr.ScaledGD, lr.ScaledCG, lr.AltScaledGD])
def test_solvers_reach_the_tensor(solver):
    problem = lr.TensorFactorization(HT.random((6, 5, 4, 3), 2, np.random.default_rng(10)).dense())
    start = lr.inits.spectral(problem, HT, 2).map(lambda a: a + 0.1 * np.cos(np.arange(a.size)).reshape(a.shape))
    result = lr.solve(problem, start, solver(), max_iter=200, tol=1e-12)
    assert np.linalg.norm(result.point.dense() - problem.data) < 1e-5 * np.linalg.norm(problem.data)


def test_a_point_survives_pickling_and_torch():
    point = HT.random((4, 3, 2), 2, np.random.default_rng(9))
    again = pickle.loads(pickle.dumps(point))
    assert type(again) is type(point)
    assert np.array_equal(again.dense(), point.dense())
    assert np.allclose(point.map(torch.as_tensor).dense().numpy(), point.dense())


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "positive integer or 6 of them, one per mode and one per inner node"),
        ((2, 2, 2, 2), "positive integer or 6 of them"),
        (9, "between 1 and the largest mode"),
        ((2, 2, 2, 2, 5, 5), r"at most \(2, 2, 2, 2, 4, 4\)"),
        ((2, 2, 2, 2, 2, 3), r"at most \(2, 2, 2, 2, 2, 2\)"),
    ],
)
def test_sizes_that_do_not_fit_say_what_would(rank, message):
    with pytest.raises(ValueError, match=message):
        HT.shapes((4, 5, 6, 3), rank)


def test_shapes_and_indices_that_do_not_fit():
    with pytest.raises(ValueError, match="at least 2 modes"):
        HT.of(1)
    with pytest.raises(ValueError, match="holds tensors with 3 modes"):
        HT.of(3).shapes((2, 2), 1)
    with pytest.raises(ValueError, match="1 integers, one per mode"):
        HT.random((3, 4, 5), 2, np.random.default_rng(0)).matrix(1, 2)
