"""A scene as a tensor and as a matrix: approximation at matched numbers of parameters, completion from few entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.hyperspectral_tensor import plots
from studies.hyperspectral_tensor.approximate import nearest
from studies.hyperspectral_tensor.scene import Split, scene
from studies.serology.paths import Track, grow_rank

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

RIDGES = (0.1, 0.3)  # relative to the mean Gram matrix; validation chooses, as it does the rank
MOST_RANK = {"CP": 12, "matrix": 6}
RANKS: dict[str, list[tuple[int, ...]]] = {
    "Tucker": [(8, 8, 3), (12, 12, 4), (16, 16, 4)],
    "TensorTrain": [(4, 2), (8, 3), (12, 4)],
}
BAND = 28  # of the scene, in the picture: red light


def run(cell: Cell) -> Row:
    """One form at one number of parameters, or one completion."""
    return PARTS[cell["part"]](cell)


def _approximation(cell: Cell) -> Row:
    cube = scene(cell["side"], cell["step"])
    return nearest(cube - cube.mean((0, 1)), cell["form"], cell["numbers"])


def _completion(cell: Cell) -> Row:
    cube, method = scene(cell["side"], cell["step"]), cell["method"]
    split = Split(cube, cell["observed"], cell["seed"])
    if method == "band means":
        check, error = split.errors(lambda i, _j, _k: np.zeros(i.shape))
        return {"error": error, "validation": check, "least_error": error, "rank": 0}
    track = Track(split, 2 if method == "matrix" else None)
    if method in RANKS:
        _each_rank(track, getattr(lr, method), RANKS[method], cell["most_iter"], cell["patience"])
    else:
        grow_rank(track, RIDGES, MOST_RANK[method], cell["most_iter"], cell["patience"])
    rank = track.point.rank
    row = {"error": track.error, "validation": track.best, "least_error": track.least}
    row["rank"] = list(rank) if isinstance(rank, tuple) else rank
    return row | (_picture(cell, cube, track) if cell["seed"] == 0 else {})


def _each_rank(track: Track, form: Any, ranks: list[tuple[int, ...]], most_iter: int, patience: int) -> None:
    """Alternating least squares from the spectral start of every rank; validation chooses among all iterates."""
    problem = track.split.problem()
    for rank in ranks:
        start = lr.inits.spectral(problem, form, rank)
        for ridge in RIDGES:
            gains: list[bool] = []
            own = Track(track.split)

            def stop(_iteration: int, point: Any, _loss: float, own: Track = own, gains: list[bool] = gains) -> bool:
                gains.append(own.add(point))
                track.add(point)
                return len(gains) >= patience and not any(gains[-patience:])

            lr.solve(problem, start, lr.ALS(ridge=ridge), most_iter, 0.0, callback=stop)


def _picture(cell: Cell, cube: np.ndarray, track: Track) -> dict[str, Any]:
    """One band: truth, what was seen of it, and the recovery."""
    side, band, split = cube.shape[0], BAND // cell["step"], track.split
    rows, cols = (k.ravel() for k in np.indices((side, side)))
    part = (rows, cols, np.full(rows.shape, band))
    where = part if track.mode is None else split.flat(track.mode, part)[:2]
    recovered = split.estimate(track.point.entries(*where), part)  # pyright: ignore[reportAttributeAccessIssue]
    seen = np.zeros((side, side), int)
    for i, j, k in split.parts[:2]:
        seen[i[k == band], j[k == band]] = 1
    return {
        "truth": cube[:, :, band].astype(int),
        "seen": seen,
        "recovered": recovered.round().astype(int).reshape(side, side),
    }


PARTS = {"approximation": _approximation, "completion": _completion}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors of the forms relative to each other; one value a number of parameters or a split."""
    near = {(row["form"], row["numbers"]): row["error"] for row in rows if row["part"] == "approximation"}
    done = {(row["method"], row["seed"]): row for row in rows if row["part"] == "completion"}
    numbers, seeds = sorted({key[1] for key in near}), sorted({key[1] for key in done})
    found: dict[str, Any] = {}
    for one, other in (
        ("Tucker", "matrix"), ("CP", "matrix"), ("TensorTrain", "matrix"), ("Tucker", "CP"), ("Tucker", "TensorTrain"),
    ):  # fmt: skip
        found[f"approximation_{one}_over_{other}"] = [near[one, k] / near[other, k] for k in numbers]
    tensors = ("CP", "Tucker", "TensorTrain")
    for form in tensors:
        found[f"completion_{form}_over_matrix"] = [
            done[form, seed]["error"] / done["matrix", seed]["error"] for seed in seeds
        ]
    found["completion_over_means"] = [
        done[form, seed]["error"] / done["band means", seed]["error"] for form in (*tensors, "matrix") for seed in seeds
    ]
    best = {seed: min((done[form, seed] for form in tensors), key=lambda row: row["validation"]) for seed in seeds}
    found["completion_best_over_matrix"] = [best[seed]["error"] / done["matrix", seed]["error"] for seed in seeds]
    return found


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Errors of approximation and of completion, with the ranks."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Errors against numbers of parameters, held-out errors, and a band of the scene."""
    return plots.figures(rows)
