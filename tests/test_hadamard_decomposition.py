"""`hadamard_decomposition`: the best of several starts finds products of rank two, stays near noisy ones, bad input."""

import numpy as np
import pytest
import scipy.sparse
import torch

import lowrank_sp as lr

RNG = np.random.default_rng
A = RNG(0).standard_normal((6, 5))


@pytest.mark.covers("S19", "P117")
def test_products_of_rank_two_are_found():
    """Single starts find about a quarter of them."""
    found = []
    for seed in range(10):
        problem = lr.synthetic.hadamard(24, 20, 2, seed=seed)
        result = lr.hadamard_decomposition(problem.data, 2)
        x, y, x2, y2 = result.point.arrays()
        gap = np.einsum("ik,jk,il,jl->ij", x, y, x2, y2) - problem.data
        found.append(np.linalg.norm(gap) < 1e-8 * np.linalg.norm(problem.data))
    assert sum(found) >= 9


CONVERT = {
    "float32": lambda a: a.astype(np.float32),
    "torch": lambda a: torch.as_tensor(a).float(),
    "complex": lambda a: a,
    "large": lambda a: a,
}


@pytest.mark.covers("S19")
@pytest.mark.parametrize("kind", CONVERT)
def test_libraries_types_and_scales(kind):
    rng = RNG(1)
    unit = 1j if kind == "complex" else 0
    parts = [rng.standard_normal((k, 2)) + unit * rng.standard_normal((k, 2)) for k in (16, 14, 16, 14)]
    truth = lr.Hadamard(*parts).dense() * (1e9 if kind == "large" else 1)
    target = CONVERT[kind](truth)
    point = lr.hadamard_decomposition(target, 2, starts=60).point
    assert point.left.dtype == target.dtype
    assert np.linalg.norm(np.asarray(point.dense()) - truth) < 1e-5 * np.linalg.norm(truth)


def test_noise_takes_every_start_and_is_averaged():
    problem = lr.synthetic.hadamard(30, 24, 2, noise=0.02, seed=0)
    result = lr.hadamard_decomposition(problem.data, 2, starts=25)
    assert "the best of 25 random starts, of which none met the data" in result.choice
    best = lr.solve(problem, problem.truth, lr.ScaledCG()).fun
    assert result.fun < 1.001 * best
    assert problem.error(result.point) < 0.02


def test_the_seed_decides():
    first, again, other = (lr.hadamard_decomposition(A, 1, 3, seed=seed).point.left for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_nothing_is_made_of_nothing():
    assert not lr.hadamard_decomposition(np.zeros((6, 5)), 1, 2).point.dense().round(12).any()


ERRORS = {
    "no start": (lambda: lr.hadamard_decomposition(A, 1, 0), ValueError, "starts must be an integer of at least 1"),
    "half a start": (lambda: lr.hadamard_decomposition(A, 1, 1.5), ValueError, "at least 1, got 1.5"),
    "start as text": (lambda: lr.hadamard_decomposition(A, 1, "3"), ValueError, "at least 1, got '3'"),
    "rank": (lambda: lr.hadamard_decomposition(A, 6), ValueError, "rank must lie between 1 and"),
    "auto": (lambda: lr.hadamard_decomposition(A, "auto"), ValueError, "rank must be an integer, got 'auto'"),
    "NaN": (lambda: lr.hadamard_decomposition(A * np.nan, 1), ValueError, "target holds 30 NaN"),
    "sparse": (lambda: lr.hadamard_decomposition(scipy.sparse.csr_array(A), 1), TypeError, "must be an array with two"),
    "batch": (lambda: lr.hadamard_decomposition(A[None], 1), TypeError, "must be an array with two axes, got ndarray"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
