"""Newtonized pursuit and `complete_signal`: exponentials against their closed form, least squares and a bound."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

import lowrank_sp as lr
from lowrank_sp.exponentials import Samples, fitted, moved, powers

LIBRARIES = pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])


def signal(logs, coefficients, length):
    return np.exp(np.outer(np.arange(length), logs)) @ coefficients


def masked(x, share, seed=0):
    unknown = np.random.default_rng(seed).random(x.size) > share
    return np.where(unknown, np.nan, x)


def test_powers_are_exponentials_of_size_one_where_they_are_largest():
    logs: Any = np.array([0.3j, -0.01 + 1j, 0.02 - 2j, 0.0, 3.0 + 0.1j])
    table = np.exp(np.outer(np.arange(37), logs))
    growing = logs.real > 0
    table[:, growing] /= table[-1, growing]
    assert np.allclose(powers(logs, 37), table, rtol=1e-12, atol=1e-300)
    assert np.isfinite(powers(np.array([5.0]), 4000)).all()


@pytest.mark.parametrize("real", [False, True])
def test_newton_steps_end_at_the_weighted_least_squares_fit(real):
    """Against scipy's least squares in poles and coefficients together, on noisy samples."""
    rng = np.random.default_rng(0)
    logs: Any = np.array([-0.01 + 0.5j, 1.1j]) if real else np.array([-0.01 + 0.5j, 1.1j, 0.002 - 0.8j])
    positions = np.sort(rng.permutation(60)[:40])
    roots = rng.uniform(0.5, 2.0, 40)
    clean = signal(logs, rng.standard_normal(logs.size) + 1j, 60)[positions]
    noise = 0.1 * (rng.standard_normal(40) + 1j * rng.standard_normal(40))
    values = (clean + noise).real if real else clean + noise
    samples = Samples(positions, roots * values, roots, 60, real)
    fit = fitted(samples, logs + 0.01)
    for _ in range(30):
        fit, gradient = moved(samples, fit)
    assert gradient < 1e-12

    def gaps(x):
        z, c = (part[::2] + 1j * part[1::2] for part in np.split(x, 2))
        model = signal(z, c, 60)[positions]
        gap = roots * (values - (2 * model.real if real else model))
        return gap if real else np.concatenate((gap.real, gap.imag))

    begin = np.concatenate((np.stack((logs.real, logs.imag), -1).ravel(), np.ones(2 * logs.size)))
    best = scipy.optimize.least_squares(gaps, begin, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert np.isclose(fit.misfit * np.linalg.norm(roots * values), (2 * best.cost) ** 0.5, rtol=1e-10)


@pytest.mark.covers("S03")
@LIBRARIES
@pytest.mark.parametrize("kappa", [1.0, 100.0])
def test_pursuit_converges_quadratically(convert, kappa):
    made = lr.synthetic.hankel(255, 5, 0.3, kappa, seed=0, frequencies=[0.05, 0.0613, 0.3, 0.61, 0.9])
    positions = np.flatnonzero(made._mask)
    problem = lr.HankelCompletion(convert(positions), convert(made.truth[positions]), 255, truth=convert(made.truth))
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 5)
    result = lr.solve(problem, start, lr.NOMP())
    assert result.success
    assert result.nit <= 25
    assert np.allclose(problem.signal(result.point), made.truth, atol=1e-10)
    # The residual that the solver states is that of the point.
    assert float(problem.loss(problem.residual(result.point))) < 1e-20 * problem.scale
    assert type(result.point.left) is type(problem.like())


@pytest.mark.parametrize("damping", [0.0, 0.03])
def test_random_frequencies_are_found_from_three_samples_in_ten(damping):
    for seed in range(10):
        f = np.random.default_rng(seed).random(4)
        problem = lr.synthetic.hankel(200, 4, 0.3, 10.0, seed=seed, frequencies=f, damping=damping)
        result, x, poles = lr.complete_signal(problem, 4)
        assert result.success, (seed, result.choice)
        assert np.linalg.norm(x - problem.truth) < 1e-7 * np.linalg.norm(problem.truth), (seed, result.choice)
        assert np.allclose(np.sort(np.angle(poles) / (2 * np.pi) % 1), np.sort(f), atol=1e-7)


@LIBRARIES
def test_real_signals_stay_real(convert):
    """Two damped oscillations, a growing exponential, and one that alternates."""
    t = np.arange(120)
    truth = np.cos(0.4 * t + 1) * 0.99**t + 0.3 * np.sin(1.7 * t) + 0.1 * 1.01**t + 0.2 * (-0.999) ** t
    result, x, poles = lr.complete_signal(convert(masked(truth, 0.5)), 6)
    assert result.success
    assert str(x.dtype).endswith("float64")
    assert np.allclose(x, truth, atol=1e-7)
    angles = np.sort_complex(poles)
    expected = [-0.999, 0.99 * np.exp(0.4j), 0.99 * np.exp(-0.4j), np.exp(1.7j), np.exp(-1.7j), 1.01]
    assert np.allclose(angles, np.sort_complex(expected), atol=1e-6)


def test_noisy_signals_reach_the_fit_that_starts_at_the_truth():
    f = np.array([0.1, 0.17, 0.42])
    for seed in range(5):
        problem = lr.synthetic.hankel(150, 3, 0.4, 2.0, noise=0.1, seed=seed, frequencies=f)
        result, x, _ = lr.complete_signal(problem, 3)
        start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
        oracle = lr.solve(problem, start, lr.NOMP(poles=np.exp(2j * np.pi * f)))
        assert result.success, result.choice
        assert result.fun <= oracle.fun * (1 + 1e-6)
        assert np.linalg.norm(x - problem.truth) < 0.1 * np.linalg.norm(problem.truth)


def test_close_frequencies_take_conjugate_gradients_too():
    """Half a bin apart the spectrum shows one peak; whichever solver meets the data, the choice names it."""
    problem = lr.synthetic.hankel(101, 2, 0.6, seed=1, frequencies=[0.3, 0.3 + 0.4 / 101])
    result, x, _ = lr.complete_signal(problem, 2)
    assert np.allclose(x, problem.truth, atol=1e-6)
    assert "NOMP" in result.choice


def test_other_forms_come_back_in_their_form():
    problem = lr.synthetic.hankel(101, 2, 0.5, seed=0)
    start = lr.inits.spectral(problem, lr.FixedRank, 2)
    result = lr.solve(problem, start, lr.NOMP())
    assert isinstance(result.point, lr.FixedRank)
    assert result.history["error"][-1] < 1e-10


def test_fewer_samples_than_unknowns_are_a_warning():
    x = np.full(30, np.nan)
    x[[0, 3, 7]] = 1.0, 2.0, 3.0
    with pytest.warns(UserWarning, match="3 samples for 4 poles and coefficients"):
        lr.complete_signal(x, 2, max_iter=3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lr.NOMP(share=0.0), ValueError, r"share must lie in \(0, 1\], got 0.0"),
        (lambda: lr.NOMP(tries=-1), ValueError, "tries must be an integer that is not negative, got -1"),
        (lambda: lr.NOMP(poles=[0.0]), ValueError, "poles must be finite numbers other than zero"),
        (lambda: lr.complete_signal(np.ones((3, 3)), 1), ValueError, "signal must have one axis"),
        (lambda: lr.complete_signal(np.arange(5), 1), TypeError, "signal must be floating"),
        (lambda: lr.complete_signal(np.full(5, np.nan), 1), ValueError, "holds only NaN"),
        (lambda: lr.complete_signal(np.array([1.0, np.inf, np.nan]), 1), ValueError, "NaN or infinite"),
        (lambda: lr.complete_signal(np.ones(9), 6), ValueError, "rank must lie between 1 and"),
        (lambda: lr.complete_signal(np.ones(9), "auto"), ValueError, "rank must be an integer"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_other_problems_batches_and_too_many_poles_are_refused():
    completion = lr.synthetic.completion(20, 20, 2, 0.8, seed=0)
    with pytest.raises(TypeError, match="NOMP needs a HankelCompletion problem, not MatrixCompletion"):
        lr.solve(completion, lr.inits.spectral(completion, lr.BurerMonteiro, 2), lr.NOMP())
    problem = lr.synthetic.hankel(31, 2, 0.8, seed=0)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 2)
    with pytest.raises(ValueError, match="one problem at a time"):
        lr.solve(problem, start.map(lambda a: np.stack([a, a])), lr.NOMP())
    with pytest.raises(ValueError, match="at most rank = 2"):
        lr.solve(problem, start, lr.NOMP(poles=np.exp([1j, 2j, 3j])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lr.solve(problem, start, lr.NOMP(poles=np.exp([1j]))).nit
