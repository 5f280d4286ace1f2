"""Ranks of updates that are composed of smaller ones, and factors as direction times magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

import lowrank_sp as lr
from lowrank_sp import xp
from lowrank_sp.parameterizations import Core


def drawn(form, shape, rank, seed=0):
    return form.random(shape, rank, np.random.default_rng(seed))


def rank_of(matrix) -> int:
    return int(np.linalg.matrix_rank(matrix))


A, B = drawn(lr.BurerMonteiro, (12, 12), 2).dense(), drawn(lr.BurerMonteiro, (12, 12), 3, seed=1).dense()

# What is composed, the form that holds the composition, its size, and the rank that generic parts reach.
COMPOSED = {
    "sum": (A + B, lr.BurerMonteiro, 5, 5),
    "elementwise product": (A * B, lr.Hadamard, 3, 6),
    "Kronecker product": (np.kron(A, B), None, 0, 6),
    "product": (A @ B, lr.BurerMonteiro, 2, 2),
    "concatenation": (np.hstack((A, B)), lr.BurerMonteiro, 5, 5),
    "blocks on the diagonal": (scipy.linalg.block_diag(A, B), lr.BlockDiagonal, 3, 5),
}


@pytest.mark.covers("P55", "T01")
@pytest.mark.parametrize("name", COMPOSED)
def test_ranks_of_compositions(name):
    """Generic parts of rank 2 and 3 reach the bound: their sum 5, products elementwise 6, and so on."""
    matrix, form, size, rank = COMPOSED[name]
    assert rank_of(matrix) == rank
    if form is not None:
        assert form.from_product(*_factors(matrix, 12), size).shape == matrix.shape
    if form in (lr.BurerMonteiro, lr.BlockDiagonal):  # what these forms hold, they hold exactly
        assert np.allclose(form.from_product(*_factors(matrix, rank), size).dense(), matrix)


def _factors(matrix, rank):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank].T


@pytest.mark.covers("P55")
@pytest.mark.parametrize(
    ("form", "shape", "size", "rank"),
    [
        (lr.Hadamard, (12, 10), 2, 4),
        (lr.Kronecker.of(3, 2), (12, 10), 1, 2 * 4),
        (lr.BlockDiagonal.of(3), (12, 9), 2, 6),
        (lr.BlockGrid.of(2, 2), (12, 10), 1, 4),
        (Core, (12, 10), 2, 2),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_composed_forms_reach_the_rank_of_the_rule(form, shape, size, rank):
    point = drawn(form, shape, size)
    assert rank_of(point.dense()) == point.rank == rank


@pytest.mark.covers("P98")
@pytest.mark.parametrize("seed", range(3))
def test_factors_are_directions_times_magnitudes(seed):
    """``X = U S`` with orthonormal U and positive S, so that ``X Y^T = U (S_1 S_2) V^T``, which is a point of PoLAR."""
    point = drawn(lr.BurerMonteiro, (9, 7), 3, seed)
    sides, magnitudes = [], []
    for factor in point.arrays():
        u, s = scipy.linalg.polar(factor)
        assert np.allclose(xp.polar(factor), u)
        assert np.allclose(s, xp.power_psd(factor.T @ factor, 0.5))
        sides.append(u)
        magnitudes.append(s)
    core = magnitudes[0] @ magnitudes[1]
    assert np.allclose(lr.PoLAR(sides[0], core, sides[1]).dense(), point.dense())
    assert not np.allclose(core, core.T)  # magnitudes are symmetric, their product is not: the core is free
    turned = point.to(lr.PoLAR)
    assert np.allclose(turned.left @ turned.left.T, sides[0] @ sides[0].T)
    values = (np.linalg.svd(c, compute_uv=False) for c in (turned.core, core))
    assert np.allclose(*values)
