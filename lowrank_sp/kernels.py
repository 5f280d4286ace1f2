"""When and on how many threads the compiled loops over sampled entries run; without numba nothing needs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["WORK", "available", "back_and_forth", "largest", "sampled", "sweep", "threads"]

# Entries times rank from which a compiled loop is used. Loading numba costs about half a second once, and a
# fresh installation compiles for a few seconds once; below this a whole solve takes less than that.
WORK = 1_000_000
REAL = (np.dtype(np.float32), np.dtype(np.float64))


def available(entries: int, rank: int, *arrays: Any) -> bool:
    """Whether the compiled loops are used: real NumPy matrices of one type, enough work, and numba installed."""
    first = arrays[0]
    if type(first) is not np.ndarray or entries * rank < WORK or first.dtype not in REAL:
        return False
    same = all(a.dtype == first.dtype and a.ndim <= 2 for a in arrays)
    return same and _installed()


@lru_cache(maxsize=1)
def _installed() -> bool:
    try:
        return find_spec("numba") is not None
    except ValueError:  # a module that has been replaced by None
        return False


def threads() -> int:
    """Cores this process may use, at most ``NUMBA_NUM_THREADS`` and ``OMP_NUM_THREADS``."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits += [int(v) for v in map(os.environ.get, ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")) if v and v.isdigit()]
    return max(1, min(limits))


@lru_cache(maxsize=1)
def _pool(process: int, size: int) -> Any:
    """One pool of threads for each process: they do not survive a fork."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(size, thread_name_prefix="lowrank_sp")


def _parallel(function: Callable[..., Any], arguments: tuple[Any, ...], cuts: np.ndarray) -> list[Any]:
    """What a loop that releases the interpreter returns for consecutive ranges."""
    ranges = [(int(a), int(b)) for a, b in pairwise(cuts) if a < b]
    if len(ranges) == 1:
        return [function(*arguments, *ranges[0])]
    pool = _pool(os.getpid(), threads())
    return [job.result() for job in [pool.submit(function, *arguments, *r) for r in ranges]]


def sampled(left: np.ndarray, right: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """``sum_k left[rows, k] right[cols, k]``, an array (N,); an ``IndexError`` for positions outside."""
    from . import compiled

    out = np.empty(rows.shape[0], dtype=left.dtype)
    cuts = np.linspace(0, rows.shape[0], threads() + 1).astype(np.int64)
    factors = np.ascontiguousarray(left), np.ascontiguousarray(right)
    if not all(_parallel(compiled.sampled, (*factors, rows, cols, out), cuts)):
        raise IndexError(f"rows and cols hold positions outside of shape {(left.shape[0], right.shape[0])}")
    return out


def largest(indptr: np.ndarray, values: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The value number ``keep[i]``, from the largest down, of ``values[indptr[i]:indptr[i + 1]]``; zero for no values.

    By partition: linear in the number of values. ``keep`` is at least one where there are values.
    """
    from . import compiled

    out = np.zeros(keep.shape[0], dtype=values.dtype)
    _parallel(compiled.largest, (indptr, values, keep, out), _even_cuts(indptr))
    return out


def _even_cuts(indptr: np.ndarray) -> np.ndarray:
    """Ranges of rows with equal numbers of entries, one for each thread."""
    cuts = np.searchsorted(indptr, np.linspace(0, indptr[-1], threads() + 1))
    cuts[0], cuts[-1] = 0, indptr.shape[0] - 1
    return cuts


def sweep(
    indptr: np.ndarray,
    cols: np.ndarray,
    data: np.ndarray,
    roots: np.ndarray | None,
    block: np.ndarray,
    other: np.ndarray,
    ridge: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The change of every row of an ALS block, and its gradient before, in one pass over the entries.

    Parameters
    ----------
    indptr, cols, data : arrays (m + 1,), (N,), (N,)
        The entries in row order.
    roots : array (N,), optional
        Square roots of the weights; ``data`` are multiplied by them already.
    block, other : arrays (m, r), (n, r)
        The factor that moves, and the one that is fixed.
    ridge : float
        Tikhonov ridge, in the units of the Gram matrices.

    Returns
    -------
    change, gradient : arrays (m, r)
    """
    from . import compiled

    kind, info = block.dtype.type, np.finfo(block.dtype)
    block, other = np.ascontiguousarray(block), np.ascontiguousarray(other)
    change, gradient = np.empty_like(block), np.empty_like(block)
    roots = np.empty(0, dtype=block.dtype) if roots is None else roots
    # The floor of `xp.solve_psd`: ten machine epsilons of the mean eigenvalue.
    scalars = kind(ridge), kind(10.0 * float(info.eps)), kind(float(info.tiny) ** 0.5)
    _parallel(compiled.sweep, (indptr, cols, data, roots, block, other, *scalars, change, gradient), _even_cuts(indptr))
    return change, gradient


def back_and_forth(
    matrix: np.ndarray, first: np.ndarray, second: np.ndarray, chosen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``A x`` and ``A^T A x`` (2, N) and (2, n) for two vectors x, in one pass over a matrix A (N, n).

    Of the rows of A that an array of integers chooses, if it is given, the others being zero.
    """
    from . import compiled

    images = np.zeros((2, matrix.shape[0]), dtype=matrix.dtype)
    chosen = np.arange(matrix.shape[0]) if chosen is None else chosen
    cuts = np.linspace(0, chosen.shape[0], threads() + 1).astype(np.int64)
    vectors = np.ascontiguousarray(first), np.ascontiguousarray(second)
    backs = _parallel(compiled.back_and_forth, (matrix, chosen, *vectors, images), cuts)
    return images, np.sum(backs, axis=0) if backs else np.zeros((2, matrix.shape[1]), dtype=matrix.dtype)
