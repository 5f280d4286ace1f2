"""Subspace tracking: steps against geodesics and batch least squares, incomplete and moving subspaces, bad input."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr

TRACKERS = pytest.mark.parametrize("tracker", [lr.GROUSE(), lr.PETRELS(0.95)], ids=lambda t: type(t).__name__)


def orthonormal(rng, n, rank, dtype=float):
    z = rng.standard_normal((n, rank))
    return np.linalg.qr(z + 1j * rng.standard_normal(z.shape) if dtype is complex else z)[0]


def stream(rng, basis, count, known, noise=0.0):
    """Gaussian vectors of a subspace, and the same with unknown entries."""
    vectors = rng.standard_normal((count, basis.shape[1])) @ basis.T
    seen = vectors + noise * rng.standard_normal(vectors.shape)
    return vectors, np.where(rng.random(vectors.shape) < known, seen, np.nan)


def gap(basis, truth):
    """Sine of the largest principal angle."""
    return np.linalg.norm(truth - basis @ (basis.conj().T @ truth), 2)


@TRACKERS
@pytest.mark.parametrize("dtype", [float, complex])
def test_a_subspace_is_found_from_incomplete_vectors(tracker, dtype):
    rng = np.random.default_rng(1)
    basis = orthonormal(rng, 30, 3, dtype)
    vectors, seen = stream(rng, basis, 400, 0.6)
    found = lr.track(seen, 3, tracker)
    assert gap(found.subspace.basis, basis) < 1e-6
    assert found.filled.dtype == vectors.dtype
    assert np.allclose(found.filled[-50:], vectors[-50:], atol=1e-5)
    assert np.array_equal(found.filled[~np.isnan(seen)], seen[~np.isnan(seen)])
    assert np.allclose(found.subspace.fill(seen[:5]), vectors[:5], atol=1e-4)


def test_a_geodesic_step_is_that_of_the_grassmannian():
    """Of pymanopt: along the gradient of half the squared residual, to the greedy angle."""
    from pymanopt.manifolds import Grassmann

    rng = np.random.default_rng(2)
    u = orthonormal(rng, 12, 3)
    seen = np.where(rng.random(12) < 0.7, rng.standard_normal(12), np.nan)
    known = ~np.isnan(seen)
    w = np.linalg.lstsq(u[known], seen[known], rcond=None)[0]
    rest = np.where(known, np.nan_to_num(seen) - u @ w, 0)
    ascent = np.outer(rest, w)  # minus the Euclidean gradient, which is tangent already
    assert np.allclose(u.T @ ascent, 0, atol=1e-12)
    angle = 0.5 * np.arctan(np.linalg.norm(rest) / np.linalg.norm(w))
    expected = Grassmann(12, 3).exp(u, angle * ascent / np.linalg.norm(ascent))
    ours = lr.Subspace(lr.GROUSE(0.5), u).follow(seen[None]).subspace.factor
    assert np.allclose(ours @ ours.T, expected @ expected.T)
    assert np.allclose(ours.T @ ours, np.eye(3))


def test_a_complete_vector_lies_in_the_subspace_at_once():
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(9)
    basis = lr.track(vector[None], 2, lr.GROUSE()).subspace.basis
    assert np.allclose(basis @ (basis.T @ vector), vector)


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
@pytest.mark.parametrize("dtype", [float, complex])
def test_recursive_least_squares_are_those_of_all_vectors(forgetting, dtype):
    """Row by row against numpy's lstsq with the coefficients that the vectors had, and the ridge of the start."""
    rng = np.random.default_rng(4)
    start = orthonormal(rng, 8, 2, dtype)
    seen = stream(rng, orthonormal(rng, 8, 2, dtype), 25, 0.7, noise=0.1)[1]
    subspace, coefficients = lr.Subspace(lr.PETRELS(forgetting, ridge=0.3), start), []
    for vector in seen:
        known = ~np.isnan(vector)
        coefficients.append(np.linalg.lstsq(subspace.factor[known], vector[known], rcond=None)[0])
        subspace = subspace.follow(vector[None]).subspace
    a, weights = np.array(coefficients), forgetting ** np.arange(25)[::-1]
    ridge = (0.3 * forgetting**25 * np.linalg.norm(a[0]) ** 2 / 2) ** 0.5
    for i in range(8):
        known = ~np.isnan(seen[:, i])
        root = weights[known] ** 0.5
        system = np.concatenate([root[:, None] * a[known], ridge * np.eye(2)])
        values = np.concatenate([root * seen[known, i], ridge * start[i]])
        assert np.allclose(subspace.factor[i], np.linalg.lstsq(system, values, rcond=None)[0])


@TRACKERS
def test_a_moving_subspace_is_followed(tracker):
    """It turns by 3 radians in all, and the batch solution of all vectors lags behind."""
    rng = np.random.default_rng(5)
    ends = orthonormal(rng, 20, 4)
    bases = [np.cos(t) * ends[:, :2] + np.sin(t) * ends[:, 2:] for t in np.linspace(0, 3, 600)]
    vectors = np.array([b @ rng.standard_normal(2) for b in bases])
    seen = np.where(rng.random(vectors.shape) < 0.7, vectors, np.nan)
    found = lr.track(seen, 2, tracker).subspace.basis
    batch = np.linalg.svd(vectors.T, full_matrices=False)[0][:, :2]
    assert gap(found, bases[-1]) < 0.15
    assert gap(batch, bases[-1]) > 0.4


def test_small_steps_average_noise():
    rng = np.random.default_rng(6)
    basis = orthonormal(rng, 25, 2)
    seen = stream(rng, basis, 500, 0.7, noise=0.05)[1]
    gaps = [gap(lr.track(seen, 2, t).subspace.basis, basis) for t in (lr.GROUSE(), lr.GROUSE(0.1), lr.PETRELS(0.998))]
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 0.5 * gaps[0]


@TRACKERS
def test_a_stream_in_pieces_is_the_stream(tracker):
    rng = np.random.default_rng(7)
    seen = stream(rng, orthonormal(rng, 10, 2), 30, 0.6)[1]
    seen[4] = np.nan  # nothing to learn from, and nothing to predict with
    whole = lr.track(seen, 2, tracker, seed=3)
    first = lr.track(seen[:12], 2, tracker, seed=3)
    last = first.subspace.follow(seen[12:])
    assert np.array_equal(last.subspace.factor, whole.subspace.factor)
    assert np.array_equal(np.concatenate([first.filled, last.filled]), whole.filled, equal_nan=True)
    assert np.isnan(whole.filled[4]).all()
    assert whole.subspace.seen == 29


@TRACKERS
def test_torch_is_numpy(tracker):
    rng = np.random.default_rng(8)
    seen = stream(rng, orthonormal(rng, 10, 2), 20, 0.6)[1]
    numpy, there = (lr.track(convert(seen), 2, tracker) for convert in (np.asarray, torch.as_tensor))
    assert isinstance(there.filled, torch.Tensor)
    assert np.allclose(there.filled.numpy(), numpy.filled)
    assert np.allclose(
        there.subspace.basis.numpy() @ there.subspace.basis.numpy().T, numpy.subspace.basis @ numpy.subspace.basis.T
    )


def test_types_follow_the_data():
    rng = np.random.default_rng(9)
    for given, kept in ((np.float32, np.float32), (np.float16, np.float32), (int, float)):
        found = lr.track((4 * rng.standard_normal((6, 5))).astype(given), 2)
        assert found.filled.dtype == kept
    masked = np.ma.array(np.ones((3, 4)), mask=np.eye(3, 4, dtype=bool))
    assert np.allclose(lr.track(masked, 1).filled[2], 1, atol=0.02)


GOOD = np.ones((3, 4))
ERRORS = {
    "one vector": (lambda: lr.track(np.ones(4), 1), ValueError, r"vectors must be an array \(k, n\)"),
    "empty": (lambda: lr.track(np.ones((0, 4)), 1), ValueError, r"got shape \(0, 4\)"),
    "unknown": (lambda: lr.track(np.nan * GOOD, 1), ValueError, "only NaN"),
    "infinite": (lambda: lr.track(np.inf * GOOD, 1), ValueError, "vectors holds 12 NaN or infinite"),
    "text": (lambda: lr.track(np.array([["a", "b"]]), 1), TypeError, "vectors must be numeric"),
    "rank": (lambda: lr.track(GOOD, 5), ValueError, "rank must lie between 1 and"),
    "tracker": (lambda: lr.track(GOOD, 1, lr.ALS()), TypeError, r"tracker must be lr.PETRELS\(...\)"),
    "length": (lambda: lr.track(GOOD, 1).subspace.follow(np.ones((2, 5))), ValueError, "must have length 4, got 5"),
    "library": (lambda: lr.track(GOOD, 1).subspace.fill(torch.ones(2, 4)), TypeError, "must share a library"),
    "share": (lambda: lr.GROUSE(0.0), ValueError, r"share must lie in \(0, 1\]"),
    "forgetting": (lambda: lr.PETRELS(1.1), ValueError, r"forgetting must lie in \(0, 1\]"),
    "ridge": (lambda: lr.PETRELS(ridge=0), ValueError, "ridge must be positive"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
