"""Recovery against peers in one run: time and iterations to three accuracies, memory, and success over seeds.

Run ``python benchmarks/recovery.py`` (or with ``--quick``); rows go to ``benchmarks/results/recovery-*.json`` and the
tables of ``docs/recovery.md`` are made from them by ``python benchmarks/recovery_page.py``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy, so that ratios are stable
os.environ.setdefault("OMP_NUM_THREADS", os.environ["OPENBLAS_NUM_THREADS"])
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OPENBLAS_NUM_THREADS"])

import argparse
import re
import shlex
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from common import table, write_rows
from recovery_peers import Trace, iterative_imputer, pymanopt_numpy, pymanopt_torch

import lowrank_sp as lr

COMMAND = "python benchmarks/recovery.py"
LEVELS = (1e-3, 1e-6, 1e-10)
# An instance counts as solved at this relative error.
SOLVED = 1e-6

Runner = Callable[[Any, int, Trace], None]
# (instance by seed, rank, solvers)
Setting = tuple[Callable[[int], Any], int, dict[str, Runner]]


def solver(make: Callable[[], Any]) -> Runner:
    """One of our solvers from the spectral start, until the trace ends it."""

    def run(problem: Any, rank: int, trace: Trace) -> None:
        start = lr.inits.spectral(problem, lr.BurerMonteiro, rank)
        begun = trace.clock()

        def ended(iteration: int, point: Any, loss: float) -> bool:
            return trace.clock() - begun > trace.limit or float(problem.error(point)) < trace.least

        history = lr.solve(problem, start, make(), 100_000, 0.0, callback=ended).history
        _read(history, begun - trace.begin, trace)

    return run


def complete(problem: Any, rank: int, trace: Trace) -> None:
    """The one-line entry point with its defaults, its start included."""
    begun = trace.clock()
    history = lr.complete(problem, rank).history
    spent = trace.clock() - begun
    # What no stage counts is the start, and error tracking where the truth is known: the first is charged in full.
    start = min(spent - history["seconds"][-1], _start_seconds(problem, rank, trace.clock))
    _read(history, start, trace)


def _start_seconds(problem: Any, rank: int, clock: Callable[[], float]) -> float:
    begun = clock()
    lr.inits.spectral(problem, lr.BurerMonteiro, rank)
    return clock() - begun


def _read(history: dict[str, np.ndarray], begin: float, trace: Trace) -> None:
    errors = np.minimum.accumulate(history["error"])
    trace.rows = list(zip(begin + history["seconds"], history["iteration"], errors, strict=True))


COMPLETION: dict[str, Runner] = {
    "lr.complete": complete,
    "ALS": solver(lr.ALS),
    "ScaledCG": solver(lr.ScaledCG),
    "ScaledGD": solver(lr.ScaledGD),
    "MatrixIRLS": solver(lr.MatrixIRLS),
    "RiemannianCG": solver(lr.RiemannianCG),
    "APG": solver(lr.baselines.APG),
    "SoftImpute": solver(lr.baselines.SoftImpute),
    "SVT": solver(lr.baselines.SVT),
    "pymanopt CG, NumPy": pymanopt_numpy,
    "pymanopt CG, torch": pymanopt_torch,
}
SENSING: dict[str, Runner] = {
    "ScaledCG (lr.sense)": solver(lr.ScaledCG),
    "ScaledGD(0.7)": solver(lambda: lr.ScaledGD(0.7)),
    "AltScaledGD(0.8)": solver(lambda: lr.AltScaledGD(0.8)),
    "ALS": solver(lr.ALS),
    "pymanopt CG, NumPy": pymanopt_numpy,
    "pymanopt CG, torch": pymanopt_torch,
}
SMALL: dict[str, Runner] = {
    "lr.complete": COMPLETION["lr.complete"],
    "SoftImpute": COMPLETION["SoftImpute"],
    "scikit-learn IterativeImputer": iterative_imputer,
}
DECISIVE = ("lr.complete", "ALS", "ScaledCG", "MatrixIRLS", "RiemannianCG", "pymanopt CG, NumPy")


def completion(n: int, rank: int, over: float, condition_number: float, **kwargs: Any) -> Callable[[int], Any]:
    observed = over * rank * (2 * n - rank) / n**2
    return lambda seed: lr.synthetic.completion(n, n, rank, observed, condition_number, seed=seed, **kwargs)


def harsh(over: float, geometric: bool) -> Callable[[int], Any]:
    """Condition number 1e8; every row and column is observed at least rank times."""
    spectrum = np.geomspace(1, 1e-8, 5) if geometric else None
    return completion(500, 5, over, 1e8, least=5, spectrum=spectrum)


def settings(quick: bool) -> dict[str, Setting]:
    """Instances by seed, rank and solvers of every setting."""
    n = 500 if quick else 2000
    decisive = {name: COMPLETION[name] for name in DECISIVE}
    out: dict[str, Setting] = {
        f"completion {n}, r=10, 5x, kappa=10": (completion(n, 10, 5, 10.0), 10, COMPLETION),
        f"completion {n}, r=10, 5x, kappa=100": (completion(n, 10, 5, 100.0), 10, decisive),
        f"completion {n}, r=10, 3x, kappa=10": (completion(n, 10, 3, 10.0), 10, decisive),
        "completion 200, r=3, 8x, kappa=10": (completion(200, 3, 8, 10.0), 3, SMALL),
    }
    for over in (3.0, 2.0, 1.5):
        for geometric in (True, False):
            name = f"completion 500, r=5, {over:g}x, kappa=1e8, {'geometric' if geometric else 'linear'}"
            out[name] = (harsh(over, geometric), 5, {k: COMPLETION[k] for k in ("lr.complete", "ALS", "MatrixIRLS")})
    for kappa in (1.0, 10.0, 100.0):
        make = lambda seed, k=kappa: lr.synthetic.sensing(60, 60, 3, 1800, k, seed=seed)  # noqa: E731
        out[f"sensing 60, r=3, N=1800, kappa={kappa:g}"] = (make, 3, SENSING)
    return out


def one(make: Any, rank: int, runner: Runner, seed: int, clock: Callable[[], float], limit: float) -> dict[str, Any]:
    """Seconds and iterations of one run to every level, and the least error."""
    problem = make(seed)
    trace = Trace(problem, clock, LEVELS[-1], limit)
    with mock.patch.object(sys.modules["lowrank_sp.solve"], "perf_counter", clock):
        runner(problem, rank, trace)
    seconds, counts, errors = (np.array(column, float) for column in zip(*trace.rows, strict=True))
    row: dict[str, Any] = {"error": float(errors[-1]), "end": float(seconds[-1])}
    for level in LEVELS:
        hit = np.flatnonzero(errors <= level)
        row[f"s_{level:g}"] = float(seconds[hit[0]]) if hit.size else np.inf
        row[f"it_{level:g}"] = float(counts[hit[0]]) if hit.size else np.inf
    return row


def peak(make: Any, rank: int, runner: Runner, limit: float) -> float:
    """Peak memory in MB that Python allocates during one run, the instance itself not counted."""
    problem = make(0)
    tracemalloc.start()
    try:
        runner(problem, rank, Trace(problem, time.process_time, 1e-3, limit))
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def summary(name: str, label: str, runs: list[dict[str, Any]], memory: float | None) -> dict[str, Any]:
    """Medians over the seeds; a level that half of them miss has none."""
    row: dict[str, Any] = {"problem": name, "solver": label, "seeds": len(runs)}
    row["solved"] = sum(run["error"] <= SOLVED for run in runs)
    row["recovered_1e-4"] = sum(run["error"] <= 1e-4 for run in runs)
    for level in LEVELS:
        for key in (f"s_{level:g}", f"it_{level:g}"):
            value = float(np.median([run[key] for run in runs]))
            row[key] = value if np.isfinite(value) else None
    row["median_error"] = float(np.median([run["error"] for run in runs]))
    row["peak_mb"] = memory
    return row


def compare(name: str, setting: Setting, seeds: int, clock: Callable[[], float], limit: float) -> list[dict[str, Any]]:
    """All solvers of a setting; they take turns on every seed."""
    make, rank, solvers = setting
    runs: dict[str, list[dict[str, Any]]] = {label: [] for label in solvers}
    for seed in range(seeds):
        for label, runner in solvers.items():
            # What is hopeless is run on three seeds only.
            if seed >= 3 and all(run["error"] > SOLVED for run in runs[label]) and runs[label][0]["end"] >= limit:
                continue
            runs[label].append(one(make, rank, runner, seed, clock, limit))
    torches = {label for label in solvers if "torch" in label}  # whose memory Python does not see
    memory = {k: None if k in torches else peak(make, rank, r, min(limit, 5.0)) for k, r in solvers.items()}
    rows = [summary(name, label, runs[label], memory[label]) for label in solvers]
    base = next((row["s_1e-06"] for row in rows if row["solver"] == "pymanopt CG, NumPy"), None)
    for row in rows:
        row["pymanopt_over_this"] = base / row["s_1e-06"] if base and row["s_1e-06"] else None
    return rows


def warm_up() -> None:
    """Compile and import whatever the first run would pay for."""
    problem = lr.synthetic.completion(500, 500, 10, 0.5, seed=0)
    for run in (complete, pymanopt_numpy, pymanopt_torch):
        run(problem, 10, Trace(problem, time.process_time, 0.5, 1.0))
    problem = lr.synthetic.sensing(50, 50, 1, 1000, seed=0)
    solver(lr.ScaledCG)(problem, 1, Trace(problem, time.process_time, 1e-3, 1.0))


def main() -> None:
    """Run the settings asked for, print their tables and store their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="settings by regular expressions of their names; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller completion, two seeds, ten seconds at most")
    parser.add_argument("--seeds", type=int, help="instances of every setting (10; 2 if quick)")
    parser.add_argument("--wall", action="store_true", help="wall time instead of CPU time of the process")
    parser.add_argument("--name", help="of the file of rows; by default the words above")
    parser.add_argument("--limit", type=float, help="seconds per run (60; 10 if quick)")
    args = parser.parse_args()
    seeds, limit = args.seeds or (2 if args.quick else 10), args.limit or (10.0 if args.quick else 60.0)
    clock = time.perf_counter if args.wall else time.process_time
    chosen = settings(args.quick)
    if args.only:
        chosen = {k: v for k, v in chosen.items() if any(re.search(word, k) for word in args.only)}
    if not chosen:
        parser.error(f"no setting has one of these in its name: {', '.join(args.only)}")
    warm_up()
    rows: list[dict[str, Any]] = []
    suffix = ("-wall" if args.wall else "") + ("-quick" if args.quick else "")
    for name, setting in chosen.items():
        found = compare(name, setting, seeds, clock, limit)
        rows += found
        print(f"\n{name}\n{table(found, list(found[0])[1:])}", flush=True)
        kind = args.name or "-".join(args.only).replace(" ", "") or "all"
        write_rows(f"recovery-{kind}{suffix}", rows, f"{COMMAND} {shlex.join(sys.argv[1:])}".strip())


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
