"""Quadratic sensing and phase retrieval: the map against its definition, starts, recovery, bad input."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
TYPES = pytest.mark.parametrize("dtype", [float, complex])


def numbers(rng, shape, dtype):
    z = rng.standard_normal(shape)
    return z + 1j * rng.standard_normal(shape) if dtype is complex else z


@pytest.mark.covers("S06")
@LIBRARIES
@TYPES
def test_measurements_are_squared_magnitudes(convert, dtype):
    rng = np.random.default_rng(0)
    a, x = numbers(rng, (9, 5), dtype), numbers(rng, (5, 2), dtype)
    ours = lr.QuadraticEnsemble(convert(a)).measure([[lr.SymmetricBurerMonteiro(convert(x))]])[0]
    assert np.allclose(ours, np.linalg.norm(a.conj() @ x, axis=1) ** 2)


@pytest.mark.covers("S06")
@LIBRARIES
@TYPES
def test_the_adjoint_passes_the_dot_test_for_any_matrix(convert, dtype):
    rng = np.random.default_rng(1)
    a, y = numbers(rng, (9, 5), dtype), rng.standard_normal((2, 9))
    point = lr.BurerMonteiro(numbers(rng, (5, 2), dtype), numbers(rng, (5, 2), dtype))
    operator = lr.QuadraticEnsemble(convert(a))
    image = np.asarray(operator.measure([[point.map(convert)]])[0])
    back = np.asarray(operator.adjoint(convert(y)) @ convert(np.eye(5, dtype=dtype)))
    assert np.allclose(y @ image, [np.vdot(b, point.dense()).real for b in back])


@LIBRARIES
@TYPES
def test_the_gradient_of_the_symmetric_form_is_autograd(convert, dtype):
    rng = np.random.default_rng(2)
    a, x, y = numbers(rng, (9, 5), dtype), numbers(rng, (5, 2), dtype), rng.standard_normal(9)
    problem = lr.MatrixSensing(lr.QuadraticEnsemble(convert(a)), convert(y), (5, 5))
    ours = problem.gradient(lr.SymmetricBurerMonteiro(convert(x))).factor
    leaf = torch.as_tensor(x).requires_grad_()
    loss = 0.5 * (((torch.as_tensor(a).conj() @ leaf).abs() ** 2).sum(-1) - torch.as_tensor(y)).square().sum()
    loss.backward()
    assert np.allclose(np.asarray(ours), leaf.grad)


@pytest.mark.covers("S06")
@TYPES
def test_the_truncated_surrogate_points_at_the_signal(dtype):
    problem = lr.synthetic.quadratic(30, 1, 3000, seed=0, dtype=dtype)
    start = lr.inits.spectral(problem, lr.SymmetricBurerMonteiro, 1).factor[:, 0]
    signal = problem.truth.factor[:, 0]
    assert abs(np.vdot(start, signal)) / np.linalg.norm(start) / np.linalg.norm(signal) > 0.95


@pytest.mark.covers("S06")
@TYPES
@pytest.mark.parametrize("seed", range(5))
def test_phase_retrieval_needs_no_tuning(dtype, seed):
    made = lr.synthetic.quadratic(32, 1, 8 * 32, seed=seed, dtype=dtype)
    result = lr.phase_retrieval(made.operator.vectors, made.data)
    assert result.success
    found, signal = result.point.factor[:, 0], made.truth.factor[:, 0]
    phase = np.vdot(found, signal) / abs(np.vdot(found, signal))
    assert np.allclose(phase * found, signal, atol=1e-7)


@pytest.mark.covers("S06", "O04")
@TYPES
@pytest.mark.parametrize("condition_number", [1.0, 10.0])
def test_quadratic_sensing_recovers_several_columns(dtype, condition_number):
    made = lr.synthetic.quadratic(24, 3, condition_number=condition_number, seed=0, dtype=dtype)
    result = lr.phase_retrieval(made.operator.vectors, made.data, rank=3)
    assert made.error(result.point) < 1e-8


def test_quadratic_sensing_with_gross_errors():
    made = lr.synthetic.quadratic(20, 2, 800, seed=0)
    rng = np.random.default_rng(0)
    data = made.data + 10 * made.data.max() * rng.uniform(-1, 1, 800) * (rng.random(800) < 0.1)
    problem = lr.RobustSensing(made.operator, data, (20, 20), 0.1, made.truth)
    start = lr.inits.spectral(problem, lr.SymmetricBurerMonteiro, 2)
    assert lr.solve(problem, start, lr.ScaledGD(), 600).history["error"][-1] < 1e-9


def test_intensities_as_torch_stay_in_torch():
    made = lr.synthetic.quadratic(16, 1, 160, seed=0, dtype=complex)
    result = lr.phase_retrieval(torch.as_tensor(made.operator.vectors), torch.as_tensor(made.data))
    assert isinstance(result.point.factor, torch.Tensor)
    assert made.error(result.point.map(np.asarray)) < 1e-8


ERRORS = {
    "vector": (lambda: lr.QuadraticEnsemble(np.ones(3)), ValueError, "vectors must have at least 2"),
    "stack": (lambda: lr.QuadraticEnsemble(np.ones((2, 3, 4))), ValueError, r"vectors must be \(N, n\)"),
    "NaN": (lambda: lr.phase_retrieval(np.full((5, 2), np.nan), np.ones(5)), ValueError, "vectors holds 10 NaN"),
    "count": (lambda: lr.phase_retrieval(np.ones((5, 2)), np.ones(4)), ValueError, "measurements has 4 values"),
    "rank": (lambda: lr.phase_retrieval(np.ones((5, 2)), np.ones(5), 3), ValueError, "rank must lie"),
    "sign": (lambda: lr.phase_retrieval(np.ones((5, 2)), -np.ones(5)), ValueError, "squared magnitudes.* up 100%"),
    "mean": (lambda: lr.phase_retrieval(np.ones((4, 2)), np.array([-3.0, 3, 1, -1])), ValueError, "negative ones"),
    "complex": (lambda: lr.phase_retrieval(np.ones((5, 2)), 1j * np.ones(5)), TypeError, "intensities must be real"),
    "measurements": (lambda: lr.synthetic.quadratic(5, 1, 0), ValueError, "measurements must be at least 1"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@LIBRARIES
def test_noise_may_make_some_intensities_negative(convert):
    rng = np.random.default_rng(3)
    vectors, signal = rng.standard_normal((400, 6)), rng.standard_normal(6)
    clean = (vectors @ signal) ** 2
    noisy = clean + 0.5 * clean.mean() * rng.standard_normal(400)
    assert (noisy < 0).sum() > 50
    found = np.asarray(lr.phase_retrieval(convert(vectors), convert(noisy)).point.factor)[:, 0]
    assert min(np.linalg.norm(found - signal), np.linalg.norm(found + signal)) < 0.1 * np.linalg.norm(signal)


@TYPES
def test_fewer_intensities_than_unknowns_are_a_warning(dtype):
    """Rank r takes ``n r - r (r - 1) / 2`` real and ``2 n r - r^2`` numbers of complex signals."""
    vectors = numbers(np.random.default_rng(4), (40, 10), dtype)
    intensities, rank = np.ones(40), 5 if dtype is float else 3
    unknowns = 40 if dtype is float else 51
    assert unknowns == np.linalg.matrix_rank(_tangents(vectors.shape[1], rank, dtype))
    if unknowns > 40:
        with pytest.warns(UserWarning, match="40 intensities for 51 unknowns"):
            lr.phase_retrieval(vectors, intensities, rank, max_iter=1)
    else:
        lr.phase_retrieval(vectors, intensities, rank, max_iter=1)


def _tangents(n, rank, dtype):
    """The images ``X D^H + D X^H`` of all unit directions D, as rows of real numbers."""
    x = numbers(np.random.default_rng(5), (n, rank), dtype)
    units = [u.reshape(n, rank) for u in np.eye(n * rank, dtype=dtype)]
    units += [1j * u for u in units] if dtype is complex else []
    images = [(x @ u.conj().T + u @ x.conj().T).reshape(-1) for u in units]
    return np.concatenate([np.real(images), np.imag(images)], axis=1)
