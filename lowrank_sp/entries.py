"""Observed entries in memory-mapped files, in row order and in column order, for data larger than memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import xp
from .problems.checks import as_data, as_indices, check_shape

__all__ = ["Block", "EntryFiles", "write_entries"]

FORMAT = "lowrank_sp entries 1"
# Entries that are sorted in memory, or handed to a solver, at a time.
ENTRIES = 1 << 22
ORDERS = ("by_row", "by_col")


class Block(NamedTuple):
    """The entries of consecutive rows (or columns): those of row ``low + i`` at ``indptr[i]:indptr[i + 1]``."""

    low: int
    high: int
    indptr: np.ndarray
    others: np.ndarray
    values: np.ndarray


class EntryFiles:
    """A folder that `write_entries` made, opened for reading.

    Parameters
    ----------
    folder : path

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When a file is missing, truncated or does not fit the others; wrong indices and values are found when their
        block is read.
    """

    def __init__(self, folder: Any):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}; make one with lr.streaming.write_entries(...)")
        try:
            facts = json.loads((self.folder / "facts.json").read_text())
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']!r}")
            self.shape, self.count = check_shape(facts["shape"]), int(facts["count"])
            self.square, self.dtype = float(facts["square"]), np.dtype(str(facts["dtype"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.folder} holds no entries: facts.json is missing or damaged ({error})") from error
        expected = (("others", self.count, np.dtype(np.int32)), ("values", self.count, self.dtype))
        self._orders = []
        for name, size in zip(ORDERS, self.shape, strict=True):
            sizes = (("indptr", size + 1, np.dtype(np.int64)), *expected)
            self._orders.append([self._open(f"{name}.{part}.npy", k, kind) for part, k, kind in sizes])

    def _open(self, name: str, size: int, kind: np.dtype) -> np.ndarray:
        """A read-only memory map of the right size."""
        try:
            array = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.folder / name} is missing or damaged: {error}; write the entries again") from error
        if array.shape != (size,) or array.dtype != kind:
            raise ValueError(
                f"{self.folder / name} holds {array.shape} {array.dtype}, but facts.json says ({size},) {kind}; "
                "write the entries again"
            )
        return array

    def __repr__(self) -> str:
        return f"EntryFiles({str(self.folder)!r}): {self.count} {self.dtype} entries of a matrix {self.shape}"

    def pointers(self, order: int) -> np.ndarray:
        """Where the entries of every row (``order`` 0) or column (1) begin, and the last ones end."""
        indptr = self._orders[order][0]
        if indptr[0] != 0 or indptr[-1] != self.count or (np.diff(indptr) < 0).any():
            raise ValueError(f"{self.folder / ORDERS[order]}.indptr.npy is damaged; write the entries again")
        return indptr

    def blocks(self, order: int, most: int = ENTRIES) -> Iterator[Block]:
        """Consecutive rows (``order`` 0) or columns (1) with at most ``most`` entries, or one alone if it has more."""
        _, others, values = self._orders[order]
        indptr = self.pointers(order)
        size, width = self.shape[order], self.shape[1 - order]
        low = 0
        while low < size:
            high = max(low + 1, int(np.searchsorted(indptr, indptr[low] + most, "right")) - 1)
            part = slice(int(indptr[low]), int(indptr[high]))
            block = Block(
                low, high, indptr[low : high + 1] - indptr[low], np.array(others[part]), np.array(values[part])
            )
            inside = not block.others.size or (block.others.min() >= 0 and block.others.max() < width)
            if not (inside and np.isfinite(block.values).all()):
                raise ValueError(
                    f"{self.folder / ORDERS[order]} is damaged between entries {part.start} and {part.stop}: "
                    "positions outside of the matrix, or values that are not finite; write the entries again"
                )
            yield block
            low = high


def write_entries(folder: Any, chunks: Iterable[Any], shape: Any, dtype: Any = np.float64) -> EntryFiles:
    """Write observed entries to a new folder, sorted both ways, with memory for a few million entries only.

    Parameters
    ----------
    folder : path
        Must not exist; it appears when everything is written.
    chunks : iterable of (rows, cols, values)
        Arrays of any lengths, in any order; read once. Memory maps may be given as one chunk.
    shape : (m, n)
    dtype : float32 or float64
        Of the stored values, and of the factors that are fitted to them.

    Returns
    -------
    EntryFiles

    Raises
    ------
    ValueError, TypeError
        As `MatrixCompletion` for every chunk; for duplicates, no entries at all, or a folder that exists.
    """
    from shutil import rmtree

    folder, (m, n), kind = Path(folder), check_shape(shape), np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {kind}")
    if folder.exists():
        raise ValueError(f"{folder} exists; give a new folder, or open it with lr.streaming.EntryFiles(folder)")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        raw, counts, square = _write_raw(partial, chunks, (m, n), kind)
        for order, name in enumerate(ORDERS):
            _write_order(partial, name, raw, counts[order], order)
        del raw
        (partial / "raw").unlink()
        facts = {"format": FORMAT, "shape": [m, n], "count": int(counts[0].sum()), "square": square, "dtype": str(kind)}
        (partial / "facts.json").write_text(json.dumps(facts, indent=1))
        os.replace(partial, folder)
    finally:
        rmtree(partial, ignore_errors=True)
    return EntryFiles(folder)


def _pieces(chunk: Any, shape: tuple[int, int], kind: np.dtype) -> Iterator[np.ndarray]:
    """Checked records of one chunk, a few million at a time."""
    try:
        rows, cols, values = chunk
    except (TypeError, ValueError) as error:
        raise TypeError(f"chunks must yield (rows, cols, values), got {type(chunk).__name__}") from error
    if any(map(xp.is_torch, (rows, cols, values))):
        raise TypeError("chunks must hold NumPy arrays, because entries on disk are NumPy's; use tensor.numpy()")
    if not np.ndim(rows) == np.ndim(cols) == np.ndim(values) == 1 or not len(rows) == len(cols) == len(values):
        raise ValueError("rows, cols and values of a chunk must be arrays of one axis and one length")
    for low in range(0, len(rows), ENTRIES):
        part = slice(low, low + ENTRIES)
        i, j = as_indices(rows[part], "rows", shape[0]), as_indices(cols[part], "cols", shape[1])
        record = np.empty(len(i), dtype=[("at", np.int32, (2,)), ("value", kind)])
        record["at"][:, 0], record["at"][:, 1], record["value"] = i, j, _real(values[part], kind)
        yield record


def _real(values: Any, kind: np.dtype) -> np.ndarray:
    """The values as ``kind``, which is to hold all of them."""
    values = as_data(values, "values", 1)
    if values.dtype.kind == "c":
        raise TypeError(f"values must be real, got {values.dtype}; complex entries are completed in memory only")
    with np.errstate(over="ignore"):
        out = values.astype(kind)
    if not np.isfinite(out).all():
        raise ValueError(f"values up to {abs(values).max():.2g} are too large for {kind}; divide them, or take float64")
    return out


def _write_raw(
    folder: Path, chunks: Any, shape: tuple[int, int], kind: np.dtype
) -> tuple[Any, list[np.ndarray], float]:
    """All entries as they come, their numbers in every row and column, and their squared norm."""
    counts, square = [np.zeros(k, np.int64) for k in shape], 0.0
    with open(folder / "raw", "wb") as file:
        for chunk in chunks:
            for record in _pieces(chunk, shape, kind):
                record.tofile(file)
                square += float(np.vdot(record["value"], record["value"].astype(float)))
                for k in range(2):
                    counts[k] += np.bincount(record["at"][:, k], minlength=shape[k])
    if not counts[0].any():
        raise ValueError("chunks held no entries")
    return np.memmap(folder / "raw", dtype=record.dtype, mode="r"), counts, square


def _write_order(folder: Path, name: str, raw: np.ndarray, counts: np.ndarray, order: int) -> None:
    """One sorted copy: entries are dealt to ranges of rows that fit in memory, then every range is sorted."""
    indptr = np.concatenate(([0], np.cumsum(counts)))
    np.save(folder / f"{name}.indptr.npy", indptr)
    others, values = (
        np.lib.format.open_memmap(folder / f"{name}.{part}.npy", "w+", kind, (raw.size,))
        for part, kind in (("others", np.int32), ("values", raw.dtype["value"]))
    )
    cuts = [0]
    while cuts[-1] < counts.size:
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(indptr, indptr[cuts[-1]] + ENTRIES, "right")) - 1))
    dealt = np.memmap(folder / "dealt", dtype=raw.dtype, mode="w+", shape=raw.shape)
    place = indptr[cuts[:-1]].copy()
    for low in range(0, raw.size, ENTRIES):
        record = np.array(raw[low : low + ENTRIES])
        bucket = np.searchsorted(cuts, record["at"][:, order], "right") - 1
        record = record[np.argsort(bucket, kind="stable")]
        sizes = np.bincount(bucket, minlength=place.size)
        ends = np.cumsum(sizes)
        for b in np.flatnonzero(sizes):
            dealt[place[b] : place[b] + sizes[b]] = record[ends[b] - sizes[b] : ends[b]]
        place += sizes
    for low, high in zip(indptr[cuts[:-1]], indptr[cuts[1:]], strict=True):
        record = np.array(dealt[low:high])
        mine, theirs = record["at"][:, order], record["at"][:, 1 - order]
        sort = np.lexsort((theirs, mine))
        repeated = (np.diff(mine[sort]) == 0) & (np.diff(theirs[sort]) == 0)
        if repeated.any():
            at = record["at"][sort[1:][repeated][0]]
            raise ValueError(
                f"chunks repeat positions, for instance ({at[0]}, {at[1]}); drop or average duplicates first"
            )
        others[low:high], values[low:high] = theirs[sort], record["value"][sort]
    others.flush()
    values.flush()
    del dealt
    (folder / "dealt").unlink()
