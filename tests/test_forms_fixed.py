"""Forms that carry fixed arrays: what moves, published parameter counts, and the matrices by independent code."""

import pickle

import numpy as np
import pytest
import scipy.linalg

import lowrank_sp as lr
from lowrank_sp.operators import Pattern, SampledMatrix
from lowrank_sp.parameterizations import column_support, largest_support, square_size, uniform_support
from lowrank_sp.spaces import FIXED
from lowrank_sp.testing import check_parameterization, check_rule

RNG = np.random.default_rng
SHAPE = (12, 8)
CARRYING = [form for form in lr.FORMS.values() if FIXED in form.spaces]
VARIANTS = [
    (lr.NoLA.of(4), SHAPE, 5),
    (lr.RandLoRA, (5, 7), 2),
    (lr.RandLoRA, (8, 5), 3),
    (lr.RandLoRA.of(4), SHAPE, 2),
    (lr.LoKr, SHAPE, 2),
    (lr.LoKr.of(2), SHAPE, 4),
    (lr.LoKrSmall, SHAPE, 2),
    (lr.RaggedGrid.of([[2, 0, 1], [1, 1, 3]]), (8, 9), 1),
    (lr.RaggedGrid.of([[2, 0], [0, 1]]), SHAPE, 2),
    (lr.GroupedSquare, (9, 7), 5),
    (lr.RotatedSquare, (8, 8), 4),
    (lr.RotatedSquare, (7, 10), 4),
    (lr.RotatedSquare, (13, 6), 4),
    (lr.Fourier, SHAPE, 30),
    (lr.Sparse, SHAPE, 40),
]
# Input and output sizes of the seven linear maps of one layer of Llama-3.1-8B, which has 32 such layers.
LAYER = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]


def named(forms):
    return pytest.mark.parametrize("form", forms, ids=lambda f: f.__name__)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("form, shape, size", VARIANTS, ids=lambda v: v.__name__ if isinstance(v, type) else None)
def test_contract_of_forms_with_settings(form, shape, size, library, batch, dtype):
    check_parameterization(form, shape, size, library=library, batch=batch, dtype=dtype)


@pytest.mark.parametrize("rule", ["scaled", "adam", "scaled+momentum"])
@named([lr.NoLA.of(1), lr.RandLoRA.of(3), lr.LoKr.of(2), lr.RaggedGrid.of([[1, 0], [1, 2]])])
def test_rules_on_forms_with_settings(form, rule):
    check_rule(lr.RULES[rule], form)


# what moves -----------------------------------------------------------------------------------------------


@named(CARRYING)
@pytest.mark.parametrize("solver", [lr.GD(), lr.AltGD(), lr.ScaledGD(0.5), lr.AltScaledGD()], ids=lambda s: s.name)
def test_solvers_lower_the_loss_and_leave_fixed_arrays_alone(form, solver):
    start = form.random(SHAPE, 2, RNG(0))
    form = type(start)
    problem = lr.MatrixFactorization(RNG(1).standard_normal(SHAPE))
    result = lr.solve(problem, start, solver, max_iter=20)
    assert result.fun < result.history["loss"][0]
    for space, a, b in zip(form.spaces, start.arrays(), result.point.arrays(), strict=True):
        assert np.array_equal(a, b) == (space is FIXED)
        assert a.dtype == b.dtype


@named([lr.FrozenRight, lr.FrozenCore, lr.FrozenValues, lr.GroupedSquare, lr.RotatedSquare, lr.Fourier, lr.Sparse])
def test_one_undamped_scaled_step_solves_what_is_linear(form):
    """With one array that moves, ScaledGD with step one is the least-squares solution."""
    start = form.random(SHAPE, 3, RNG(2))
    target = RNG(3).standard_normal(SHAPE)
    problem = lr.MatrixFactorization(target)
    end = start.retract(start.whiten(problem.gradient(start)), 1.0)
    moving = next(i for i, space in enumerate(start.spaces) if space is not FIXED)
    units = np.eye(start.arrays()[moving].size).reshape(-1, *start.arrays()[moving].shape)
    design = np.stack([start.with_array(moving, unit).dense().reshape(-1) for unit in units], -1)
    expected = design @ np.linalg.lstsq(design, target.reshape(-1), rcond=None)[0]
    assert np.allclose(end.dense().reshape(-1), expected, atol=1e-10)


@named(CARRYING)
def test_points_survive_what_makes_new_ones(form):
    rng = RNG(4)
    point = form.random(SHAPE, 2, rng)
    direction = point.map(lambda a: rng.standard_normal(a.shape))
    again = pickle.loads(pickle.dumps(point))
    assert type(again) is type(point)
    assert np.array_equal(again.dense(), point.dense())
    assert not any(p.any() for p, s in zip(point.project(direction).arrays(), point.spaces, strict=True) if s is FIXED)


@named([form for form in lr.FORMS.values() if not form.converts])
def test_forms_without_a_nearest_point_refuse_to_convert(form):
    point = lr.BurerMonteiro.random(SHAPE, 2, RNG(5))
    with pytest.raises(TypeError, match=f"{form.__name__} has no conversion"):
        point.to(form)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@named([lr.Sparse, lr.Fourier])
def test_a_batch_whose_elements_have_their_own_indices(form, library):
    """Also against sampled gradients, whose pattern is shared."""
    from lowrank_sp.testing.common import in_library

    rng = RNG(6)
    point = form.random(SHAPE, 6, rng, (3,))
    assert not np.array_equal(point.arrays()[1][0], point.arrays()[1][1])
    g = rng.standard_normal((3, *SHAPE)) * (rng.random(SHAPE) < 0.5)
    rows, cols = g[0].nonzero()
    pattern = Pattern(*(in_library(a, library) for a in (rows, cols)), SHAPE)
    sampled = SampledMatrix(pattern, in_library(g[:, rows, cols], library))
    got = in_library(point, library).pullback(sampled).values
    for k in range(3):
        alone = point.map(lambda a, k=k: a[k])
        assert np.allclose(got[k], alone.pullback(g[k]).values, atol=1e-12)


# published parameter counts -------------------------------------------------------------------------------


@pytest.mark.covers("P03", "P05", "P31", "P32", "P33", "P34", "P45", "P49", "P52", "P53", "P54", "P61", "P68", "P69")
@pytest.mark.parametrize(
    "form, size, count",
    [
        (lr.FrozenRight, 3, lambda m, n: m * 3),
        (lr.FrozenCore, 3, lambda m, n: 9),
        (lr.FrozenValues, 3, lambda m, n: 3),
        (lr.VeRA, 3, lambda m, n: m + 3),
        (lr.NoLA, 5, lambda m, n: 2 * 5),
        (lr.RandLoRA, 3, lambda m, n: 3 * (3 + min(m, n))),
        (lr.LoKr, 2, lambda m, n: 3 * 2 + 2 * (m // 3 + n // 2)),
        (lr.LoKr.of(2), 2, lambda m, n: 2 * 2 + 2 * (m // 2 + n // 2)),
        (lr.LoKrSmall, 2, lambda m, n: 2 * (3 + 2) + m // 3 * (n // 2)),
        (lr.RaggedGrid.of([[2, 0], [1, 3]]), 1, lambda m, n: (m // 2 + n // 2) * 6),
        (lr.GroupedSquare, 5, lambda m, n: 25),
        (lr.RotatedSquare, 5, lambda m, n: 25),
        (lr.Fourier, 20, lambda m, n: 20),
        (lr.Sparse, 20, lambda m, n: 20),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_parameter_count_is_the_published_one(form, size, count):
    point = form.random(SHAPE, size, RNG(7))
    moving = sum(a.size for a, space in zip(point.arrays(), point.spaces, strict=True) if space is not FIXED)
    assert moving == form.parameter_count(SHAPE, size) == count(*SHAPE)


@pytest.mark.covers("P53")
def test_parameter_count_of_a_published_model():
    """With a limit, below which every layer has as many bases as the largest one."""
    form = lr.RandLoRA.of(1024)
    assert 32 * sum(form.parameter_count(shape, 32) for shape in LAYER) == 23_298_048


@pytest.mark.covers("P06")
def test_parameter_count_of_one_adapter_per_head():
    """``r d (h + 1)`` for h heads of a d x d projection, against ``2 r d`` for one adapter of all heads."""
    d, h, r = 64, 8, 3
    form = lr.BlockGrid.of(h, 1)
    assert form.parameter_count((d, d), r) == r * d * (h + 1)
    point = form.random((d, d), r, RNG(22))
    heads = [point.left[i, 0] @ point.right[i, 0].T for i in range(h)]
    assert np.allclose(point.dense(), np.concatenate(heads))


@pytest.mark.covers("P54")
def test_the_square_with_the_parameters_of_a_low_rank_adapter():
    assert square_size((4096, 4096), 8) == 256
    for shape in LAYER:
        assert 0 <= (shape[0] + shape[1]) * 8 - square_size(shape, 8) ** 2 <= 2 * square_size(shape, 8)
    with pytest.raises(ValueError, match="positive integer"):
        square_size(SHAPE, 0)


# the matrices, by independent code ------------------------------------------------------------------------


def complex_point(form, size, seed=8):
    rng = RNG(seed)
    point = form.random(SHAPE, size, rng)
    return point.map(lambda a: a if a.dtype.kind == "i" else a + 1j * rng.standard_normal(a.shape))


@pytest.mark.covers("P61")
def test_scaled_random_bases():
    b, left, d, right = complex_point(lr.VeRA, 3).arrays()
    expected = np.diag(b) @ left @ np.diag(d) @ right.conj().T
    assert np.allclose(lr.VeRA(b, left, d, right).dense(), expected)


@pytest.mark.covers("P68")
def test_combinations_of_random_bases():
    point = complex_point(lr.NoLA, 4)
    left, right = (
        np.sum([a * basis for a, basis in zip(weights, bases, strict=True)], 0)
        for weights, bases in ((point.left, point.left_bases), (point.right, point.right_bases))
    )
    assert np.allclose(point.dense(), left @ right.conj().T)


@pytest.mark.covers("P53")
@pytest.mark.parametrize("tall", [False, True])
def test_sums_of_scaled_bases_reach_full_rank(tall):
    shape = SHAPE if tall else SHAPE[::-1]
    point = lr.RandLoRA.random(shape, 2, RNG(9))
    terms = zip(point.scales, point.values, point.bases.swapaxes(0, 1), strict=True)
    expected = np.sum([np.diag(g) @ point.shared @ np.diag(d) @ basis.T for g, d, basis in terms], 0)
    assert np.allclose(point.dense(), expected.T if tall else expected)
    assert point.rank == np.linalg.matrix_rank(point.dense()) == 8
    assert lr.RandLoRA.of(4).random(shape, 2, RNG(9)).rank == 4


@pytest.mark.covers("P49", "D32")
@pytest.mark.parametrize("small_first", [True, False])
def test_kronecker_products_with_a_factor_of_low_rank(small_first):
    point = complex_point(lr.LoKr if small_first else lr.LoKrSmall, 2)
    low = point.left @ point.right.conj().T
    pair = (point.full, low) if small_first else (low, point.full)
    assert np.allclose(point.dense(), np.kron(*pair))
    assert point.rank == np.linalg.matrix_rank(point.dense())


@pytest.mark.covers("P45")
def test_blocks_with_their_own_ranks():
    form = lr.RaggedGrid.of([[2, 0], [1, 3]])
    point = complex_point(form, 1)
    parts = {(0, 0): slice(0, 2), (1, 0): slice(2, 3), (1, 1): slice(3, 6)}
    expected = np.zeros(SHAPE, complex)
    for (i, j), c in parts.items():
        expected[6 * i : 6 * i + 6, 4 * j : 4 * j + 4] = point.left[:, c] @ point.right[:, c].conj().T
    assert np.allclose(point.dense(), expected)
    ranks = [
        [np.linalg.matrix_rank(point.dense()[6 * i : 6 * i + 6, 4 * j : 4 * j + 4]) for j in (0, 1)] for i in (0, 1)
    ]
    assert ranks == [[2, 0], [1, 3]]
    diagonal = lr.RaggedGrid.of([[2, 0], [0, 1]]).random(SHAPE, 1, RNG(10))
    blocks = [diagonal.left[:, c] @ diagonal.right[:, c].T for c in (slice(0, 2), slice(2, 3))]
    assert np.allclose(diagonal.dense(), scipy.linalg.block_diag(*blocks))


@pytest.mark.covers("P54")
def test_square_matrices_with_shared_rows_and_columns():
    """Compressed by adding up chunks of the input, decompressed by repetition, as the published code does."""
    point = lr.GroupedSquare.random((10, 7), 3, RNG(11))
    x = RNG(12).standard_normal((4, 7))
    padded = np.concatenate((x, np.zeros((4, 2))), 1).reshape(4, 3, 3).sum(1)
    expected = np.tile(padded @ point.square.T, (1, 4))[:, :10]
    assert np.allclose(point.apply(x), expected)


@pytest.mark.covers("P54")
@pytest.mark.parametrize("m", [6, 8, 20])
def test_square_matrices_with_rotated_groups(m):
    """Each group as complex numbers, turned by their argument; the last group filled up from the front."""
    n, k = 10, 4
    point = lr.RotatedSquare.random((m, n), k, RNG(13))
    x = RNG(14).standard_normal(n)
    groups = np.concatenate((x, x[:2])).reshape(3, k)
    phases = np.exp(1j * np.outer(np.arange(3), 10000.0 ** (-2 * np.arange(2) / k)))
    turned = (groups[:, :2] + 1j * groups[:, 2:]) * phases
    out = (np.concatenate((turned.real, turned.imag), 1) @ point.square.T).reshape(-1)
    assert np.allclose(point.apply(x[None])[0], np.tile(out, 2)[:m])


@pytest.mark.covers("P69")
@pytest.mark.parametrize("shape", [(6, 4), (5, 7), (1, 4)])
def test_cosine_modes_by_the_inverse_transform(shape):
    """All modes at once: linearly independent, and every one the real part of an inverse DFT."""
    m, n = shape
    count = max(k for k in range(1, m * n + 1) if fits(lr.Fourier, shape, k))
    point = lr.Fourier.random(shape, count, RNG(15))
    spectrum = np.zeros(m * n)
    spectrum[point.modes] = point.values
    assert np.allclose(point.dense(), np.fft.ifft2(spectrum.reshape(shape)).real * (m * n) ** 0.5)
    atoms = [point.with_array(0, unit).dense().reshape(-1) for unit in np.eye(count)]
    gram = np.array(atoms) @ np.array(atoms).T
    assert np.allclose(gram, np.diag(np.diagonal(gram)))
    assert np.isin(np.round(np.diagonal(gram), 12), (0.5, 1.0)).all()


def fits(form, shape, size):
    try:
        form.shapes(shape, size)
    except ValueError:
        return False
    return True


@pytest.mark.covers("P69")
def test_the_largest_modes_are_the_nearest():
    target = RNG(16).standard_normal((5, 6))
    point = lr.Fourier.from_product(target, np.eye(6), 4)
    rng, best = RNG(17), np.linalg.norm(point.dense() - target)
    for _ in range(200):
        other = lr.Fourier.random((5, 6), 4, rng)
        other = other.with_array(0, other.whiten(other.pullback(target)).values)
        assert np.linalg.norm(other.dense() - target) >= best - 1e-12


@pytest.mark.covers("P52")
def test_sparse_matrices_are_those_of_scipy():
    point = lr.Sparse.random(SHAPE, 20, RNG(18))
    rows, cols = np.divmod(point.places, SHAPE[1])
    reference = scipy.sparse.coo_array((point.values, (rows, cols)), shape=SHAPE)
    x = RNG(19).standard_normal((3, 5, 8))
    assert np.allclose(point.dense(), reference.toarray())
    assert np.allclose(point.apply(x), x @ reference.toarray().T)


@pytest.mark.covers("P51", "P52")
def test_supports():
    assert np.array_equal(largest_support([[1.0, -5.0], [0.0, 2.0]], 2), [1, 3])
    assert largest_support(RNG(20).standard_normal((3, *SHAPE)), 5).shape == (3, 5)
    assert np.array_equal(column_support((2, 3), [2, 0]), [0, 2, 3, 5])
    places = uniform_support(SHAPE, 30, seed=0)
    assert np.array_equal(places, np.unique(places))
    assert np.array_equal(places, uniform_support(SHAPE, 30, seed=0))
    rows, cols = np.divmod(places, SHAPE[1])
    form = lr.LowRankPlusSparse.on(rows, cols, SHAPE)
    assert form.parameter_count(SHAPE, 2) == 2 * (12 + 8) + 30


@pytest.mark.covers("P31", "P32", "P33", "P34", "P05")
def test_pretrained_weights_are_kept_by_their_factors():
    """SVFit and LoLDU at their start: the part of the weight that their fixed factors span, exactly at full rank."""
    w = RNG(21).standard_normal((8, 8))
    u, s, vt = np.linalg.svd(w)
    assert np.allclose(lr.FrozenValues(u, s, vt.T).dense(), w)
    p, lower, upper = (np.asarray(a) for a in scipy.linalg.lu(w)[:3])
    d = np.diagonal(upper)
    assert np.allclose(lr.FrozenValues(p @ lower, d, (upper / d[:, None]).T).dense(), w)
    assert np.allclose(lr.FrozenCore(u[:, :3], np.diag(s[:3]), vt[:3].T).dense(), (u[:, :3] * s[:3]) @ vt[:3])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lr.NoLA.of(0), "positive integer"),
        (lambda: lr.NoLA.of(9).shapes(SHAPE, 2), "does not fit"),
        (lambda: lr.RandLoRA.of(0.5), "positive integer"),
        (lambda: lr.RandLoRA.shapes(SHAPE, 9), "at most 8, got 9"),
        (lambda: lr.LoKr.of(0), "positive integer"),
        (lambda: lr.LoKr.shapes(SHAPE, 5), "at most 4, got 5"),
        (lambda: lr.LoKrSmall.shapes(SHAPE, 3), "at most 2, got 3"),
        (lambda: lr.RaggedGrid.of([[1, -1]]), "at least 0"),
        (lambda: lr.RaggedGrid.of([1, 2]), "matrix of integers"),
        (lambda: lr.RaggedGrid.of([[0.5]]), "matrix of integers"),
        (lambda: lr.RaggedGrid.of([[0, 0]]), "not all 0"),
        (lambda: lr.RaggedGrid.shapes((7, 8), 1), "must divide"),
        (lambda: lr.RaggedGrid.of([[2, 1]]).shapes((4, 6), 2), "at most 3, got 4"),
        (lambda: lr.GroupedSquare.shapes(SHAPE, 9), "must fit in 12 x 8"),
        (lambda: lr.RotatedSquare.shapes(SHAPE, 9), "must fit in 12 x 8"),
        (lambda: lr.Fourier.shapes((2, 2), 5), "4 cosine modes, got 5"),
        (lambda: lr.Sparse.shapes((2, 2), 5), "4 entries, got 5"),
        (lambda: lr.FrozenCore.random((4, 3), 4, RNG(0)), "at most 3, got 4"),
        (lambda: uniform_support(SHAPE, 97), "from 1 to 96"),
        (lambda: column_support(SHAPE, [8]), r"0, \.\.\., 7"),
        (lambda: column_support(SHAPE, [1, 1]), "different integers"),
        (lambda: largest_support(np.eye(2), 0), "from 1 to 4"),
    ],
)
def test_sizes_and_settings_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@named([lr.Fourier, lr.Sparse, lr.RotatedSquare])
def test_a_point_without_a_shape_says_where_shapes_come_from(form):
    point = form(
        *[
            np.zeros(1 if k == 1 else (1, 1), int if s is FIXED else float)
            for k, s in zip(form.ndims, form.spaces, strict=True)
        ]
    )
    with pytest.raises(TypeError, match=r"for_shape\(\(m, n\)\)"):
        _ = point.shape
