"""Background and moving objects of a video as low rank plus sparse, by trimming, by a convex program and by neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.robust_background import plots
from studies.robust_background.video import make_video

Cell = Mapping[str, Any]
Row = Mapping[str, Any]
Array = np.ndarray

RANK = 3  # of the background under its changing light
PICTURED = 0.4  # of the video is over at the frame of the picture
VISIBLE = 0.02  # the least difference that counts as an object, in units of the white of the picture


def _robust(frames: Array) -> Array:
    return lr.robust_pca(frames, RANK).result.point.dense()


def _pursuit(frames: Array) -> Array:
    problem = lr.RobustPCA(frames)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 1)
    return lr.solve(problem, start, lr.baselines.PCP(), 300, 1e-6).point.dense()


def _principal(frames: Array) -> Array:
    return lr.factorize(frames, RANK).point.dense()


def _median(frames: Array) -> Array:
    return np.broadcast_to(np.median(frames, axis=0), frames.shape)


METHODS: dict[str, Callable[[Array], Array]] = {
    "robust_pca": _robust,
    "PCP": _pursuit,
    "PCA": _principal,
    "median image": _median,
}


def run(cell: Cell) -> Row:
    """One video, its background estimated by one method, and objects where the rest stands out."""
    shape = (cell["height"], cell["width"])
    video = make_video(cell["photograph"], shape, cell["frames"], cell["objects"], cell["pause"], cell["seed"])
    rng = np.random.default_rng((cell["seed"], 1))
    frames = video.frames + cell["noise"] * rng.standard_normal(video.frames.shape)
    tick = perf_counter()
    background = METHODS[cell["method"]](frames)
    seconds = perf_counter() - tick
    rest = abs(frames - background)
    found = rest > max(VISIBLE, 5 * 1.4826 * float(np.median(rest)))
    row: dict[str, Any] = {
        "seconds": seconds,
        "psnr": min(100.0, -10 * float(np.log10(np.mean((background - video.background) ** 2)))),
        "f1": _f1(found, video.moving),
        "best_f1": max(_f1(rest > level, video.moving) for level in np.geomspace(0.005, 0.3, 25)),
        "covered": float(video.moving.mean(0).max()),
    }
    if cell["seed"] == 0 and cell["objects"] == plots.OBJECTS:
        t = round(PICTURED * cell["frames"])
        pictures = {"frame": frames[t], "background": background[t], "true_background": video.background[t]}
        row |= {name: np.rint(255 * a).astype(int).reshape(shape).tolist() for name, a in pictures.items()}
        row |= {"found": found[t].astype(int).reshape(shape).tolist()}
        row |= {"moving": video.moving[t].astype(int).reshape(shape).tolist()}
    return row


def _f1(found: Array, truth: Array) -> float:
    """Harmonic mean of precision and recall."""
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Differences between methods on the same video, in dB and in F1."""
    axes = ("photograph", "objects", "pause", "noise", "seed")
    by = {(*(row[axis] for axis in axes), row["method"]): row for row in rows}
    cases = list(dict.fromkeys(key[:-1] for key in by))

    def gain(other: str, key: str, pauses: bool | None = None) -> list[float]:
        chosen = [case for case in cases if pauses is None or (case[2] > 0) == pauses]
        return [by[*c, "robust_pca"][key] - by[*c, other][key] for c in chosen]

    ours = [by[*case, "robust_pca"] for case in cases]
    moving = [row for row in ours if row["pause"] == 0]
    return {
        "exact_psnr": [row["psnr"] for row in moving if row["noise"] == 0],
        "noisy_psnr": [row["psnr"] + 20 * np.log10(row["noise"]) for row in moving if row["noise"] > 0],
        "moving_f1": [row["f1"] for row in moving],
        "paused_f1": [row["f1"] for row in ours if row["pause"] > 0],
        "psnr_over_pcp": gain("PCP", "psnr", pauses=False),
        "psnr_over_pcp_paused": gain("PCP", "psnr", pauses=True),
        "psnr_over_pca": gain("PCA", "psnr", pauses=False),
        "f1_over_pcp": gain("PCP", "f1", pauses=False),
        "best_f1_over_pcp": gain("PCP", "best_f1"),
        "best_f1_over_pca": gain("PCA", "best_f1"),
        "best_f1_over_median": gain("median image", "best_f1"),
        "rule_f1": [row["best_f1"] - row["f1"] for row in moving],
        "pause_costs": _pause_costs(by),
    }


def _pause_costs(by: Mapping[Any, Row]) -> list[float]:
    """PSNR of robust_pca without a pause less that with one, on the same photograph."""
    ours = {key[:-1]: row["psnr"] for key, row in by.items() if key[-1] == "robust_pca"}
    return [
        ours[name, objects, 0.0, noise, seed] - value
        for (name, objects, pause, noise, seed), value in ours.items()
        if pause > 0
    ]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Medians over photographs, for every kind of video."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """One frame as every method splits it, and background and detection for every kind of video."""
    return plots.figures(rows)
