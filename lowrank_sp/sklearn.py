"""A scikit-learn transformer that fills in missing values with a low-rank model of the table."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from .parameterizations import BurerMonteiro
from .problems import MatrixCompletion
from .result import uninterrupted
from .solve import solve
from .solvers import ALS

__all__ = ["LowRankImputer"]

# What "auto" tries: these ridges for rank after rank, until so many ranks in a row have not lowered the error to less
# than this share.
RIDGES, PATIENCE, WORTH = (0.3, 0.03), 2, 0.99


class LowRankImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill in missing values (NaN) with a low-rank model: ``x = mean + scale * (Y z)`` for every row.

    `fit` completes the training table by alternating least squares and keeps the right factor Y; `transform` fits the
    coefficients z of every row, new or old, to the values that the row has, and predicts the others. Values that are
    known are never changed.

    Parameters
    ----------
    rank : int or "auto", default "auto"
        Columns of Y; 0 is mean imputation. At most one less than the number of rows, and the number of columns.
        ``"auto"`` takes the rank and the ridge that predict held-out entries best, 0 included, so that a table without
        low-rank structure is filled with means.
    ridge : float, default 0.1
        Tikhonov ridge of all least-squares problems, relative to the mean Gram matrix of a row; needed where rows have
        few values. Ignored if ``rank="auto"``, which chooses it as well.
    center : bool, default True
        Take the mean of every column off first. Without it rank 0 fills in zeros.
    scale : bool, default True
        Divide every column by its standard deviation first, so that units do not matter.
    max_rank : int, default 10
        Largest rank that ``"auto"`` tries.
    validation : float, default 0.1
        Share of the known values that ``"auto"`` holds out.
    max_iter : int, default 100
    tol : float, default 1e-4
        As for `lowrank_sp.solve`.
    random_state : int, RandomState instance or None, default None
        Of the start and of the held-out values.

    Attributes
    ----------
    rank_ : int
    ridge_ : float
        The ones used.
    mean_, scale_ : arrays (n_features,)
    components_ : array (rank, n_features)
        The transpose of Y.
    n_iter_ : int
        Iterations of the last fit.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Notes
    -----
    A column without any value is filled with 0, with a warning. The model is that of :cite:`mazumder2010softimpute`
    without the shrinkage; the estimator is :cite:`jain2013altmin`.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, -1.0])
    >>> table[3, 1] = np.nan
    >>> exact = LowRankImputer(rank=1, ridge=0.0, center=False, tol=1e-10, random_state=0)
    >>> exact.fit_transform(table)[3].round(3).tolist()
    [4.0, 8.0, -4.0]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "rank": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "center": ["boolean"],
        "scale": ["boolean"],
        "max_rank": [Interval(Integral, 0, None, closed="left")],
        "validation": [Interval(Real, 0, 1, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        rank: int | str = "auto",
        *,
        ridge: float = 0.1,
        center: bool = True,
        scale: bool = True,
        max_rank: int = 10,
        validation: float = 0.1,
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: Any = None,
    ):
        self.rank = rank
        self.ridge = ridge
        self.center = center
        self.scale = scale
        self.max_rank = max_rank
        self.validation = validation
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> LowRankImputer:
        """Learn means, scales and the right factor of a table (n_samples, n_features) with NaN where it is unknown."""
        self._validate_params()
        X = self._table(X, reset=True)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        known = ~np.isnan(X)
        self._standardize(X, known)
        Z = (X - self.mean_) / self.scale_
        most = max(0, min(X.shape[0] - 1, X.shape[1]))
        if self.rank == "auto":
            self.rank_, self.ridge_ = self._validated(Z, known, min(most, self.max_rank), rng)
        else:
            if self.rank > most:
                raise ValueError(
                    f"rank={self.rank} is too large for n_samples={X.shape[0]} and n_features={X.shape[1]}; "
                    f"it may be {most} at most"
                )
            self.rank_, self.ridge_ = int(self.rank), float(self.ridge)
        right, self.n_iter_ = self._right_factor(Z, known, self.rank_, self.ridge_, rng)
        self.components_ = right.T
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The table with predictions in place of NaN."""
        check_is_fitted(self)
        X = self._table(X, reset=False)
        known = ~np.isnan(X)
        if known.all():
            return X
        predicted = self._predict(
            (X - self.mean_) / self.scale_, known, self.components_.T.astype(X.dtype), self.ridge_
        )
        return np.where(known, X, predicted * self.scale_ + self.mean_).astype(X.dtype, copy=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _table(self, X: Any, reset: bool) -> np.ndarray:
        kinds = [np.float64, np.float32]
        return validate_data(self, X, reset=reset, dtype=kinds, ensure_all_finite="allow-nan", copy=True)

    def _standardize(self, X: np.ndarray, known: np.ndarray) -> None:
        """Set means and scales of the known values; columns that are constant or empty get scale 1."""
        counts = known.sum(0)
        if not counts.all():
            empty = np.flatnonzero(counts == 0).tolist()
            warnings.warn(f"columns {empty} have no value; they are filled with 0", stacklevel=3)
        total = np.where(known, X, 0)
        some = np.maximum(counts, 1)
        self.mean_ = (total.sum(0) / some * self.center).astype(X.dtype)
        gap = np.where(known, X - self.mean_, 0)
        size = abs(gap).max(0)  # relative to it, so that no square leaves the range of the type
        deviation = size * ((gap / np.where(size > 0, size, 1)) ** 2).sum(0) ** 0.5 / some**0.5
        # Columns whose spread is rounding of their mean count as constant.
        spread = deviation > 10 * np.finfo(X.dtype).eps * abs(self.mean_)
        self.scale_ = np.where(spread & self.scale, deviation, 1).astype(X.dtype)

    def _right_factor(self, Z: Any, known: Any, rank: int, ridge: float, rng: Any) -> tuple[np.ndarray, int]:
        """Y (n_features, rank), with orthogonal columns, of the completed standardized table."""
        if rank == 0 or not known.any():
            return np.zeros((Z.shape[1], rank), Z.dtype), 1
        with warnings.catch_warnings():  # rows and columns without values keep to the mean
            warnings.filterwarnings("ignore", ".*no observed entry", UserWarning)
            problem = MatrixCompletion(*known.nonzero(), Z[known], Z.shape)
        if problem.scale == 0:
            return np.zeros((Z.shape[1], rank), Z.dtype), 1
        start = BurerMonteiro(*(0.1 * rng.standard_normal((k, rank)).astype(Z.dtype) for k in Z.shape))
        result = uninterrupted(solve(problem, start, ALS(ridge or "auto"), self.max_iter, self.tol))
        return result.point.right, result.nit

    def _predict(self, Z: np.ndarray, known: np.ndarray, right: np.ndarray, ridge: float) -> np.ndarray:
        """``Y z`` for every row, with z fitted to what the row has."""
        if right.shape[1] == 0 or not right.any() or not known.any():
            return np.zeros_like(Z)
        zeroed = np.where(known, Z, 0)
        unit = float(known.sum(0) @ (right**2).sum(1)) / (Z.shape[0] * right.shape[1])
        grams = np.einsum("ij,jk,jl->ikl", known.astype(Z.dtype), right, right, optimize=True)
        shift = ((ridge + 10 * np.finfo(Z.dtype).eps) * unit) * np.eye(right.shape[1], dtype=Z.dtype)
        return np.linalg.solve(grams + shift, (zeroed @ right)[..., None])[..., 0] @ right.T

    def _validated(self, Z: np.ndarray, known: np.ndarray, most: int, rng: Any) -> tuple[int, float]:
        """Rank and ridge with the least error on held-out values."""
        rows, cols = known.nonzero()
        held = rng.permutation(rows.size)[: int(self.validation * rows.size)]
        kept = known.copy()
        kept[rows[held], cols[held]] = False
        target = Z[rows[held], cols[held]]
        best, choice = float((target**2).sum()), (0, float(self.ridge))
        for rank in range(1, most + 1) if target.size else ():
            for ridge in RIDGES:
                right, _ = self._right_factor(Z, kept, rank, ridge, rng)
                guess = self._predict(Z, kept, right, ridge)[rows[held], cols[held]]
                error = float(((guess - target) ** 2).sum())
                if error < WORTH * best:
                    best, choice = error, (rank, ridge)
            if rank >= choice[0] + PATIENCE:
                break
        return choice
