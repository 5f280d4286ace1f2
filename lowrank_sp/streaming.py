"""Completion of matrices whose entries stay on disk: the problem, and its one-line entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import inits, kernels, xp
from .entries import Block, EntryFiles, write_entries
from .operators import Pattern
from .parameterizations import BurerMonteiro
from .problems.base import LeastSquares, block_cgls, relative_error
from .problems.completion import solve_rows
from .result import Result, explained
from .solve import solve
from .solvers import ALS

__all__ = ["EntryFiles", "StreamedCompletion", "complete", "write_entries"]

Array = Any


def complete(
    entries: Any,
    rank: int,
    max_iter: int = 500,
    tol: float = 1e-10,
    checkpoint: Any = None,
    callback: Callable[[int, Any, float], Any] | None = None,
    progress: bool = False,
) -> Result:
    """Fill in a matrix whose entries stay on disk: alternating least squares, one block of rows at a time.

    An iteration reads the entries three times and holds the two factors and a few million entries in memory.

    Parameters
    ----------
    entries : path or EntryFiles
        What `write_entries` made.
    rank : int
    max_iter, tol, callback, progress
        As for `solve`.
    checkpoint : path, optional
        A file that is replaced after every iteration; run the same line again to continue an interrupted run, which
        ends with the identical result.

    Returns
    -------
    Result
        ``result.point.entries(rows, cols)`` are predictions.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> rows, cols = np.divmod(np.arange(0, 200, 2), 10)
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "entries"
    >>> found = complete(write_entries(folder, [(rows, cols, (rows + 1.0) * (cols + 1.0))], (20, 10)), rank=1)
    >>> float(found.point.entries(np.array([3]), np.array([4]))[0].round(6))
    20.0
    """
    problem = StreamedCompletion(entries)
    # The start is cheap beside the solve, and the same every time: an interrupted run needs no copy of it.
    start = inits.spectral(problem, BurerMonteiro, rank)
    result = solve(problem, start, ALS(), max_iter, tol, callback, progress, checkpoint)
    return explained(result, f"rank {rank} as given", "BurerMonteiro, spectral start -> ALS in blocks of rows")


class StreamedCompletion(LeastSquares):
    """`MatrixCompletion` with entries on disk: every pass reads them once, in blocks.

    Residuals are never stored: they are combinations of points and the data (`Stream`) that are evaluated block by
    block when an inner product or a gradient needs them. So all solvers work, but `ALS` needs by far the fewest
    passes. Points must be single NumPy ones.

    Parameters
    ----------
    entries : path or EntryFiles
    truth : Factors or array, optional
    block : int, optional
        Most entries in memory at a time.
    """

    data_ndim = 1
    nonexpansive = True
    refresh = 1

    def __init__(self, entries: Any, truth: Any = None, block: int | None = None):
        self.entries = entries if isinstance(entries, EntryFiles) else EntryFiles(entries)
        if block is not None and (isinstance(block, bool) or int(block) != block or block < 1):
            raise ValueError(f"block must be a positive integer, got {block!r}")
        self._most = () if block is None else (int(block),)
        self.shape, self.scale, self.truth = self.entries.shape, self.entries.square, truth
        self.data = Stream(self, (), 1.0)

    @property
    def observed(self) -> float:
        """Share of the entries that is observed."""
        return self.entries.count / (self.shape[0] * self.shape[1])

    def blocks(self, order: int) -> Any:
        """The entries in row (0) or column (1) order, a block at a time."""
        return self.entries.blocks(order, *self._most)

    def measure(self, *sums):
        return [Stream(self, tuple((1.0, point) for point in points), 0.0) for points in sums]

    def inner(self, a, b):
        total = 0.0
        for block in self.blocks(0):
            u = a.values(block)
            total += float(np.vdot(u, u if b is a else b.values(block)))
        return total

    def backproject(self, residual):
        return StreamMatrix(residual)

    def surrogate(self):
        return StreamMatrix((1 / self.observed) * self.data)

    def like(self):
        return np.zeros(1, self.entries.dtype)

    def error(self, point, residual=None) -> Any:
        return None if self.truth is None else relative_error(point, self.truth)

    def sweep_block(self, point, index, ridge, residual=None):
        if not isinstance(point, BurerMonteiro):
            return super().sweep_block(point, index, ridge, residual)
        block, other = point.arrays()[index], point.arrays()[1 - index]
        counts = self._counts(1 - index)
        # Mean diagonal of the Gram matrices.
        ridge = ridge * float(counts @ (other * other).sum(-1, dtype=float)) / block.size
        change, square = np.empty_like(block), 0.0
        for entries in self.blocks(index):
            part = slice(entries.low, entries.high)
            change[part], gradient = _sweep(entries, block[part], other, ridge)
            square += float(xp.inner(gradient, gradient))
        return change, square

    def _counts(self, order: int) -> np.ndarray:
        return np.diff(self.entries.pointers(order))

    def solve_block(self, point, gradient, index, ridge):
        return block_cgls(self, point, gradient, index, ridge)


def _pattern(block: Block, width: int) -> Pattern:
    rows = np.repeat(np.arange(block.high - block.low, dtype=np.int32), np.diff(block.indptr))
    return Pattern(rows, block.others, (block.high - block.low, width))


def _sweep(entries: Block, block: Array, other: Array, ridge: float) -> tuple[Array, Array]:
    """Change and gradient of the rows of a block, compiled where that is worth it."""
    if kernels.available(entries.values.size, block.shape[1], entries.values, block, other):
        return kernels.sweep(entries.indptr, entries.others, entries.values, None, block, other, ridge)
    pattern = _pattern(entries, other.shape[0])
    gap = BurerMonteiro(block, other).entries(pattern.rows, pattern.cols) - entries.values
    gradient = pattern.multiply(gap, other, False)
    return solve_rows(pattern, other, gradient + ridge * block, False, ridge), gradient


class Stream:
    """``sum_k c_k A(F(x_k)) + weight y`` over the entries on disk, evaluated block by block."""

    def __init__(self, problem: StreamedCompletion, terms: tuple[tuple[float, Any], ...], weight: float):
        self.problem, self.terms, self.weight = problem, terms, weight

    def values(self, block: Block) -> np.ndarray:
        """The entries of a block in row order."""
        rows = np.repeat(np.arange(block.low, block.high, dtype=np.int32), np.diff(block.indptr))
        total = self.weight * block.values
        for c, point in self.terms:
            if point.batch_shape:
                raise ValueError(f"streamed problems take single points, got batch axes {point.batch_shape}")
            total = total + c * point.entries(rows, block.others)
        return total

    def __add__(self, other: Stream) -> Stream:
        return Stream(self.problem, self.terms + other.terms, self.weight + other.weight)

    def __rmul__(self, factor: Any) -> Stream:
        c = float(factor)
        return Stream(self.problem, tuple((c * k, point) for k, point in self.terms), c * self.weight)

    def __neg__(self) -> Stream:
        return -1.0 * self

    def __sub__(self, other: Stream) -> Stream:
        return self + -other


class StreamMatrix:
    """The sparse matrix of a `Stream`, or its transpose; a product is one pass over the entries."""

    def __init__(self, stream: Stream, transposed: bool = False):
        self.stream, self.transposed = stream, transposed

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.stream.problem.shape
        return (n, m) if self.transposed else (m, n)

    def adjoint(self) -> StreamMatrix:
        return StreamMatrix(self.stream, not self.transposed)

    def __matmul__(self, x: Array) -> Array:
        problem = self.stream.problem
        out = np.zeros((self.shape[0], x.shape[1]), np.result_type(x, problem.entries.dtype))
        for block in problem.blocks(0):
            pattern, part = _pattern(block, problem.shape[1]), slice(block.low, block.high)
            values = self.stream.values(block)
            if self.transposed:
                out += pattern.multiply(values, x[part], True)
            else:
                out[part] = pattern.multiply(values, x, False)
        return out
