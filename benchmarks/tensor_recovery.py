"""Tensor completion with nothing but the rank: 40 random CP instances, and the published Tucker setting.

Run ``python benchmarks/tensor_recovery.py``; rows go to ``benchmarks/results/tensor-recovery.json``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy, so that times are those of one core

import argparse
import time
from math import prod
from typing import Any

import numpy as np
from common import table, write_rows
from published import tucker

import lowrank_sp as lr

COMMAND = "python benchmarks/tensor_recovery.py"
LEVELS = (1e-3, 1e-6, 1e-10)


def random_instance(seed: int) -> tuple[Any, dict[str, Any]]:
    """A CP completion: sizes 15 to 40, rank 1 to 5, condition number to 1e3, noise 0, 0.1 or 1 %.

    At least a tenth of the entries is observed, and at least 5 to 10 for every unknown.
    """
    rng = np.random.default_rng(1000 + seed)
    shape, rank = tuple(int(n) for n in rng.integers(15, 41, 3)), int(rng.integers(1, 6))
    kappa, noise = 10 ** rng.uniform(0, 3), float(rng.choice([0.0, 1e-3, 1e-2]))
    unknowns = lr.CP.parameter_count(shape, rank)
    observed = min(0.5, max(0.1, rng.uniform(5, 10) * unknowns / prod(shape)))
    problem = lr.synthetic.tensor_completion(shape, rank, lr.CP, observed, kappa, noise, seed=seed)
    bound = max(1e-5, 3 * noise * (unknowns / problem.data.size) ** 0.5)
    facts = {"shape": shape, "rank": rank, "kappa": kappa, "noise": noise, "observed": observed, "bound": bound}
    return problem, facts


def cp_row(seed: int) -> dict[str, Any]:
    """The default on one instance; it succeeds when the error is at most three times that of the noise."""
    problem, facts = random_instance(seed)
    tick = time.process_time()
    result = lr.complete_tensor(problem, facts["rank"], lr.CP)
    seconds, error = time.process_time() - tick, float(result.history["error"][-1])
    least = problem.loss(problem.residual(problem.truth))
    return {
        "setting": "random CP", "seed": seed, **facts, "error": error, "success": error <= facts["bound"],
        "loss_over_truth": float(result.fun / least) if facts["noise"] else None,
        "solver": result.solver.name, "seconds": seconds,
    }  # fmt: skip


def tucker_row(kappa: float) -> dict[str, Any]:
    """n = 100, r = 5, a tenth of the entries: ScaledGD at the published step 0.3 / p, and the default."""
    setting = tucker(kappa)
    problem, rank = setting.problem, setting.rank
    start = lr.inits.spectral(problem, lr.Tucker, rank)
    theirs = lr.solve(problem, start, setting.theirs, 300, 1e-12)
    tick = time.process_time()
    ours = lr.complete_tensor(problem, rank, lr.Tucker)
    return {
        "setting": "published Tucker", "kappa": kappa, "levels": LEVELS,
        "at_published_step": [_finite(theirs.iterations_to(level)) for level in LEVELS],
        "default": [_finite(ours.iterations_to(level)) for level in LEVELS],
        "error": float(ours.history["error"][-1]), "success": bool(ours.history["error"][-1] <= 1e-5),
        "solver": ours.solver.name, "seconds": time.process_time() - tick,
    }  # fmt: skip


def _finite(iterations: float) -> int | None:
    return int(iterations) if np.isfinite(iterations) else None


def main() -> None:
    """Run all rows, store them and count successes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=40)
    args = parser.parse_args()
    rows = [cp_row(seed) for seed in range(args.instances)]
    columns = ["seed", "rank", "kappa", "noise", "observed", "error", "bound", "success", "solver", "seconds"]
    print(table(rows, columns))
    print(f"{sum(row['success'] for row in rows)} of {len(rows)} succeed", flush=True)
    write_rows("tensor-recovery", rows, COMMAND)
    for kappa in (1.0, 5.0):
        rows.append(tucker_row(kappa))
        columns = ["setting", "kappa", "at_published_step", "default", "error", "solver", "seconds"]
        print(table(rows[-1:], columns), flush=True)
        write_rows("tensor-recovery", rows, COMMAND)


if __name__ == "__main__":
    main()
