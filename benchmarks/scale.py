"""Cost of completion against the number of entries: seconds per iteration, memory, and the log-log slope.

Run ``python benchmarks/scale.py [ENTRIES ...]``, by default ``1e5 1e6 1e7``; ``1e8`` is 1,000,000 x 100,000 and needs
about 10 GiB. Every size runs in a process of its own, so that its peak memory is its own. Rows go to
``benchmarks/results/scale.json`` and replace those of the same size.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: the compiled loops have the cores

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from common import RESULTS, table, write_rows

import lowrank_sp as lr
from lowrank_sp import kernels

RANK = 10
PER_ROW = 100
WRONG = 0.02
ROBUST = lr.ScaledGD()
CHUNK = 20_000  # rows generated at a time


def shape_of(entries: int) -> tuple[int, int]:
    """A hundred entries in every row, and a thousand in every column of the larger sizes."""
    return entries // PER_ROW, max(1000, entries // 1000)


def chunks(truth: lr.BurerMonteiro, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and values of the observed entries, a block of rows at a time; repeated columns are dropped."""
    rng = np.random.default_rng(seed)
    m, n = truth.shape
    for top in range(0, m, CHUNK):
        height = min(CHUNK, m - top)
        cols = np.sort(rng.integers(0, n, (height, PER_ROW), dtype=np.int32), axis=1)
        keep = np.ones(cols.shape, bool)
        keep[:, 1:] = cols[:, 1:] != cols[:, :-1]
        rows = np.broadcast_to(np.arange(top, top + height, dtype=np.int32)[:, None], cols.shape)[keep]
        yield rows, cols[keep], truth.entries(rows, cols[keep])


def instance(entries: int, seed: int = 0) -> lr.MatrixCompletion:
    """A noiseless matrix of rank ten, condition number ten."""
    m, n = shape_of(entries)
    rng = np.random.default_rng(seed)
    values = np.linspace(1.0, 0.1, RANK) ** 0.5
    truth = lr.BurerMonteiro(rng.standard_normal((m, RANK)) * values, rng.standard_normal((n, RANK)) * values)
    rows, cols, data = np.empty(entries, np.int32), np.empty(entries, np.int32), np.empty(entries)
    end = 0
    for i, j, v in chunks(truth, seed):
        part = slice(end, end + v.size)
        rows[part], cols[part], data[part] = i, j, v
        end += v.size
    return lr.MatrixCompletion(rows[:end], cols[:end], data[:end], (m, n), truth)


def corrupted(problem: lr.MatrixCompletion, seed: int = 0) -> lr.RobustCompletion:
    """The same entries, two in a hundred of them wrong by ten standard deviations."""
    rng = np.random.default_rng(seed)
    values = problem.values
    wrong = rng.random(values.size) < WRONG
    values[wrong] += 10 * values.std() * rng.standard_normal(int(wrong.sum()))
    places = problem.pattern
    return lr.RobustCompletion(places.rows, places.cols, values, problem.shape, 2 * WRONG, 1.0, problem.truth)


def peak() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(entries: int, iterations: int) -> list[dict[str, Any]]:
    """One row for each solver."""
    small = lr.synthetic.completion(400, 400, RANK, observed=1.0, seed=0)  # loads numba
    lr.solve(small, lr.inits.spectral(small, lr.BurerMonteiro, RANK), lr.ALS(), max_iter=1)
    tick = time.perf_counter()
    problem = instance(entries)
    built = time.perf_counter() - tick
    tick = time.perf_counter()
    start = lr.inits.spectral(problem, lr.BurerMonteiro, RANK)
    begun = time.perf_counter() - tick
    rows = []
    for solver in (lr.ALS(), lr.ScaledCG(), ROBUST):
        if solver is ROBUST:
            problem = corrupted(problem)
            start = lr.inits.spectral(problem, lr.BurerMonteiro, RANK)
        history = lr.solve(problem, start, solver, max_iter=iterations, tol=0).history
        steps = np.diff(history["seconds"])
        rows.append(
            {
                "entries": problem.data.size,
                "nominal": entries,
                "shape": list(problem.shape),
                "rank": RANK,
                "solver": "robust ScaledGD" if solver is ROBUST else solver.name,
                "threads": kernels.threads(),
                "build_seconds": built,
                "start_seconds": begun,
                # the second iteration on: the first sorts the entries by column, once
                "iteration_seconds": float(np.min(steps[1:])),
                "median_seconds": float(np.median(steps[1:])),
                "error": float(history["error"][-1]),
                "peak_gib": peak(),
            }
        )
    return rows


def slope(rows: list[dict[str, Any]], solver: str) -> float:
    """Exponent of the cost of an iteration in the number of entries, by least squares."""
    x, y = zip(*[(math.log(r["entries"]), math.log(r["iteration_seconds"])) for r in rows if r["solver"] == solver])
    return float(np.polyfit(x, y, 1)[0])


def in_new_process(entries: int, iterations: int) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--one", str(entries), "--iterations", str(iterations)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def stored() -> list[dict[str, Any]]:
    path = RESULTS / "scale.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def command_of(rows: list[dict[str, Any]]) -> str:
    """What makes all rows at once."""
    sizes = sorted({r["nominal"] for r in rows})
    return " ".join(["python benchmarks/scale.py", *(f"{k:.0e}".replace("e+0", "e") for k in sizes)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of completion against the number of entries.")
    parser.add_argument("entries", nargs="*", type=float, default=[1e5, 1e6, 1e7])
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.one), args.iterations)))
        return
    rows = stored()
    for entries in map(int, args.entries):
        rows = [r for r in rows if r["nominal"] != entries] + in_new_process(entries, args.iterations)
        rows.sort(key=lambda r: (r["nominal"], r["solver"]))
        path = write_rows("scale", rows, command_of(rows))
    columns = ["entries", "shape", "solver", "threads", "iteration_seconds", "start_seconds", "peak_gib", "error"]
    print(f"{path.name}\n{table(rows, columns)}")
    if len({r["nominal"] for r in rows}) > 1:
        for solver in sorted({r["solver"] for r in rows}):
            print(f"{solver}: log-log slope {slope(rows, solver):.3f}")


if __name__ == "__main__":
    main()
