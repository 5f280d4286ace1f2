"""How often the one-line entry points succeed on random instances, given nothing but the rank.

Run ``python benchmarks/random_instances.py``; rows go to ``benchmarks/results/random-instances.json``, those of tensors
come from ``tensor_recovery.py``. Sizes, ranks, condition numbers to 1e3 and noise of 0, 0.1 or 1 % are drawn from the
seed. A run succeeds when its relative error is at most 1e-5, or twice that of least squares on the same data that start
at the truth (and, for robust PCA, know the outliers): nobody who has to find the truth can expect to do better.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy, so that times are those of one core
os.environ.setdefault("OMP_NUM_THREADS", os.environ["OPENBLAS_NUM_THREADS"])

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import table, write_rows
from tensor_recovery import cp_row

import lowrank_sp as lr

COMMAND = "python benchmarks/random_instances.py"
NOISE = (0.0, 1e-3, 1e-2)
EXACT, TIMES = 1e-5, 2.0

# Facts, the truth, what finds it, and the least-squares problem whose solution next to the truth is the yardstick.
Instance = tuple[dict[str, Any], Any, Callable[[], Any], Any]


def drawn(stream: int, seed: int, sizes: tuple[int, int], ranks: tuple[int, int]) -> tuple[Any, dict[str, Any]]:
    """A generator and what all instances have: shape, rank, condition number, noise."""
    rng = np.random.default_rng([stream, seed])
    m, n = (int(k) for k in rng.integers(*sizes, 2))
    rank = min(int(rng.integers(*ranks)), min(m, n) // 4)
    kappa = 10 ** rng.uniform(0, 3) if rank > 1 else 1.0
    return rng, {"shape": (m, n), "rank": rank, "kappa": kappa, "noise": float(rng.choice(NOISE))}


def completion(seed: int) -> Instance:
    """2.2 to 6 entries for every degree of freedom; every row and column holds at least one more than the rank."""
    rng, f = drawn(11, seed, (60, 400), (1, 9))
    (m, n), rank = f["shape"], f["rank"]
    observed = min(0.9, rng.uniform(2.2, 6) * rank * (m + n - rank) / (m * n))
    least = min(rank + 1, int(0.8 * observed * min(m, n)))
    problem = lr.synthetic.completion(m, n, rank, observed, f["kappa"], f["noise"], seed, least=least)
    return {**f, "observed": observed}, problem.truth, lambda: lr.complete(problem, rank).point, problem


def robust_pca(seed: int) -> Instance:
    """Up to 10 % of outliers in every row and column, all or half of the entries known."""
    rng, f = drawn(12, seed, (60, 200), (1, 6))
    (m, n), rank = f["shape"], f["rank"]
    share, hidden = rng.uniform(0.01, 0.1), float(rng.choice((0.0, 0.5)))
    made = lr.synthetic.robust(m, n, rank, share, condition_number=f["kappa"], noise=f["noise"], seed=seed)
    known = rng.random((m, n)) >= hidden
    # What was added is an outlier beside noise of this size.
    deviation = np.linalg.norm(made.truth.dense()) / (m * n) ** 0.5
    wrong = abs(made.data - made.truth.dense()) > max(5 * f["noise"], 1e-8) * deviation
    matrix = np.where(known, made.data, np.nan)
    rows, cols = (known & ~wrong).nonzero()
    clean = lr.MatrixCompletion(rows, cols, made.data[rows, cols], (m, n), made.truth)
    facts = {**f, "outliers": share, "hidden": hidden}
    return facts, made.truth, lambda: lr.robust_pca(matrix, rank).result.point, clean


def sensing(seed: int) -> Instance:
    """2.5 to 6 measurements for every degree of freedom, of three kinds."""
    rng, f = drawn(13, seed, (12, 45), (1, 5))
    (m, n), rank = f["shape"], f["rank"]
    count = min(int(rng.uniform(2.5, 6) * rank * (m + n - rank)), m * n)
    ensemble = str(rng.choice(["gaussian", "rank-one", "subsampled-orthogonal"]))
    problem = lr.synthetic.sensing(m, n, rank, count, f["kappa"], f["noise"], seed, ensemble)
    find = lambda: lr.sense(problem.operator, problem.data, (m, n), rank).point  # noqa: E731
    return {**f, "measurements": count, "ensemble": ensemble}, problem.truth, find, problem


def phase_retrieval(seed: int) -> Instance:
    """7 to 12 intensities for every unknown, real or complex, one to three columns."""
    rng, f = drawn(14, seed, (10, 80), (1, 2))
    n, rank = f["shape"][0], int(rng.choice([1, 1, 1, 2, 3]))
    kappa = 10 ** rng.uniform(0, 3) if rank > 1 else 1.0
    count, dtype = int(rng.uniform(7, 12) * n * rank), complex if rng.random() < 0.5 else float
    problem = lr.synthetic.quadratic(n, rank, count, kappa, f["noise"], seed, dtype)
    facts = {**f, "shape": (n, n), "rank": rank, "kappa": kappa, "measurements": count, "complex": dtype is complex}
    return facts, problem.truth, lambda: lr.phase_retrieval(problem.operator.vectors, problem.data, rank).point, problem


KINDS: dict[str, Callable[[int], Instance]] = {
    "complete": completion, "robust_pca": robust_pca, "sense": sensing, "phase_retrieval": phase_retrieval,
}  # fmt: skip


def row(kind: str, seed: int) -> dict[str, Any]:
    """One instance: facts, error, yardstick, success, seconds."""
    if kind == "complete_tensor":
        found = cp_row(seed)
        return {"kind": kind, **{k: v for k, v in found.items() if k != "setting"}}
    facts, truth, find, reference = KINDS[kind](seed)
    tick = time.process_time()
    point = find()
    seconds, error = time.process_time() - tick, float(reference.error(point))
    polish = lr.ALS(ridge=0.0) if isinstance(reference, lr.MatrixCompletion) else lr.ScaledCG()
    best = float(reference.error(lr.solve(reference, truth, polish, 300, 1e-6).point)) if facts["noise"] else 0.0
    bound = max(EXACT, TIMES * best)
    return {
        "kind": kind, "seed": seed, **facts, "error": error, "bound": bound, "success": error <= bound,
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Run the kinds asked for, store all rows and count successes."""
    kinds = [*KINDS, "complete_tensor"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", default=kinds, help=", ".join(kinds))
    parser.add_argument("--instances", type=int, default=40)
    args = parser.parse_args()
    unknown = sorted(set(args.only) - set(kinds))
    if unknown:
        parser.error(f"unknown kinds {unknown}; there are {', '.join(kinds)}")
    rows: list[dict[str, Any]] = []
    for kind in args.only:
        found = [row(kind, seed) for seed in range(args.instances)]
        rows += found
        failed = [r for r in found if not r["success"]]
        if failed:
            print(table(failed, ["seed", "shape", "rank", "kappa", "noise", "error", "bound", "seconds"]))
        seconds = sorted(r["seconds"] for r in found)
        count = f"{len(found) - len(failed)} of {len(found)} succeed"
        print(f"{kind}: {count}; seconds: median {seconds[len(seconds) // 2]:.2f}, most {seconds[-1]:.2f}", flush=True)
        if args.only == kinds:
            write_rows("random-instances", rows, COMMAND)


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
