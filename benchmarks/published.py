"""Iterations and time on the settings of the published ScaledGD codes: ours at their step, and with our default.

Run ``python benchmarks/published.py``; rows go to ``benchmarks/results/recovery-published.json``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy, so that ratios are stable
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OPENBLAS_NUM_THREADS"])

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from common import RESULTS, table, write_rows

import lowrank_sp as lr
from lowrank_sp.escalate import fitting_als
from lowrank_sp.problems.robust import keep_largest
from lowrank_sp.separate import separate_measurements

COMMAND = "python benchmarks/published.py"
LEVELS = (1e-3, 1e-6, 1e-10, 1e-12, 1e-14)
SEEDS = 10

# Iterations to LEVELS at the published step. "code": a run of the published programs; "independent": of another
# implementation of theirs, where theirs does not run outside its own environment.
PUBLISHED: dict[tuple[str, float], tuple[str, tuple[int | None, ...]]] = {
    ("completion", 1.0): ("code", (15, 39, 73, None, 108)),
    ("completion", 10.0): ("code", (17, 40, 73, None, 108)),
    ("robust PCA", 1.0): ("code", (17, 64, 137, None, None)),
    ("robust PCA", 10.0): ("code", (17, 60, 125, None, 192)),
    ("Tucker completion", 1.0): ("code", (16, 42, 77, None, 114)),
    ("Tucker completion", 5.0): ("code", (16, 41, 75, None, 110)),
    ("Hankel", 1.0): ("independent", (9, 25, None, 57, None)),
    ("Hankel", 10.0): ("independent", (11, 27, None, 59, None)),
    ("sensing", 1.0): ("code", (58, None, None, None, None)),
    ("sensing", 10.0): ("code", (61, None, None, None, None)),
    ("absolute sensing", 1.0): ("independent", (52, 122, None, 264, None)),
    ("absolute sensing", 10.0): ("independent", (55, 125, None, 267, None)),
}


def signs(n: int, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Singular vectors of a random sign matrix, as in the published codes: no row is much longer than the others."""
    return np.linalg.svd(np.sign(rng.standard_normal((n, rank))), full_matrices=False)[0]


def truth(n: int, rank: int, condition_number: float, rng: np.random.Generator) -> lr.BurerMonteiro:
    """Symmetric, with the singular vectors of a sign matrix, as in the published codes."""
    left = signs(n, rank, rng) * np.linspace(1, 1 / condition_number, rank) ** 0.5
    return lr.BurerMonteiro(left, left)


class Setting(NamedTuple):
    """An instance, and the solvers of it: the published one and ours."""

    problem: Any
    rank: int
    theirs: Any
    default: Any
    form: Any = lr.BurerMonteiro


def completion(condition_number: float, seed: int = 0) -> Setting:
    """n = 1000, r = 10, a fifth of the entries, step 0.5 / p."""
    rng = np.random.default_rng(seed)
    point = truth(1000, 10, condition_number, rng)
    rows, cols = (rng.random((1000, 1000)) < 0.2).nonzero()
    problem = lr.MatrixCompletion(rows, cols, point.entries(rows, cols), (1000, 1000), point)
    return Setting(problem, 10, lr.ScaledGD(0.5 / problem.observed), fitting_als(problem, 10))


def robust(condition_number: float, seed: int = 0) -> Setting:
    """n = 1000, r = 10, a tenth of outliers, step 0.5."""
    rng = np.random.default_rng(seed)
    point = truth(1000, 10, condition_number, rng)
    outliers = keep_largest(rng.standard_normal((1000, 1000)), 0.1)
    problem = lr.RobustPCA(point.dense() + outliers, 0.1, truth=point)
    return Setting(problem, 10, lr.ScaledGD(0.5), lr.AltScaledGD())


def tucker(condition_number: float, seed: int = 0) -> Setting:
    """n = 100, multilinear rank 5, a tenth of the entries, step 0.3 / p."""
    rng = np.random.default_rng(seed)
    core = lr.synthetic.low_tensor((5,) * 3, 5, lr.Tucker, condition_number, rng).arrays()[0]
    point = lr.Tucker(core, *(signs(100, 5, rng) for _ in range(3)))
    indices = (rng.random(point.shape) < 0.1).nonzero()
    problem = lr.TensorCompletion(indices, point.entries(*indices), point.shape, point)
    return Setting(problem, 5, lr.ScaledGD(0.3 / problem.observed), lr.RiemannianCG(), lr.Tucker)


def hankel(condition_number: float, seed: int = 0) -> Setting:
    """1000 x 1000, ten frequencies, a fifth of the samples, step 0.5."""
    problem = lr.synthetic.hankel(1999, 10, 0.2, condition_number, seed=seed)
    return Setting(problem, 10, lr.ScaledGD(0.5), lr.NOMP())


def sensing(condition_number: float, seed: int = 0) -> Setting:
    """n = 200, r = 10, 10,000 Gaussian measurements, which take 3.2 GB; step 0.5."""
    rng = np.random.default_rng(seed)
    point = truth(200, 10, condition_number, rng)
    stack = rng.standard_normal((10_000, 200, 200))
    stack *= 0.01  # so that the map is an isometry on average
    problem = lr.MatrixSensing(stack, stack.reshape(10_000, -1) @ point.dense().reshape(-1), (200, 200), point)
    return Setting(problem, 10, lr.ScaledGD(0.5), lr.ScaledCG())


def absolute(condition_number: float, seed: int = 0) -> Setting:
    """n = 100, r = 10, 8 n r Gaussian measurements, a fifth of them wrong; Polyak steps with the least loss known."""
    rng = np.random.default_rng(seed)
    point = truth(100, 10, condition_number, rng).map(lambda a: a * condition_number**0.5)
    stack = rng.standard_normal((8000, 100, 100))
    clean = stack.reshape(8000, -1) @ point.dense().reshape(-1)
    wrong = 10 * abs(clean).max() * rng.uniform(-1, 1, 8000) * (rng.random(8000) < 0.2)
    problem = lr.RobustSensing(stack, clean + wrong, (100, 100), 0.2, point)
    return Setting(problem, 10, lr.ScaledGD(lr.Polyak(abs(wrong).sum())), separate_measurements)


SETTINGS: dict[str, Callable[..., Setting]] = {
    "completion": completion,
    "robust PCA": robust,
    "Tucker completion": tucker,
    "Hankel": hankel,
    "sensing": sensing,
    "absolute sensing": absolute,
}
# Whose counts are taken over several draws too; instances of the others take gigabytes.
DRAWN = ("completion", "robust PCA", "Tucker completion", "Hankel")


def warm_up() -> None:
    """Load what is compiled, which the first run would pay for."""
    problem = lr.synthetic.completion(400, 400, 10, 0.7, seed=0)
    lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 10), lr.ALS(), 2)


def spread(name: str, condition_number: float) -> list[tuple[float, float, float] | None]:
    """Least, mean and most iterations at the published step over `SEEDS` draws of the instance; None if one misses.

    Counts to 1e-3 are near ten, so that those of two draws can differ by a fifth; the published ones are of one draw.
    """
    found = []
    for seed in range(SEEDS):
        hits, _ = counted(setting := SETTINGS[name](condition_number, seed), setting.theirs, 300)
        found.append([np.inf if k is None else k for k in hits])
    columns = [(float(min(c)), float(np.mean(c)), float(max(c))) for c in zip(*found, strict=True)]
    return [column if np.isfinite(column[-1]) else None for column in columns]


def counted(setting: Setting, solver: Any, most: int) -> tuple[list[float | None], list[float | None]]:
    """Iterations and seconds of CPU time to every level, from the spectral start."""
    problem, last = setting.problem, LEVELS[-1]
    start = lr.inits.spectral(problem, setting.form, setting.rank)
    if solver == lr.RiemannianCG():
        start = lr.FixedRankTucker.from_tucker(start)
    with mock.patch.object(sys.modules["lowrank_sp.solve"], "perf_counter", time.process_time):
        if solver is separate_measurements:
            result, _ = solver(problem, setting.rank, most, 1e-13)
        else:
            result = lr.solve(problem, start, solver, most, 0.0, callback=lambda _, x, __: problem.error(x) <= last)
    hits = [result.iterations_to(level) for level in LEVELS]
    return (
        [k if np.isfinite(k) else None for k in hits],
        [float(result.history["seconds"][int(k)]) if np.isfinite(k) else None for k in hits],
    )


def row(name: str, condition_number: float, repeats: int) -> dict[str, Any]:
    """One line of the table; the least time of ``repeats`` runs that take turns."""
    setting = SETTINGS[name](condition_number)
    runs = [[counted(setting, s, 400) for s in (setting.theirs, setting.default)] for _ in range(repeats)]
    source, published = PUBLISHED[name, condition_number]
    at_step = runs[0][0][0]
    pairs = [(a, b) for a, b in zip(at_step, published, strict=True) if a is not None and b is not None]
    ratios = []
    for k in range(len(LEVELS)):
        a, b = (min((run[i][1][k] or np.inf) for run in runs) for i in range(2))
        ratios.append(b / a if np.isfinite(a) and np.isfinite(b) else None)
    draws = {"ours_over_draws": spread(name, condition_number)} if name in DRAWN else {}
    whole = setting.default is separate_measurements
    return {
        "setting": name, "kappa": condition_number, "levels": LEVELS, "published_by": source,
        "published": published, "ours_at_their_step": at_step,
        "largest_deviation": max(abs(a - b) / b for a, b in pairs),
        "default": "lr.robust_sense" if whole else setting.default.name,
        "default_iterations": runs[0][1][0], "default_seconds_over_theirs": ratios, **draws,
    }  # fmt: skip


def main() -> None:
    """Run the settings asked for and store their rows; those of others stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", default=list(SETTINGS), help=", ".join(SETTINGS))
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    unknown = sorted(set(args.only) - set(SETTINGS))
    if unknown:
        parser.error(f"unknown settings {unknown}; there are {', '.join(SETTINGS)}")
    warm_up()
    path = RESULTS / "recovery-published.json"
    rows = (
        {(old["setting"], old["kappa"]): old for old in json.loads(path.read_text())["rows"]} if path.exists() else {}
    )
    for key in (key for name in args.only for key in PUBLISHED if key[0] == name):
        rows[key] = row(*key, args.repeats)
        print(table([rows[key]], [k for k in rows[key] if k != "levels"]).splitlines()[1], flush=True)
        command = f"{COMMAND} --repeats {args.repeats}"
        write_rows(path.stem, [rows[k] for k in PUBLISHED if k in rows], command)


if __name__ == "__main__":
    main()
