"""Decompositions that scikit-learn does well, handed to it and given back as ours."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from . import xp
from .coverage import covers
from .extras import require
from .parameterizations import SVD, BurerMonteiro
from .problems.checks import as_data, check_rank

__all__ = ["CanonicalCorrelation", "PrincipalComponents", "SubspaceClusters", "cca", "nmf", "pca", "subspace_clusters"]


@covers("S08")
def nmf(matrix: Any, rank: int, max_iter: int = 1000, tol: float = 1e-6, seed: int = 0) -> BurerMonteiro:
    """``X Y^T`` with nonnegative factors close to a nonnegative matrix, by ``sklearn.decomposition.NMF``.

    Parameters
    ----------
    matrix : array (m, n)
        NumPy, with no negative entry.
    rank : int
    max_iter, tol, seed
        Of scikit-learn; ``seed`` is its ``random_state``. It warns where ``max_iter`` is not enough.

    Returns
    -------
    BurerMonteiro
        The factors ``left`` (m, r) and ``right`` (n, r), whose entries are nonnegative.

    Raises
    ------
    ImportError
        Without scikit-learn.
    TypeError, ValueError
        For a matrix with negative, NaN or infinite entries, torch tensors, or a rank out of range.

    >>> point = nmf(np.outer([1.0, 2.0], [3.0, 4.0, 5.0]), rank=1)
    >>> bool(np.allclose(point.dense(), [[3, 4, 5], [6, 8, 10]], rtol=1e-3))
    True
    """
    data = _table(matrix, "matrix")
    if (data < 0).any():
        raise ValueError(f"matrix must not have negative entries, got {int((data < 0).sum())} of them")
    model = _sklearn("decomposition", "nmf").NMF(
        check_rank(rank, data.shape), init="nndsvda", max_iter=max_iter, tol=tol, random_state=seed
    )
    return BurerMonteiro(model.fit_transform(data), model.components_.T)


class PrincipalComponents(NamedTuple):
    """Rows as ``mean + (low rank)``."""

    mean: np.ndarray
    """Of the rows, (n,)."""
    point: SVD
    """Of the centred matrix: ``right`` (n, r) holds the components, ``left * values`` the scores."""
    variances: np.ndarray
    """Of the scores, (r,), with m - 1 degrees of freedom."""


def pca(matrix: Any, rank: int) -> PrincipalComponents:
    """Principal components of the rows of a matrix (m, n), by ``sklearn.decomposition.PCA`` with a full decomposition.

    For unknown entries `complete` the matrix first, or use ``lowrank_sp.sklearn.LowRankImputer``; for outliers take
    `robust_pca`.

    Parameters
    ----------
    matrix : array (m, n)
        NumPy; a row is a sample, and there are at least two.
    rank : int
        Number of components.

    Returns
    -------
    PrincipalComponents
        ``mean`` (n,) of the rows; ``point``, an `SVD` whose ``right`` (n, r) holds the components; ``variances`` (r,).

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `nmf`, but entries may be negative.

    >>> rows = np.outer([1.0, 2.0, 3.0], [3.0, 4.0])
    >>> found = pca(rows, rank=1)
    >>> bool(np.allclose(found.mean + found.point.dense(), rows))
    True
    """
    data = _table(matrix, "matrix")
    if data.shape[0] < 2:
        raise ValueError(f"matrix must have at least two rows, got shape {data.shape}")
    model = _sklearn("decomposition", "pca").PCA(check_rank(rank, data.shape), svd_solver="full")
    scores = model.fit_transform(data)
    values = model.singular_values_
    left = scores / np.where(values > 0, values, 1)
    return PrincipalComponents(model.mean_, SVD(left, values, model.components_.T), model.explained_variance_)


class CanonicalCorrelation(NamedTuple):
    """Directions in two tables along which their rows correlate most."""

    correlations: np.ndarray
    """Descending, (r,)."""
    first: np.ndarray
    """Scores of the first table, (m, r)."""
    second: np.ndarray
    """Scores of the second table, (m, r)."""


def cca(first: Any, second: Any, rank: int, max_iter: int = 2000, tol: float = 1e-10) -> CanonicalCorrelation:
    """Canonical correlations of tables (m, n) and (m, k) with the same rows, by ``sklearn.cross_decomposition.CCA``.

    Parameters
    ----------
    first, second : arrays (m, n) and (m, k)
        NumPy; a row is a sample.
    rank : int
        At most the smallest of m, n and k.
    max_iter, tol : int, float
        Of scikit-learn.

    Returns
    -------
    CanonicalCorrelation
        ``correlations`` (r,), descending, and the scores ``first`` and ``second`` (m, r).

    Raises
    ------
    ImportError, TypeError, ValueError
        As for `pca`, and for tables with different numbers of rows.

    >>> x = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0], [5.0, 0.5]])
    >>> bool(np.allclose(cca(x, x[:, :1] + x[:, 1:], rank=1).correlations, 1))
    True
    """
    x, y = _table(first, "first"), _table(second, "second")
    if x.shape[0] != y.shape[0] or x.shape[0] < 2:
        raise ValueError(f"first and second must have the same rows, at least two, got {x.shape} and {y.shape}")
    rank = check_rank(rank, (min(x.shape), y.shape[1]))
    u, v = _sklearn("cross_decomposition", "cca").CCA(rank, max_iter=max_iter, tol=tol).fit_transform(x, y)
    correlations = (u * v).sum(0) / (np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0))
    return CanonicalCorrelation(correlations, u, v)


class SubspaceClusters(NamedTuple):
    """Points by the subspaces that they lie in."""

    labels: np.ndarray
    """The cluster of every point, integers from 0 (m,)."""
    affinity: np.ndarray
    """Squared cosines between the rows of the leading left singular vectors, (m, m): zero between independent
    subspaces."""


def subspace_clusters(matrix: Any, clusters: int, rank: int, seed: int = 0) -> SubspaceClusters:
    """Points, the rows of a matrix (m, n), in clusters that lie in a subspace each: ``sklearn.cluster`` on ``|U U^T|``.

    The representation of the points by each other with the least nuclear norm is ``U U^T`` with the leading left
    singular vectors U (m, r). It vanishes between points of independent subspaces whose dimensions add up to r;
    spectral clustering of the squared cosines of its rows finds them in noise too.

    Parameters
    ----------
    matrix : array (m, n)
        NumPy. For unknown entries `complete` it first, for outliers take `robust_pca`.
    clusters : int
        From 2 to m.
    rank : int
        The dimensions of all subspaces together.
    seed : int
        Of scikit-learn.

    Raises
    ------
    ImportError
        Without scikit-learn.
    TypeError, ValueError
        For a matrix with NaN or infinite entries, torch tensors, or numbers out of range.

    Notes
    -----
    Source: :cite:`costeira1998factorization`; as the solution of a low-rank representation :cite:`liu2013lrr`.

    >>> points = np.array([[1.0, 1, 0], [-2, -2, 0], [3, 3, 0], [0, 2, 2], [0, 1, 1], [0, -1, -1]])  # on two lines
    >>> labels = subspace_clusters(points, clusters=2, rank=2).labels
    >>> bool((labels == labels[0]).tolist() == [True] * 3 + [False] * 3)
    True
    """
    data = _table(matrix, "matrix")
    rank, most = check_rank(rank, data.shape), data.shape[0]
    if isinstance(clusters, bool) or not (isinstance(clusters, (int, np.integer)) and 2 <= clusters <= most):
        raise ValueError(f"clusters must be an integer from 2 to the number of rows {most}, got {clusters!r}")
    rows = np.linalg.svd(data, full_matrices=False)[0][:, :rank]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(rows.dtype).tiny)
    affinity = (rows @ rows.T) ** 2
    # scikit-learn warns of separate components, which are what is looked for: a trace of everything connects them.
    model = _sklearn("cluster", "subspace_clusters").SpectralClustering(
        int(clusters), affinity="precomputed", assign_labels="cluster_qr", random_state=seed
    )
    return SubspaceClusters(model.fit(affinity + np.finfo(rows.dtype).eps).labels_, affinity)


def _sklearn(module: str, name: str) -> Any:
    """A module of scikit-learn."""
    require(name, "sklearn", "sklearn")
    return import_module(f"sklearn.{module}")


def _table(value: Any, name: str) -> np.ndarray:
    """A finite real NumPy matrix."""
    if xp.is_torch(value):
        raise TypeError(
            f"{name} must be a NumPy array, because scikit-learn takes no torch tensors; use {name}.numpy()"
        )
    data = as_data(value, name, 2)
    if data.ndim != 2 or data.dtype.kind != "f":
        raise ValueError(f"{name} must be a real matrix with two axes, got {data.dtype} of shape {data.shape}")
    return data
