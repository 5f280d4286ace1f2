"""Structured forms: published sizes, reachable ranks and dimensions, and the algebra behind them."""

import pickle

import numpy as np
import pytest
import scipy.linalg

import lowrank_sp as lr
from lowrank_sp.parameterizations.hadamard import khatri_rao
from lowrank_sp.parameterizations.kronecker import largest_divisor

RNG = np.random.default_rng
SHAPE = (12, 8)
SPARSE = lr.LowRankPlusSparse.on([0, 3, 3, 7, 11], [1, 0, 2, 7, 4], SHAPE)
GRID, DIAGONAL = lr.BlockGrid.of(2, 4), lr.BlockDiagonal.of(4)
STRUCTURED = [
    lr.Core,
    lr.DiagonalCore,
    lr.Hadamard,
    lr.Kronecker,
    lr.Kronecker.of(4, 2),
    lr.BlockGrid,
    GRID,
    lr.BlockDiagonal,
    DIAGONAL,
    lr.LowRankPlusSparse,
    SPARSE,
]


def named(forms):
    return pytest.mark.parametrize("form", forms, ids=lambda f: f.__name__)


# Input and output sizes of the seven linear maps of one layer of Llama-3.1-8B, which has 32 such layers.
LAYER = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]


@pytest.mark.covers("P08", "P23", "P29", "P30", "P44", "P45", "P46", "P48", "P50", "P51")
@pytest.mark.parametrize(
    "form, size, count",
    [
        (lr.Core, 3, lambda m, n: (m + n) * 3 + 9),
        (lr.DiagonalCore, 3, lambda m, n: (m + n + 1) * 3),
        (lr.Hadamard, 2, lambda m, n: 2 * (m + n) * 2),
        (lr.Kronecker.of(4, 2), 1, lambda m, n: 4 * 2 + m // 4 * (n // 2)),
        (lr.Kronecker.of(4, 2), 3, lambda m, n: 3 * (4 * 2 + m // 4 * (n // 2))),
        (lr.BlockGrid, 2, lambda m, n: 2 * (m + n) * 2),
        (GRID, 1, lambda m, n: 2 * 4 * (m // 2 + n // 4)),
        (lr.BlockDiagonal, 3, lambda m, n: (m + n) * 3),
        (DIAGONAL, 2, lambda m, n: (m + n) * 2),
        (SPARSE, 2, lambda m, n: (m + n) * 2 + 5),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_parameter_count_is_the_published_one(form, size, count):
    point = form.random(SHAPE, size, RNG(0))
    assert sum(a.size for a in point.arrays()) == form.parameter_count(SHAPE, size) == count(*SHAPE)


@pytest.mark.covers("P29", "P46")
@pytest.mark.parametrize("form, size, millions", [(lr.Core, 8, 20_985_856), (lr.Hadamard, 4, 20_971_520)])
def test_parameter_count_of_a_published_model(form, size, millions):
    assert 32 * sum(form.parameter_count(shape, size) for shape in LAYER) == millions


# rank and dimension ---------------------------------------------------------------------------------------


def jacobian(point):
    """The differential as a real matrix, column by column."""
    zero, columns = point.map(lambda a: 0 * a), []
    for i, array in enumerate(point.arrays()):
        for unit in np.eye(array.size).reshape(-1, *array.shape):
            columns.append(point.pushforward(zero.with_array(i, unit)).reshape(-1))
    return np.stack(columns, -1)


@pytest.mark.covers("P44", "P45", "P46", "P48", "P51", "T01", "T02", "T06", "T14")
@pytest.mark.parametrize(
    "form, size, rank, gauge",
    [
        (lr.Core, 3, 3, 2 * 3**2),
        (lr.DiagonalCore, 3, 3, 3**2 + 3),
        (lr.Hadamard, 2, 4, 2 * 2**2 + 12 + 8 - 1),
        (lr.Hadamard, 3, 8, 2 * 3**2 + 12 + 8 - 1),  # full rank, but not all matrices
        (lr.Hadamard, 4, 8, 2 * 4**2 + 12 + 8 - 1),  # more parameters than a matrix has entries
        (lr.Kronecker, 1, 8, 1),
        (lr.Kronecker.of(6, 1), 1, 2, 1),
        (lr.Kronecker.of(4, 2), 3, 8, 3**2),
        (lr.BlockGrid, 1, 4, 4 * 1),
        (GRID, 1, 8, 8 * 1),
        (lr.BlockDiagonal, 2, 4, 2 * 2**2),
        (DIAGONAL, 1, 4, 4),
        (lr.LowRankPlusSparse, 2, 8, 2**2),
        (SPARSE, 2, 6, 2**2),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_reachable_rank_and_dimension(form, size, rank, gauge):
    """The rank of a random point, and the Jacobian rank against the parameters less those of the gauge group."""
    point = form.random(SHAPE, size, RNG(1))
    assert point.rank == np.linalg.matrix_rank(point.dense()) == rank
    count = form.parameter_count(SHAPE, size)
    assert np.linalg.matrix_rank(jacobian(point)) == min(count - gauge, SHAPE[0] * SHAPE[1])


@pytest.mark.covers("T14")
def test_the_matched_budget_of_the_block_forms():
    """256 x 256 and 2048 parameters: rank 16 for MELoRA, 8 for a 2 x 2 grid, 4 for LoRA."""
    forms = {16: (lr.BlockDiagonal.of(4), 4), 8: (lr.BlockGrid, 2), 4: (lr.BurerMonteiro, 4)}
    for rank, (form, size) in forms.items():
        point = form.random((256, 256), size, RNG(0))
        assert form.parameter_count((256, 256), size) == 2048
        assert point.rank == np.linalg.matrix_rank(point.dense()) == rank


@pytest.mark.covers("T02", "D18")
@pytest.mark.parametrize("size", [6, 20, 100])
def test_hadamard_products_of_rank_two_miss_matrices_of_rank_four(size):
    """The dimension proves it from m + n = 10 on; the published inequality is false at r = 2 for every size."""
    m = n = size
    r = 2
    assert r**2 * (m + n - r**2) < 2 * r * (m + n - r)
    assert r**2 * (m + n - r**2) > 2 * r * (m + n - r) - (m + n - 1)
    if size == 6:
        point = lr.Hadamard.random((m, n), r, RNG(0))
        assert np.linalg.matrix_rank(jacobian(point)) == 2 * r * (m + n - r) - (m + n - 1)


# the matrices, by independent code ------------------------------------------------------------------------


def complex_point(form, size, seed=0):
    rng = RNG(seed)
    return form.random(SHAPE, size, rng).map(lambda a: a + 1j * rng.standard_normal(a.shape))


@pytest.mark.covers("P48", "P50", "D09", "T04")
def test_kronecker_is_a_sum_of_kronecker_products():
    point = complex_point(lr.Kronecker.of(4, 2), 3)
    expected = np.sum([np.kron(x, y) for x, y in zip(*point.arrays(), strict=True)], axis=0)
    assert expected.shape == SHAPE
    assert np.allclose(point.dense(), expected)


@pytest.mark.covers("P44")
def test_block_diagonal_is_that_of_scipy():
    point = complex_point(DIAGONAL, 2)
    assert np.allclose(point.dense(), scipy.linalg.block_diag(*(point.left @ point.right.mT.conj())))


@pytest.mark.covers("P45")
def test_block_grid_is_that_of_numpy():
    point = complex_point(GRID, 2)
    blocks = [[point.left[i, j] @ point.right[i, j].T.conj() for j in range(4)] for i in range(2)]
    assert np.allclose(point.dense(), np.block(blocks))


@pytest.mark.covers("P46", "T07")
def test_hadamard_entry_by_entry_and_through_the_khatri_rao_product():
    point = complex_point(lr.Hadamard, 3)
    x1, y1, x2, y2 = point.arrays()
    for i, j in np.ndindex(*SHAPE):
        assert np.isclose(point.dense()[i, j], (x1[i] @ y1[j].conj()) * (x2[i] @ y2[j].conj()))
    left, right = (scipy.linalg.khatri_rao(a.T, b.T).T for a, b in ((x1, x2), (y1, y2)))
    assert np.allclose(khatri_rao(x1, x2), left)
    assert np.allclose(point.dense(), left @ right.T.conj())


@pytest.mark.covers("P08", "P29")
def test_cores_in_the_middle():
    full, gated = complex_point(lr.Core, 3), complex_point(lr.DiagonalCore, 3)
    assert np.allclose(full.dense(), full.left @ full.core @ full.right.T.conj())
    assert np.allclose(gated.dense(), gated.left @ np.diag(gated.values) @ gated.right.T.conj())


@pytest.mark.covers("P30")
def test_a_core_may_be_rectangular():
    rng = RNG(0)
    point = lr.Core(rng.standard_normal((7, 4)), rng.standard_normal((4, 2)), rng.standard_normal((6, 2)))
    g = rng.standard_normal((7, 6))
    assert point.rank == np.linalg.matrix_rank(point.dense()) == 2
    tangent = point.map(lambda a: rng.standard_normal(a.shape))
    assert np.isclose((point.pushforward(tangent) * g).sum(), tangent.inner(point.pullback(g)))


@pytest.mark.covers("P51")
def test_sparse_part_has_its_values_on_the_support_alone():
    point = complex_point(SPARSE, 2)
    expected = point.left @ point.right.T.conj()
    for i, j, value in zip([0, 3, 3, 7, 11], [1, 0, 2, 7, 4], point.values, strict=True):
        expected[i, j] += value
    assert np.allclose(point.dense(), expected)
    white = point.whiten(point, 0.5)
    assert np.allclose(white.values, point.values / 1.5)
    assert np.allclose(white.left, point.low_rank().whiten(point.low_rank(), 0.5).left)


# what a form can and cannot represent ---------------------------------------------------------------------


@pytest.mark.covers("T02", "T06")
@named([f for f in STRUCTURED if f.universal])
def test_universal_forms_hold_every_matrix_of_their_size(form):
    left, right = (RNG(2).standard_normal((k, 3)) for k in SHAPE)
    point = form.from_product(left, right)
    assert np.allclose(point.dense(), left @ right.T)
    assert np.isfinite(point.dense()).all()


@pytest.mark.covers("T04")
def test_two_corners_are_no_single_kronecker_product():
    corners = np.diag([1.0, 0.0, 0.0, 1.0])
    one, two = (lr.Kronecker.from_product(corners, np.eye(4), k) for k in (1, 2))
    assert np.isclose(np.linalg.norm(one.dense() - corners), 1.0)
    assert np.allclose(two.dense(), corners)


@pytest.mark.covers("T04")
def test_rank_of_a_kronecker_product_is_the_product_of_the_ranks():
    rng = RNG(3)
    for a, b in ((1, 1), (1, 2), (2, 2), (2, 3)):
        x, y = (rng.standard_normal((4, r)) @ rng.standard_normal((r, 3)) for r in (a, b))
        assert np.linalg.matrix_rank(lr.Kronecker(x[None], y[None]).dense()) == a * b


@pytest.mark.covers("T03")
def test_hadamard_product_with_a_fixed_matrix():
    """HiRA's W o (X Y^T): rank at most rank(W) r, and for the identity no more than diagonal matrices."""
    point = lr.Hadamard(*(RNG(4).standard_normal((9, r)) for r in (2, 2, 3, 3)))
    assert np.linalg.matrix_rank(point.dense()) == 6
    diagonal = lr.Hadamard(point.left, point.right, np.eye(9), np.eye(9)).dense()
    assert np.allclose(diagonal, np.diag(np.diagonal(diagonal)))


@pytest.mark.covers("T01")
def test_rank_inequalities_of_compositions():
    rng = RNG(5)
    a, b = (rng.standard_normal((10, r)) @ rng.standard_normal((r, 10)) for r in (2, 3))
    rank = np.linalg.matrix_rank
    assert rank(a + b) == 5
    assert rank(a * b) == 6
    assert rank(a @ b) == 2
    assert rank(np.hstack((a, b))) == 5
    assert rank(np.hstack((a, 2 * a))) == 2
    assert rank(scipy.linalg.block_diag(a, b)) == 5


@pytest.mark.covers("T05")
def test_random_supports_have_full_rank_from_log_n_over_n_on():
    rng, n = RNG(6), 64
    for factor, full in ((0.5, False), (4.0, True)):
        for _ in range(30):
            support = rng.random((n, n)) < factor * np.log(n) / n
            assert (np.linalg.matrix_rank(support) == n) == full


@named([f for f in STRUCTURED if not f.universal])
def test_from_product_is_the_nearest_matrix_of_the_form(form):
    """No farther than what alternating scaled gradient descent finds from several starts."""
    target = RNG(7).standard_normal(SHAPE)
    problem = lr.MatrixFactorization(target)
    nearest = form.from_product(target, np.eye(SHAPE[1]), 1)
    gap = np.linalg.norm(nearest.dense() - target)
    for seed in range(3):
        start = form.random(SHAPE, 1, RNG(seed))
        found = lr.solve(problem, start, lr.AltScaledGD(), max_iter=200).fun
        assert gap <= (2 * found) ** 0.5 * (1 + 1e-9)


# settings that are not arrays -----------------------------------------------------------------------------


@named(STRUCTURED)
def test_settings_survive_what_makes_new_points(form):
    rng = RNG(8)
    point = form.random(SHAPE, 1, rng)
    moved = point.retract(point.map(lambda a: rng.standard_normal(a.shape)), 0.1)
    for new in (moved, moved + point, point.with_array(0, point.arrays()[0]), pickle.loads(pickle.dumps(point))):
        assert type(new) is form
    assert np.array_equal(pickle.loads(pickle.dumps(point)).dense(), point.dense())


def test_equal_settings_are_the_same_form():
    assert lr.BlockGrid.of(2, 4) is GRID
    assert lr.BlockGrid.of(4, 2) is not GRID
    assert GRID.of(2, 4) is GRID
    assert lr.LowRankPlusSparse.on([11, 7, 3, 3, 0], [4, 7, 2, 0, 1], SHAPE) is SPARSE
    assert lr.LowRankPlusSparse.on([11, 7, 3, 3, 1], [4, 7, 2, 0, 1], SHAPE) is not SPARSE


def test_divisors_nearest_to_the_square_root():
    assert [largest_divisor(n, n) for n in (1, 7, 12, 36, 768, 4096)] == [1, 1, 3, 6, 24, 64]
    assert largest_divisor(4096, 32) == 32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lr.BlockGrid.of(0, 2), "positive integers"),
        (lambda: lr.BlockDiagonal.of(1.5), "positive integers"),
        (lambda: lr.Kronecker.of(2, 0), "positive integer"),
        (lambda: lr.BlockGrid.shapes((7, 8), 1), "must divide the shape"),
        (lambda: lr.BlockGrid.shapes((8, 8), 5), "rank at most 4, got 5"),
        (lambda: lr.Kronecker.of(5, 2).shapes(SHAPE, 1), "must divide the shape"),
        (lambda: lr.Kronecker.shapes(SHAPE, 7), "at most 6 independent"),
        (lambda: lr.LowRankPlusSparse.on([], [], SHAPE), "positive length"),
        (lambda: lr.LowRankPlusSparse.on([0, 0], [1, 1], SHAPE), "repeats 1"),
        (lambda: lr.LowRankPlusSparse.on([12], [1], SHAPE), "outside"),
        (lambda: SPARSE.shapes((8, 12), 1), r"belongs to the shape \(12, 8\)"),
        (lambda: lr.inits.gaussian(lr.MatrixFactorization(np.eye(7)), lr.BlockGrid, 2), "must divide"),
    ],
)
def test_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
