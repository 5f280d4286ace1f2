"""Hankel completion against explicit Hankel matrices: products, averages, loss, gradient, recovery, counts."""

import numpy as np
import pytest
import scipy.linalg
import torch

import lowrank_sp as lr
from lowrank_sp.problems.hankel import HankelMatrix, antidiagonal_means

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
SHAPES = pytest.mark.parametrize("shape", [(6, 5), (1, 7), (7, 1), (4, 9)])
TYPES = pytest.mark.parametrize("dtype", [float, complex])


def numbers(rng, shape, dtype):
    z = rng.standard_normal(shape)
    return z + 1j * rng.standard_normal(shape) if dtype is complex else z


def explicit(x, m):
    return scipy.linalg.hankel(x[:m], x[m - 1 :])


def nearest(w):
    """The averages along antidiagonals, entry by entry."""
    m, n = w.shape
    flipped = w[::-1]
    return np.array([flipped.diagonal(k - m + 1).mean() for k in range(m + n - 1)])


@LIBRARIES
@SHAPES
@TYPES
def test_products_are_those_of_the_explicit_matrix(convert, shape, dtype):
    rng = np.random.default_rng(0)
    x = numbers(rng, sum(shape) - 1, dtype)
    h, ours = explicit(x, shape[0]), HankelMatrix(convert(x), shape)
    right, left = numbers(rng, (shape[1], 2), dtype), numbers(rng, (shape[0], 2), dtype)
    assert np.allclose(ours @ convert(right), h @ right, atol=1e-12)
    assert np.allclose(ours.adjoint() @ convert(left), h.conj().T @ left, atol=1e-12)


@LIBRARIES
@SHAPES
@TYPES
def test_the_signal_is_the_average_along_antidiagonals(convert, shape, dtype):
    rng = np.random.default_rng(1)
    point = lr.BurerMonteiro(numbers(rng, (shape[0], 2), dtype), numbers(rng, (shape[1], 2), dtype))
    ours = antidiagonal_means(*point.map(convert).product())
    assert np.allclose(ours, nearest(point.dense()), atol=1e-12)


@LIBRARIES
def test_remembered_transforms_are_those_of_changed_factors(convert):
    """Changes in place of a factor that has been measured before."""
    rng = np.random.default_rng(3)
    problem = lr.HankelCompletion(convert(np.arange(0, 13, 2)), convert(rng.standard_normal(7)), 13)
    point = lr.BurerMonteiro.random(problem.shape, 2, rng).map(lambda a: convert(a.copy()))
    for array in point.arrays():
        before = float(problem.loss(problem.residual(point)))
        array[0] += 1.0
        fresh = float(problem.loss(problem.residual(point.map(lambda a: 1 * a))))
        assert np.isclose(float(problem.loss(problem.residual(point))), fresh, rtol=1e-12)
        assert not np.isclose(before, fresh, rtol=1e-3)


def test_steps_of_a_torch_optimizer_see_the_loss_of_the_point():
    rng = np.random.default_rng(4)
    problem = lr.HankelCompletion(torch.arange(0, 13, 2), torch.as_tensor(rng.standard_normal(7)), 13)
    point = lr.BurerMonteiro.random(problem.shape, 2, rng).map(lambda a: torch.as_tensor(a).requires_grad_())
    optimizer = torch.optim.SGD(point.arrays(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        problem.loss(problem.residual(point)).backward()
        fresh = problem.gradient(point.map(lambda a: a.detach().clone()))
        for array, gradient in zip(point.arrays(), fresh.arrays(), strict=True):
            assert torch.allclose(array.grad, gradient, rtol=1e-10)
        optimizer.step()


def test_libraries_are_not_mixed():
    with pytest.raises(TypeError, match="must share a library, got numpy, torch"):
        _ = HankelMatrix(np.ones(5), (3, 3)) @ torch.ones(3, 1)


def test_weights_of_one_problem_are_its_own():
    first, second = (lr.HankelCompletion(np.arange(3), np.ones(3), 5) for _ in range(2))
    first.weights[:] = 0
    assert second.weights.tolist() == [1, 2, 3, 2, 1]


def instance(dtype=complex, length=14, rows=None, seed=0):
    rng = np.random.default_rng(seed)
    x = numbers(rng, length, dtype)
    positions = np.sort(rng.permutation(length)[: length // 2])
    return x, positions, rows


@LIBRARIES
@TYPES
@pytest.mark.parametrize("rows", [None, 5])
def test_loss_and_gradient_are_those_of_the_explicit_matrices(convert, dtype, rows):
    x, positions, rows = instance(dtype, rows=rows)
    problem = lr.HankelCompletion(convert(positions), convert(x[positions]), 14, rows)
    (m, n), share = problem.shape, len(positions) / 14
    point = lr.BurerMonteiro(*(numbers(np.random.default_rng(k), (k, 2), dtype) for k in (m, n)))

    def loss(left, right):
        w = left @ right.conj().T
        mean = nearest(w)
        misfit = np.zeros(14, dtype)
        misfit[positions] = mean[positions] - x[positions]
        off = np.linalg.norm(w - explicit(mean, m)) ** 2
        return 0.5 * off + 0.5 / share * np.linalg.norm(explicit(misfit, m)) ** 2

    ours = point.map(convert)
    assert np.isclose(float(problem.loss(problem.residual(ours))), loss(*point.arrays()), rtol=1e-12)
    gradient = problem.gradient(ours).map(np.asarray)
    for k in range(4):
        d = point.map(lambda a, k=k: numbers(np.random.default_rng(10 + k), a.shape, dtype))
        ends = [loss(*(point + d.scale(s * 1e-6)).arrays()) for s in (1, -1)]
        assert np.isclose(gradient.inner(d), (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


@TYPES
def test_the_inner_product_is_the_one_that_the_gradient_uses(dtype):
    """<A(U), A(V)> = Re <U, A^* A(V)>, the dot test of the measurement map."""
    x, positions, _ = instance(dtype)
    problem = lr.HankelCompletion(positions, x[positions], 14)
    rng = np.random.default_rng(3)
    u, v = (lr.BurerMonteiro(*(numbers(rng, (k, 2), dtype) for k in problem.shape)) for _ in range(2))
    a, b = problem.measure((u,), (v,))
    dense = problem.backproject(b) @ np.eye(problem.shape[1])
    assert np.isclose(problem.inner(a, b), np.vdot(u.dense(), dense).real)


@pytest.mark.covers("S03")
@LIBRARIES
@pytest.mark.parametrize("solver", ["ScaledGD", "ScaledCG", "ALS", "AltScaledGD", "RiemannianCG"])
def test_signals_are_recovered_from_some_samples(convert, solver):
    made = lr.synthetic.hankel(127, 3, 0.4, condition_number=4.0, seed=0)
    positions = np.flatnonzero(made._mask)
    problem = lr.HankelCompletion(convert(positions), convert(made.truth[positions]), 127, truth=convert(made.truth))
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 3), lr.SOLVERS[solver](), 300)
    assert result.success
    assert np.allclose(problem.signal(result.point), made.truth, atol=1e-8)


def test_frequencies_off_the_grid_and_damped_are_found():
    f = np.array([0.1234, 0.31, 0.72])
    problem = lr.synthetic.hankel(200, 3, 0.4, seed=0, frequencies=f, damping=0.01)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 3), lr.ScaledCG())
    assert np.allclose(problem.frequencies(result.point), f, atol=1e-8)


def test_a_real_signal_stays_real():
    t = np.arange(80)
    x = np.cos(0.3 * t) + 0.5 * np.cos(1.1 * t + 1)
    positions = np.sort(np.random.default_rng(0).permutation(80)[:45])
    problem = lr.HankelCompletion(positions, x[positions], 80, truth=x)
    result = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 4), lr.ScaledCG())
    assert result.point.left.dtype == np.float64
    assert np.allclose(problem.signal(result.point), x, atol=1e-7)


@pytest.mark.covers("O04")
@pytest.mark.parametrize(("condition_number", "published"), [(1.0, 57), (10.0, 59)])
def test_published_counts(condition_number, published):
    """1000 x 1000, r = 10, a fifth of the samples, step 0.5: iterations to 1e-12."""
    problem = lr.synthetic.hankel(1999, 10, 0.2, condition_number, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 10)
    result = lr.solve(problem, start, lr.ScaledGD(0.5), max_iter=80, tol=0)
    assert abs(result.iterations_to(1e-12) - published) <= 0.1 * published


ERRORS = {
    "length": (lambda: lr.HankelCompletion(np.arange(2), np.ones(2), 1), ValueError, "length must be"),
    "rows": (lambda: lr.HankelCompletion(np.arange(2), np.ones(2), 5, rows=6), ValueError, "rows must lie"),
    "position": (
        lambda: lr.HankelCompletion(np.array([5]), np.ones(1), 5),
        ValueError,
        r"positions must lie in \[0, 5\)",
    ),
    "repeated": (lambda: lr.HankelCompletion(np.array([1, 1]), np.ones(2), 5), ValueError, "repeats"),
    "lengths": (lambda: lr.HankelCompletion(np.arange(3), np.ones(2), 5), ValueError, "one length"),
    "NaN": (lambda: lr.HankelCompletion(np.arange(2), np.full(2, np.nan), 5), ValueError, "values holds 2 NaN"),
    "floating": (lambda: lr.HankelCompletion(np.ones(2), np.ones(2), 5), TypeError, "positions must hold integers"),
    "mixed": (lambda: lr.HankelCompletion(np.arange(2), torch.ones(2), 5), TypeError, "share a library"),
    "observed": (lambda: lr.synthetic.hankel(20, 2, 0.0), ValueError, "observed must lie"),
    "frequencies": (lambda: lr.synthetic.hankel(20, 2, frequencies=[0.1]), ValueError, "frequencies must have shape"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
