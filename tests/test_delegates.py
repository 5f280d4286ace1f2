"""What scikit-learn does for us: the right call, the right orientation, clear errors."""

import sys

import numpy as np
import pytest
import torch

import lowrank_sp as lr


@pytest.mark.covers("S08")
def test_a_nonnegative_matrix_is_factored_into_nonnegative_factors():
    rng = np.random.default_rng(0)
    truth = rng.random((20, 3)) @ rng.random((3, 15))
    point = lr.nmf(truth, 3)
    assert point.shape == (20, 15)
    assert min(a.min() for a in point.arrays()) >= 0
    assert np.linalg.norm(point.dense() - truth) < 1e-2 * np.linalg.norm(truth)


def test_principal_components_are_eigenvectors_of_the_covariance():
    data = np.random.default_rng(0).standard_normal((30, 6)) * np.arange(1, 7) + 5
    found = lr.pca(data, 3)
    values, vectors = np.linalg.eigh(np.cov(data.T))
    assert np.allclose(found.variances, values[:-4:-1])
    assert np.allclose(abs(found.point.right.T @ vectors[:, :-4:-1]), np.eye(3))
    centred = data - data.mean(0)
    assert np.allclose(found.mean, data.mean(0))
    assert np.allclose(found.point.dense(), centred @ found.point.right @ found.point.right.T)
    assert np.allclose(found.point.left.T @ found.point.left, np.eye(3))


def test_canonical_correlations_are_singular_values_of_whitened_products():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((60, 2))
    x = np.hstack((common @ rng.standard_normal((2, 2)), rng.standard_normal((60, 2))))
    y = np.hstack((common + 0.3 * rng.standard_normal((60, 2)), rng.standard_normal((60, 1))))
    found = lr.cca(x, y, 2)
    u, v = (np.linalg.qr(a - a.mean(0))[0] for a in (x, y))
    assert np.allclose(found.correlations, np.linalg.svd(u.T @ v)[1][:2], atol=1e-6)
    assert found.first.shape == found.second.shape == (60, 2)


ONES = np.ones((4, 3))
ERRORS = {
    "negative": (lambda: lr.nmf(-ONES, 1), ValueError, "matrix must not have negative entries, got 12"),
    "NaN": (lambda: lr.pca(np.full((4, 3), np.nan), 1), ValueError, "matrix holds 12 NaN"),
    "rank": (lambda: lr.nmf(ONES, 4), ValueError, "rank must lie between 1 and"),
    "torch": (lambda: lr.pca(torch.ones(4, 3), 1), TypeError, "matrix must be a NumPy array"),
    "complex": (lambda: lr.pca(1j * ONES, 1), ValueError, "matrix must be a real matrix"),
    "one row": (lambda: lr.pca(ONES[:1], 1), ValueError, "at least two rows"),
    "rows": (lambda: lr.cca(ONES, ONES[:3], 1), ValueError, "first and second must have the same rows"),
    "cca rank": (lambda: lr.cca(ONES, ONES[:, :1], 2), ValueError, "rank must lie between 1 and"),
}


@pytest.mark.parametrize("call, kind, message", [pytest.param(*c, id=k) for k, c in ERRORS.items()])
def test_the_error_names_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"nmf needs sklearn: pip install 'lowrank-sp\[sklearn\]'"):
        lr.nmf(ONES, 1)


def subspaces(rng, dims, per, n, noise=0.0):
    """Gaussian points of independent subspaces in random order, and which subspace each is of."""
    parts = [rng.standard_normal((per, d)) @ rng.standard_normal((d, n)) for d in dims]
    rows = np.concatenate(parts) + noise * rng.standard_normal((per * len(dims), n))
    order = rng.permutation(rows.shape[0])
    return rows[order], np.repeat(np.arange(len(dims)), per)[order]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_clusters_are_the_subspaces(noise):
    from sklearn.metrics import adjusted_rand_score

    rows, truth = subspaces(np.random.default_rng(0), (1, 2, 3), 25, 30, noise)
    found = lr.subspace_clusters(rows, clusters=3, rank=6)
    assert adjusted_rand_score(truth, found.labels) == 1.0
    apart = truth[:, None] != truth
    assert found.affinity[apart].mean() < 0.1 * found.affinity[~apart].mean()
    if not noise:
        assert found.affinity[apart].max() < 1e-12


def test_points_with_unknown_entries_are_completed_first():
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(1)
    rows, truth = subspaces(rng, (2, 2), 30, 25)
    seen = np.where(rng.random(rows.shape) < 0.6, rows, np.nan)
    found = lr.subspace_clusters(lr.complete(seen, rank=4).point.dense(), clusters=2, rank=4)
    assert adjusted_rand_score(truth, found.labels) == 1.0


CLUSTER_ERRORS = {
    "one": (1, 2, "clusters must be an integer from 2 to the number of rows 6, got 1"),
    "many": (7, 2, "got 7"),
    "half": (2.5, 2, "got 2.5"),
    "rank": (2, 5, "rank must lie between 1 and"),
}


@pytest.mark.parametrize("clusters, rank, message", [pytest.param(*c, id=k) for k, c in CLUSTER_ERRORS.items()])
def test_numbers_of_clusters_are_checked(clusters, rank, message):
    with pytest.raises(ValueError, match=message):
        lr.subspace_clusters(np.ones((6, 4)), clusters, rank)
