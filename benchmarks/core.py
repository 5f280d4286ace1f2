"""Cost of the core: one solver step against hand-written NumPy, batches against loops, and time to 1e-8.

Run ``python benchmarks/core.py``; rows go to ``benchmarks/results/core-*.json``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: one thread, so that ratios are stable

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from common import best_of, common_start, table, write_rows

import lowrank_sp as lr

COMMAND = "python benchmarks/core.py"


def hand_solve(a, x, y, step, iterations):
    """ScaledGD as one writes it by hand, with solves."""
    losses = []
    for _ in range(iterations):
        r = x @ y.T - a
        losses.append(0.5 * np.vdot(r, r))
        gx, gy = r @ y, r.T @ x
        dx = np.linalg.solve(y.T @ y, gx.T).T
        dy = np.linalg.solve(x.T @ x, gy.T).T
        x, y = x - step * dx, y - step * dy
    return x, y, losses


def hand_inverse(a, x, y, step, iterations):
    """ScaledGD by hand with explicit inverses: fewest operations, half of the digits when ill-conditioned."""
    losses = []
    for _ in range(iterations):
        r = x @ y.T - a
        losses.append(0.5 * np.vdot(r, r))
        gx, gy = r @ y, r.T @ x
        x, y = x - step * gx @ np.linalg.inv(y.T @ y), y - step * gy @ np.linalg.inv(x.T @ x)
    return x, y, losses


def step_cost(repeats: int) -> list[dict[str, Any]]:
    """Microseconds per iteration of `lr.solve` and of the two hand-written loops."""
    rows = []
    for n, rank, iterations in ((20, 2, 200), (100, 5, 200), (300, 5, 100), (1000, 10, 20)):
        a = lr.synthetic.factorization(n, n, rank, condition_number=10.0, seed=0).data
        problem = lr.MatrixFactorization(a)
        start = lr.inits.gaussian(problem, lr.BurerMonteiro, rank=rank, scale=0.3, seed=1)
        solver = lr.ScaledGD(step_size=0.05)
        functions = {
            "hand_solve": lambda a=a, s=start, k=iterations: hand_solve(a, s.left, s.right, 0.05, k),
            "hand_inverse": lambda a=a, s=start, k=iterations: hand_inverse(a, s.left, s.right, 0.05, k),
            "ours": lambda p=problem, s=start, k=iterations, v=solver: lr.solve(p, s, v, max_iter=k, tol=0),
        }
        seconds = {k: v / iterations * 1e6 for k, v in best_of(functions, repeats).items()}
        extra = seconds["ours"] - seconds["hand_solve"]
        allowed = 10 + 0.1 * seconds["hand_solve"]
        rows.append({
            "n": n, "rank": rank, **{f"{k}_us": v for k, v in seconds.items()}, "extra_us": extra,
            "allowed_us": allowed, "within": bool(extra <= allowed),
        })  # fmt: skip
    return rows


def batch_cost(repeats: int) -> list[dict[str, Any]]:
    """Ten seeds at once against ten solves, for the same iterations."""
    rows = []
    for n, rank in ((20, 2), (60, 4), (200, 5)):
        problem = lr.MatrixFactorization(lr.synthetic.factorization(n, n, rank, 10.0, seed=0).data)
        starts = lr.inits.gaussian(problem, lr.BurerMonteiro, rank=rank, scale=0.3, seed=1, batch=10)
        singles = [starts.map(lambda array, i=i: array[i].copy()) for i in range(10)]
        solver = lr.ScaledGD(step_size=0.05)
        seconds = best_of(
            {
                "batch": lambda p=problem, s=starts, v=solver: lr.solve(p, s, v, max_iter=100, tol=0),
                "loop": lambda p=problem, s=singles, v=solver: [lr.solve(p, x, v, max_iter=100, tol=0) for x in s],
            },
            repeats,
        )
        rows.append({"n": n, "rank": rank, "seeds": 10, "loop_over_batch": seconds["loop"] / seconds["batch"]})
    return rows


def instances() -> dict[str, tuple[Callable[[int], Any], int]]:
    """Problems of the solver-to-solver comparison, with their rank."""
    dof = 10 * (2000 + 2000 - 10)
    return {
        "factorization 300x200 r=5": (lambda s: lr.synthetic.factorization(300, 200, 5, 10.0, seed=s), 5),
        "sensing 60x60 r=3 N=1800": (lambda s: lr.synthetic.sensing(60, 60, 3, 1800, 10.0, seed=s), 3),
        "completion 2000x2000 r=10 5x": (
            lambda s: lr.synthetic.completion(2000, 2000, 10, observed=5 * dof / 4e6, condition_number=10.0, seed=s),
            10,
        ),
    }


def ours(problem: Any, rank: int, name: str) -> tuple[float, int, float]:
    """Seconds, iterations and final error of one of our solvers until relative error 1e-8."""
    tick = time.perf_counter()
    start = common_start(problem, lr.BurerMonteiro, rank)
    begin = time.perf_counter() - tick
    result = lr.solve(problem, start, lr.SOLVERS[name](), tol=0, callback=lambda _, x, __: problem.error(x) < 1e-8)
    history = result.history
    return begin + float(history["seconds"][-1]), result.nit, float(history["error"][-1])


def peer(problem: Any, rank: int, name: str) -> tuple[float, int, float]:
    """The same for pymanopt's fixed-rank manifold, with sampled gradients, from the same start."""
    from peers import pymanopt_fixed_rank

    return pymanopt_fixed_rank(problem, rank, name)


def solver_cost(seeds: int) -> list[dict[str, Any]]:
    """Median seconds to relative error 1e-8, ours and pymanopt's, and the ratio to pymanopt's default CG."""
    rows = []
    for label, (make, rank) in instances().items():
        runs: dict[str, list[tuple[float, int, float]]] = {}
        names = [n for n in lr.SOLVERS if n not in ("GD", "RefLoRA", "RefLoRAScalar", "AltGD")]
        for seed in range(seeds):
            problem = make(seed)
            for name in names:
                runs.setdefault(name, []).append(ours(problem, rank, name))
            for name in ("ConjugateGradient", "SteepestDescent"):
                runs.setdefault(f"pymanopt {name}", []).append(peer(problem, rank, name))
        base = float(np.median([r[0] for r in runs["pymanopt ConjugateGradient"]]))
        for name, values in runs.items():
            reached = sum(v[2] < 1e-8 for v in values)
            seconds = float(np.median([v[0] for v in values]))
            rows.append({
                "problem": label, "solver": name, "seconds": seconds,
                "iterations": float(np.median([v[1] for v in values])), "reached": f"{reached}/{seeds}",
                "pymanopt_cg_over_this": base / seconds if reached == seeds else None,
            })  # fmt: skip
            print(table(rows[-1:], list(rows[-1])).splitlines()[1], flush=True)
    return rows


def main() -> None:
    """Run the parts asked for, print their tables and store their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["step", "batch", "solvers"], help="step, batch, solvers")
    parser.add_argument("--repeats", type=int, default=30, help="timings of which the least counts")
    parser.add_argument("--seeds", type=int, default=5, help="instances per problem of the solver comparison")
    args = parser.parse_args()
    jobs = {
        "step": lambda: step_cost(args.repeats),
        "batch": lambda: batch_cost(args.repeats),
        "solvers": lambda: solver_cost(args.seeds),
    }
    unknown = sorted(set(args.parts) - set(jobs))
    if unknown:
        parser.error(f"unknown parts {unknown}; there are {', '.join(jobs)}")
    for part in args.parts:
        rows = jobs[part]()
        path = write_rows(f"core-{part}", rows, f"{COMMAND} {part}")
        print(f"\n{part}: {path.name}\n{table(rows, list(rows[0]))}\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
