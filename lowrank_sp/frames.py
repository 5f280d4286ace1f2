"""Tables in and tables out: pandas DataFrames as matrices with unknown entries, and unknown entries filled in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import xp
from .operators import is_sparse, sparse_entries, unmasked

__all__ = ["as_array", "fill", "is_frame"]

Array = Any


def is_frame(table: Any) -> bool:
    """Whether ``table`` is a pandas DataFrame, without ever importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(table, pandas.DataFrame)


def as_array(frame: Any) -> np.ndarray:
    """The numbers of a DataFrame, NaN where they are unknown; float32 if that holds all columns, else float64.

    Raises
    ------
    TypeError
        When it is no DataFrame, or names the columns that are not numeric.
    """
    if not is_frame(frame):
        raise TypeError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
    from pandas.api.types import is_any_real_numeric_dtype

    odd = [name for name, kind in frame.dtypes.items() if not is_any_real_numeric_dtype(kind)]
    if odd:
        raise TypeError(
            f"frame must have numeric columns, but {odd[:5]} are not; convert them, or select the others with "
            'frame.select_dtypes("number")'
        )
    single = all(str(kind).lower() == "float32" for kind in frame.dtypes)
    return frame.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)


def fill(matrix: Any, result: Any) -> Any:
    """The matrix with its unknown entries replaced by those of a low-rank one; what was known stays as it was.

    Parameters
    ----------
    matrix : array (m, n) with NaN, scipy sparse matrix, torch tensor (sparse or not), or DataFrame
        What was given to `complete`; a masked array has its mask in place of NaN.
    result : Result or Factors
        What `complete` returned, or its point; of `robust_pca` the ``result``.

    Returns
    -------
    array, tensor or DataFrame
        A DataFrame has the index and the columns of ``matrix``, and columns without unknown entries keep their type.
        A sparse matrix becomes an array.

    Raises
    ------
    ValueError, TypeError
        When shapes differ, the result is a batch, libraries are mixed, or ``matrix`` is of none of these kinds.

    Examples
    --------
    >>> import lowrank_sp as lr
    >>> matrix = np.outer([1.0, 2.0, 3.0], [1.0, 10.0])
    >>> matrix[2, 1] = np.nan
    >>> fill(matrix, lr.complete(matrix, rank=1)).round(6).tolist()
    [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]
    """
    point = getattr(result, "point", result)
    if not hasattr(point, "entries"):
        raise TypeError(
            f"result must be what lr.complete returned, or a point, got {type(result).__name__}; of a Separation give "
            "its .result"
        )
    if point.batch_shape:
        raise ValueError(f"result must be a single one, got batch axes {tuple(point.batch_shape)}")
    if tuple(np.shape(matrix)) != tuple(point.shape):
        raise ValueError(f"matrix has shape {tuple(np.shape(matrix))}, but the result has {tuple(point.shape)}")
    if is_frame(matrix):
        return _fill_frame(matrix, point)
    if is_sparse(matrix):
        rows, cols, values = sparse_entries(matrix)
        out = point.dense()
        xp.namespace(values, out)
        out[rows, cols] = values
        return out
    return _fill_array(matrix if xp.is_torch(matrix) else unmasked(matrix), point)


def _fill_array(array: Array, point: Any) -> Array:
    unknown = xp.namespace(array, *point.arrays()).isnan(array)
    rows, cols = unknown.nonzero(as_tuple=True) if xp.is_torch(array) else unknown.nonzero()
    out = array.clone() if xp.is_torch(array) else array.copy()
    if len(rows):
        out[rows, cols] = point.entries(rows, cols)
    return out


def _fill_frame(frame: Any, point: Any) -> Any:
    unknown = frame.isna().to_numpy()
    out = frame.copy()
    for j in np.flatnonzero(unknown.any(0)):
        rows = np.flatnonzero(unknown[:, j])
        new = xp.to_numpy(point.entries(rows, np.full(rows.size, j)))
        column = frame.iloc[:, j].to_numpy(dtype=new.dtype, na_value=np.nan, copy=True)
        column[rows] = new
        out.isetitem(j, column)
    return out
