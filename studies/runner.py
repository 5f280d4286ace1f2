"""Cells in, rows out: run what is not stored yet, and store every row as soon as it is finished."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from tqdm import tqdm

from studies import provenance
from studies.catalogue import Study, import_study
from studies.grid import Cell, canonical
from studies.pools import LOCAL, pool
from studies.store import Row, Store, write_atomic

__all__ = ["Failure", "Interrupted", "Outcome", "execute_study", "failure_summary", "flatten", "run_study"]


class Interrupted(KeyboardInterrupt):
    """The run was stopped from the keyboard; the message says what is saved."""


@dataclass(frozen=True)
class Failure:
    """A cell that raised, with its traceback."""

    study: str
    cell: Cell
    traceback: str


@dataclass(frozen=True)
class Outcome:
    """What a run did: stored rows in the order of the grid, failed cells, rows found at the start."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    cached: int
    total: int
    seconds: float


@dataclass(frozen=True)
class _Job:
    folder: Path
    code: str
    key: str
    cell: Cell
    store: Store
    commit: str
    runner: int | None  # process that must be alive on this machine, if any


def run_study(
    study: Study, out: Path | str, quick: bool = False, jobs: int = 1, backend: str = "loky"
) -> list[dict[str, Any]]:
    """Run a study, or take it from the stored rows, and return rows as `measures` and `figures` receive them.

    Raises RuntimeError with the tracebacks when a cell failed; all other cells are stored by then.
    """
    outcome = execute_study(study, Path(out), quick=quick, jobs=jobs, backend=backend)
    if outcome.failures:
        raise RuntimeError(failure_summary(outcome.failures))
    return flatten(outcome.rows)


def execute_study(study: Study, out: Path, *, quick: bool = False, jobs: int = 1, backend: str = "loky") -> Outcome:
    """Run the cells of a study that are not stored under `out`; raises Interrupted on Ctrl-C."""
    store, cells, start = Store(out / study.name), study.cells(quick), time.perf_counter()
    with pool(backend, jobs), store.exclusive():
        write_atomic(store.folder / "run.json", canonical({"quick": quick}))
        stored = store.load()
        cached = sum(key in stored for key in cells)
        todo = _jobs(study, store, {key: cell for key, cell in cells.items() if key not in stored}, backend)
        _say(f"{study.name}: {len(cells)} cells, {cached} stored, {len(todo)} to run")
        try:
            failures = _run(todo, study.name)
        except KeyboardInterrupt as error:
            saved = len(cells.keys() & store.load().keys())
            raise Interrupted(
                f"interrupted: {saved} of {len(cells)} rows of {study.name} are saved; the same command resumes"
            ) from error
        store.compact()
        stored = store.load()
    rows = tuple(stored[key] for key in cells if key in stored)
    seconds = time.perf_counter() - start
    _say(f"{study.name}: {len(rows)} of {len(cells)} rows stored, {len(failures)} failed, {seconds:.1f} s")
    return Outcome(rows, tuple(failures), cached, len(cells), seconds)


def flatten(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Stored rows as flat dictionaries: the cell merged with its result, one per entry of a list result."""
    flat = []
    for row in rows:
        results = row["result"] if isinstance(row["result"], list) else [row["result"]]
        flat += [{**row["cell"], **result} for result in results]
    return flat


def failure_summary(failures: Iterable[Failure]) -> str:
    """One traceback per distinct error, with the cells that raised it."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for failure in failures:
        groups.setdefault((failure.study, failure.traceback), []).append(failure.cell)
    texts = []
    for (study, text), cells in groups.items():
        more = f", and {len(cells) - 1} more cells with the same error" if len(cells) > 1 else ""
        texts.append(f"{study}: failed cell {canonical(cells[0])}{more}\n{text}")
    count = sum(map(len, groups.values()))
    return "\n".join([*texts, f"{count} failed; the same command tries again, and keeps all stored rows"])


def _jobs(study: Study, store: Store, cells: Mapping[str, Cell], backend: str) -> list[_Job]:
    runner = os.getpid() if backend in LOCAL else None
    store = Store(store.folder.resolve())
    return [
        _Job(study.folder.resolve(), study.code, key, cell, store, provenance.commit(), runner)
        for key, cell in cells.items()
    ]


def _run(jobs: list[_Job], name: str) -> list[Failure]:
    if not jobs:
        return []
    failures = []
    with tqdm(total=len(jobs), desc=name, unit="cell", disable=not sys.stderr.isatty()) as bar:
        try:
            for failure in _parallel()(joblib.delayed(_execute)(job) for job in jobs):
                bar.update()
                failures += [failure] if failure else []
        except BrokenExecutor as error:
            text = f"a worker process died ({error}); with less memory in use (fewer --jobs) it may pass\n"
            failures.append(Failure(name, {"part": "unknown"}, text))
    return failures


def _parallel() -> joblib.Parallel:
    backend: Any = joblib.parallel.get_active_backend()[0]
    return joblib.Parallel(return_as="generator_unordered" if backend.supports_return_generator else "list")


def _execute(job: _Job) -> Failure | None:
    if job.runner not in (None, os.getpid()):
        _end_with(job.runner)
    try:
        run = import_study(job.folder, job.code).run
        start = time.perf_counter()
        with _interrupts() as seen:
            result = run(dict(job.cell))
        seconds = time.perf_counter() - start
        if seen:
            raise KeyboardInterrupt
        job.store.append(
            {
                "key": job.key,
                "cell": job.cell,
                "result": _checked(result, job.cell),
                "seconds": round(seconds, 6),
                "commit": job.commit,
                "versions": provenance.versions(),
                "machine": provenance.machine(),
            }
        )
    except Exception:
        return Failure(job.folder.name, job.cell, traceback.format_exc())
    return None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The interrupts of a cell: after one its result is no row, even if the cell has caught it, as solvers do."""
    before, seen = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def handle(number: int, frame: Any) -> None:
        seen.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@cache
def _end_with(runner: int) -> None:
    """End this worker soon after its runner: it must not go on next to the run that resumes a killed one."""

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _checked(result: Any, cell: Cell) -> Any:
    plain = _plain(result, "result")
    for entry in plain if isinstance(plain, list) else [plain]:
        if not isinstance(entry, dict):
            raise TypeError(f"run returned {type(entry).__name__}; return a dict, or a list of dicts")
        clash = [key for key in entry.keys() & cell.keys() if entry[key] != cell[key]]
        if clash:
            raise ValueError(f"run returned {', '.join(sorted(clash))} with other values than the cell; rename them")
    return plain


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is not a string")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where}: got {type(value).__name__}; return numbers, strings, lists, dicts or NumPy arrays")


def _say(text: str) -> None:
    if not sys.stderr.isatty():
        print(text, flush=True)
