"""What the rows of the scalar testbed say: curvature, one-step updates against closed forms, tuned steps."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SOLVERS", "loss", "measures", "pick", "product", "tables", "tuned"]

Rows = list[dict[str, Any]]
SOLVERS = ("GD", "ScaledGD", "RefLoRA")


def pick(rows: Rows, part: str, **where: Any) -> Rows:
    """The rows of a part with the given values."""
    return [r for r in rows if r["part"] == part and all(r[key] == value for key, value in where.items())]


def product(row: dict[str, Any]) -> np.ndarray:
    """xy along a row."""
    return np.array(row["x"]) * np.array(row["y"])


def loss(row: dict[str, Any]) -> np.ndarray:
    """f along a row."""
    return 0.5 * (product(row) - 1) ** 2


def tuned(rows: Rows, solver: str) -> dict[str, Any]:
    """The row of the step whose worst count over the tuning starts is least."""
    return min(pick(rows, "tuning", solver=solver), key=lambda row: (max(row["tuning"]), row["step"]))


def curvature(rows: Rows) -> dict[str, Any]:
    """Hessians at the points of the source, and the growth of curvature on orbits."""
    points = {tuple(row["point"]): row for row in pick(rows, "hessian")}
    values = {key: np.array(row["eigenvalues"]) for key, row in points.items()}
    orbits = {row["product"]: row for row in pick(rows, "orbit")}
    half, far = orbits[0.5], np.log(orbits[0.5]["spread"][-10:])
    return {
        "offdiagonal": [points[key]["matrix"][0][1] for key in ((2.0, 2.0), (1.0, 4.0))],
        "difference_gap": [row["difference_gap"] for row in points.values()],
        "top_eigenvalue_2_2": values[2.0, 2.0][-1],
        "top_eigenvalue_1_4": values[1.0, 4.0][-1],
        "bottom_eigenvalue_gap": [abs(values[2.0, 2.0][0] + 3), abs(values[1.0, 4.0][0] + 1.7591)],
        "saddle_eigenvalue": values[0.0, 0.0][0],
        "gauge_pair_ratio": values[0.125, 4.0][-1] / values[0.5, 1.0][-1],
        "dominance_ratio": [row["ratio"] for row in pick(rows, "dominance")],
        "half_orbit_gap": np.abs(np.array(half["top"]) / np.square(half["larger"]) - 1).max(),
        "curvature_slope": [np.polyfit(far, np.log(row["top"][-10:]), 1)[0] for row in orbits.values()],
        "flattest_ratio": [row["top"][0] / min(row["top"]) for row in orbits.values()],
    }


def updates(rows: Rows) -> dict[str, Any]:
    """One-step updates of the solvers against the closed forms of the source."""
    ends = {name: {tuple(r["start"]): r for r in pick(rows, "one_step", solver=name)} for name in SOLVERS}
    gd, scaled, refactored = (ends[name] for name in SOLVERS)
    even, skewed = gd[2.0, 2.0], gd[1.0, 4.0]
    steps = np.array(even["step"])
    gaps = [np.array(even["x"]) - (2 - 6 * steps), np.array(even["y"]) - (2 - 6 * steps)]
    gaps += [np.array(skewed["x"]) - (1 - 12 * steps), np.array(skewed["y"]) - (4 - 3 * steps)]
    third, sixth = int(np.flatnonzero(steps == 1 / 3)[0]), int(np.flatnonzero(steps == 1 / 6)[0])
    small = steps <= 1 / 3
    losses = {name: np.array([loss(row) for row in ends[name].values()]) for name in SOLVERS}
    fourfold = np.arange(3, 200, 4)  # steps 4 eta for eta = k / 240
    return {
        "gd_update_gap": np.abs(gaps).max(),
        "gd_product_gap": np.abs(product(even) - product(skewed))[steps >= 0.01].min(),
        "scaledgd_product_gap": [np.abs(product(r) - (2 - 1.5 * steps) ** 2).max() for r in scaled.values()],
        "reflora_product_gap": [np.abs(product(r) - (2 - 6 * steps) ** 2).max() for r in refactored.values()],
        "scaledgd_loss_third": losses["ScaledGD"][:, third],
        "scaledgd_loss_sixth": losses["ScaledGD"][:, sixth],
        "reflora_loss_third": losses["RefLoRA"][:, third],
        "reflora_loss_sixth": losses["RefLoRA"][:, sixth],
        "equal_step_gap": (losses["RefLoRA"] - losses["ScaledGD"])[:, small].max(axis=1),
        "rescaling_gap": [
            np.abs(product(r)[: len(fourfold)] - product(scaled[start])[fourfold]).max()
            for start, r in refactored.items()
        ],
        "tuned_one_step_loss": [losses[name].min(axis=1).max() for name in ("ScaledGD", "RefLoRA")],
    }


def comparisons(rows: Rows) -> dict[str, Any]:
    """Whole paths, other targets, and tuned steps."""
    balanced = product(pick(rows, "path", solver="GD", start=[2.0, 2.0])[0])
    scale = {name: pick(rows, "scale", solver=name) for name in ("ScaledGD", "RefLoRA")}
    best = {name: tuned(rows, name) for name in ("ScaledGD", "RefLoRA")}
    return {
        "balanced_path_gap": [
            np.abs(product(row)[:50] - balanced[:50]).max() for row in pick(rows, "path", solver="RefLoRA")
        ],
        "equal_step_ratio_by_scale": [
            b["relative_error"] / a["relative_error"] for a, b in zip(scale["ScaledGD"], scale["RefLoRA"])
        ],
        "steepest_excess": [row["loss"][len(row["loss"]) // 2] - min(row["loss"]) for row in pick(rows, "orbit_step")],
        "tuned_worst_iterations": [max(row["report"]) for row in best.values()],
    }


def measures(rows: Rows) -> dict[str, Any]:
    return {**curvature(rows), **updates(rows), **comparisons(rows)}


def tables(rows: Rows) -> dict[str, Any]:
    best = {name: tuned(rows, name) for name in SOLVERS}
    return {
        "Tuned steps: iterations to |xy - 1| <= 1e-12": [
            {
                "solver": name,
                "step": row["step"],
                "median": float(np.median(row["report"])),
                "least": min(row["report"]),
                "most": max(row["report"]),
            }
            for name, row in best.items()
        ]
    }
