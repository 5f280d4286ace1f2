"""Predict hidden antibody measurements with CP, with matrices and with means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.hyperspectral.soft_impute import penalty_path, soft_impute
from studies.serology import plots
from studies.serology.paths import Split, Track, grow_rank

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

RIDGES = (0.03, 0.1, 0.3)  # relative to the mean Gram matrix; validation chooses
UNFOLDINGS = {"samples x rest": 0, "antigens x rest": 1, "receptors x rest": 2}
MATRICES = (*UNFOLDINGS, "soft-impute")


@lru_cache(maxsize=1)
def serology() -> np.ndarray:
    """Samples x antigens x receptors: logarithms of readings, less their means (438, 6, 11)."""
    from tensorly.datasets import load_covid19_serology

    return np.asarray(load_covid19_serology()["tensor"], dtype=float)


def run(cell: Cell) -> Row:
    """One method on one split, or one rank on the whole tensor."""
    return PARTS[cell["part"]](cell)


def _prediction(cell: Cell) -> Row:
    split = Split(serology(), cell["pattern"], cell["observed"], cell["seed"])
    method = cell["method"]
    if method in ("means", "two-way means"):
        offsets = _offsets(split) if method == "two-way means" else np.zeros(split.shape[0])
        check, error = split.errors(lambda i, _j, _k: offsets[i])
        return {"error": error, "validation": check, "least_error": error, "chosen_rank": 0}
    track = Track(split, UNFOLDINGS.get(method, 0 if method == "soft-impute" else None))
    if method == "soft-impute":
        problem = split.problem(0)
        for _, point in soft_impute(problem, penalty_path(problem, 20, 0.8), rank=40):
            track.add(point)
    else:
        grow_rank(track, RIDGES, cell["most_rank"], cell["most_iter"], cell["patience"])
    return {
        "error": track.error,
        "validation": track.best,
        "least_error": track.least,
        "chosen_rank": int((track.point.values > 0).sum()) if method == "soft-impute" else track.point.rank,
    }


def _offsets(split: Split) -> np.ndarray:
    """The mean of what is left of every sample, as if one more entry were zero."""
    samples = split.parts[0][0]
    counts = np.bincount(samples, minlength=split.shape[0])
    return np.bincount(samples, split.train, split.shape[0]) / (counts + 1)


def _compression(cell: Cell) -> Row:
    """Relative errors of CP and of the truncated SVD (PCA) of the whole tensor, with their numbers of parameters."""
    tensor, rank = serology(), cell["rank"]
    m, width = tensor.shape[0], tensor[0].size
    values = np.linalg.svd(tensor.reshape(m, width), compute_uv=False)
    cp = lr.factorize_tensor(tensor, rank, lr.CP, max_iter=1000, tol=1e-8).point
    return {
        "cp": float(np.linalg.norm(cp.dense() - tensor) / np.linalg.norm(tensor)),
        "cp_numbers": lr.CP.parameter_count(tensor.shape, rank),
        "pca": float(np.linalg.norm(values[rank:]) / np.linalg.norm(values)),
        "pca_numbers": lr.BurerMonteiro.parameter_count((m, width), rank),
    }


PARTS = {"prediction": _prediction, "compression": _compression}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors of CP relative to the others; one value a split."""
    by = {
        (row["method"], row["pattern"], row["observed"], row["seed"]): row
        for row in rows
        if row["part"] == "prediction"
    }
    cases = [key[1:] for key in by if key[0] == "CP"]

    def ratio(other: str, here: Sequence[Any]) -> list[float]:
        return [by["CP", *case]["error"] / by[other, *case]["error"] for case in here]

    found: dict[str, Any] = {"chosen_over_least": [by["CP", *c]["error"] / by["CP", *c]["least_error"] for c in cases]}
    for pattern in ("entries", "fibers"):
        here = [case for case in cases if case[0] == pattern]
        found[f"cp_over_means_{pattern}"] = ratio("means", here)
        found[f"cp_over_two_way_{pattern}"] = ratio("two-way means", here)
        found[f"cp_over_pca_{pattern}"] = ratio("samples x rest", here)
        for share in sorted({case[1] for case in here}):
            some, percent = [case for case in here if case[1] == share], f"{pattern}_{100 * share:g}"
            found[f"cp_over_pca_{percent}"] = ratio("samples x rest", some)
            best = [min(by[method, *case]["error"] for method in MATRICES) for case in some]
            found[f"cp_over_best_{percent}"] = [by["CP", *c]["error"] / b for c, b in zip(some, best, strict=True)]
    return found | {"cp_over_pca_equal_numbers": _equal_numbers([row for row in rows if row["part"] == "compression"])}


def _equal_numbers(rows: Sequence[Row]) -> list[float]:
    """Error of CP over that of PCA at the same number of parameters, its square interpolated between ranks."""
    numbers = [0, *(row["pca_numbers"] for row in rows)]
    squares = [1.0, *(row["pca"] ** 2 for row in rows)]
    return [row["cp"] / float(np.interp(row["cp_numbers"], numbers, squares)) ** 0.5 for row in rows]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Held-out errors, and errors on the whole tensor."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Held-out errors of all methods, and errors on the whole tensor against the number of parameters."""
    return plots.figures(rows)
