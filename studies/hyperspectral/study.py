"""Complete a hyperspectral scene from a few of its entries, with solvers of ours and two baselines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from lowrank_sp.descent import Solver
from studies.hyperspectral import plots
from studies.hyperspectral.paths import Scene, Track, grow_rank, shrink
from studies.hyperspectral.plots import BAND, PICTURED, best, solvers

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

# The ridge of "ridge ALS" is one of three, chosen by validation for every split.
SOLVERS: dict[str, tuple[Solver, ...]] = {
    "ALS": (lr.ALS(),),
    "ridge ALS": tuple(lr.ALS(ridge=ridge) for ridge in (0.03, 0.1, 0.3)),
    "ScaledCG": (lr.ScaledCG(),),
    "ScaledGD": (lr.ScaledGD(),),
    "RiemannianCG": (lr.RiemannianCG(),),
    "GD": (lr.GD(),),
}
SHOWN = 73  # pixels of the picture on a side, at most


@lru_cache(maxsize=1)
def _cube(side: int) -> np.ndarray:
    from tensorly.datasets import load_indian_pines

    cube = np.asarray(load_indian_pines()["tensor"], dtype=float)
    return cube[:side, :side]


def run(cell: Cell) -> Row:
    """Follow the path of one method on one split, and report what validation chose."""
    cube = _cube(cell["side"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a pixel without observations keeps the band means
        scene = Scene(cube, cell["fraction"], cell["seed"], cell["held_out"])
        tracks = _follow(scene, cell)
    choice = int(np.argmin([track.best for track in tracks]))
    row = {"choice": choice, **_summary(tracks[choice])}
    if cell["seed"] == 0 and cell["fraction"] == PICTURED:
        row |= _picture(cube, scene, tracks[choice])
    return row


def _follow(scene: Scene, cell: Cell) -> list[Track]:
    if cell["method"] in SOLVERS:
        solvers = SOLVERS[cell["method"]]
        tracks = [Track(scene) for _ in solvers]
        for track, solver in zip(tracks, solvers, strict=True):
            grow_rank(track, solver, cell["most_rank"], cell["most_iter"], cell["patience"])
        return tracks
    track = Track(scene)
    if cell["method"] == "soft-impute":
        shrink(track, cell["penalties"], cell["decay"], cell["shrunk_rank"], cell["sweeps"])
    else:
        m, n = scene.problem.shape
        track.add(lr.BurerMonteiro(np.zeros((m, 1)), np.zeros((n, 1))))
        track.history["seconds"].append(0.0)
    return [track]


def _summary(track: Track) -> dict[str, Any]:
    history = {key: np.asarray(values) for key, values in track.history.items()}
    chosen = int(history["validation"].argmin())
    within = int((history["error"] <= 1.01 * history["error"][chosen]).argmax())
    size = len(history["error"])
    kept = np.unique(np.linspace(0, size - 1, min(size, 60)).round().astype(int))
    return {
        "error": float(history["error"][chosen]),
        "validation": float(history["validation"][chosen]),
        "chosen_rank": int(history["rank"][chosen]),
        "chosen_iteration": int(history["iteration"][chosen]),
        "least_error": float(history["error"].min()),
        "last_error": float(history["error"][-1]),
        "within_iteration": int(history["iteration"][within]),
        "within_seconds": float(history["seconds"][within]),
        "total_seconds": float(history["seconds"][-1]),
        "curves": {key: [float(f"{v:.5g}") for v in values[kept]] for key, values in history.items()},
    }


def _picture(cube: np.ndarray, scene: Scene, track: Track) -> dict[str, Any]:
    """One band, coarsened to at most SHOWN pixels a side: truth, what was seen of it, and the recovery."""
    side, step = cube.shape[0], -(-cube.shape[0] // SHOWN)
    pixels = np.arange(side * side).reshape(side, side)[::step, ::step]
    band = np.full(pixels.size, BAND)
    recovered = scene.estimate(track.point, pixels.ravel(), band)
    pattern, checked = scene.problem.pattern, scene.parts[0][0]
    seen = np.isin(pixels, pattern.rows[pattern.cols == BAND])
    seen |= np.isin(pixels, checked[0][checked[1] == BAND])
    return {
        "truth": cube[::step, ::step, BAND].astype(int),
        "seen": seen.astype(int),
        "recovered": recovered.round().astype(int).reshape(pixels.shape),
    }


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors relative to the baselines, times and iterations relative to ScaledGD; one value a split."""
    by = {(row["method"], row["fraction"], row["seed"]): row for row in rows}
    methods = solvers(rows)
    cases = list(dict.fromkeys((row["fraction"], row["seed"]) for row in rows))
    chosen = {case: by[best(rows, case[0]), *case] for case in cases}
    found: dict[str, Any] = {
        "best_over_mean": [chosen[case]["error"] / by["band mean", *case]["error"] for case in cases],
        "all_over_mean": [
            by[method, *case]["error"] / by["band mean", *case]["error"] for method in methods for case in cases
        ],
        "chosen_over_least": [
            by[method, *case]["error"] / by[method, *case]["least_error"] for method in methods for case in cases
        ],
        "more_data": _more_data({case: row["error"] for case, row in chosen.items()}),
    }
    for fraction in sorted({fraction for fraction, _ in cases}):
        here, percent = [case for case in cases if case[0] == fraction], f"{100 * fraction:g}"
        found[f"best_over_soft_impute_{percent}"] = [
            chosen[case]["error"] / by["soft-impute", *case]["error"] for case in here
        ]
        for what in ("seconds", "iteration"):
            found[f"als_{what}_{percent}"] = _ratio(by, here, "ALS", "ScaledGD", f"within_{what}")
            found[f"cg_{what}_{percent}"] = _ratio(by, here, "ScaledCG", "ScaledGD", f"within_{what}")
        found[f"ridge_{percent}"] = _ratio(by, here, "ridge ALS", "ALS", "error")
        found[f"gd_{percent}"] = _ratio(by, here, "GD", "ScaledGD", "error")
    return found


def _ratio(by: Mapping[Any, Row], cases: Sequence[Any], one: str, other: str, key: str) -> list[float]:
    return [
        by[one, *case][key] / by[other, *case][key] for case in cases if (one, *case) in by and (other, *case) in by
    ]


def _more_data(errors: Mapping[tuple[float, int], float]) -> list[float]:
    """Median error at each fraction over that at the next smaller one."""
    fractions = sorted({fraction for fraction, _ in errors})
    medians = [median(e for (f, _), e in errors.items() if f == fraction) for fraction in fractions]
    return [high / low for low, high in pairwise(medians)]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """What validation chose for every method and fraction."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Errors along the paths, chosen errors side by side, and a band of the scene."""
    return plots.figures(rows)
