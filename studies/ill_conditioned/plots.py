"""Figures and tables of the completion of ill-conditioned matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "rate", "tables"]

Row = Mapping[str, Any]

# An error at which a run counts as a success: of the matrix, and in units of its least singular value.
MET = {"error": 1e-4, "least_error": 1e-2}
TITLES = {
    "error": "the matrix, to a relative error of 1e-4",
    "least_error": "every singular value: error below 1 % of the least one",
}


def rate(rows: Sequence[Row], solver: str, condition: float, ratio: float, key: str = "error") -> float:
    """Share of the seeds whose error of a kind is small enough."""
    values = [
        row[key] <= MET[key]
        for row in rows
        if (row["solver"], row["condition"], row["ratio"]) == (solver, condition, ratio)
    ]
    return float(np.mean(values))


def _axes(rows: Sequence[Row]) -> tuple[list[str], list[float], list[float]]:
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    return solvers, sorted({row["condition"] for row in rows}), sorted({row["ratio"] for row in rows})


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Success rates by both criteria for every solver and condition number, and times."""
    solvers, conditions, ratios = _axes(rows)
    found: dict[str, list[dict[str, Any]]] = {}
    for key, title in TITLES.items():
        found[f"Success rate: {title}"] = [
            {
                "condition number": f"{condition:g}",
                "solver": solver,
                **{f"{ratio:g} x": round(rate(rows, solver, condition, ratio, key), 2) for ratio in ratios},
            }
            for condition in conditions
            for solver in solvers
        ]
    found["Iterations and seconds, medians over the grid"] = [
        {
            "solver": solver,
            "iterations": median(row["iterations"] for row in rows if row["solver"] == solver),
            "seconds": float(f"{median(row['seconds'] for row in rows if row['solver'] == solver):.2g}"),
        }
        for solver in solvers
    ]
    return found


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """One heat map a solver, for each criterion."""
    return {name: _heat(rows, key) for name, key in (("success", "error"), ("values", "least_error"))}


def _heat(rows: Sequence[Row], key: str) -> Figure:
    solvers, conditions, ratios = _axes(rows)
    fig, axes = style.figure(
        f"Share of runs that recover {TITLES[key]}", 2, -(-len(solvers) // 2), width=3.3, height=2.6, squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for ax, solver in zip(axes.flat, solvers, strict=False):
        values = np.array([[rate(rows, solver, c, x, key) for x in ratios] for c in conditions])
        image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto", origin="lower")
        for (i, j), value in np.ndenumerate(values):
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color="white" if value < 0.5 else "black")
        ax.set_title(solver)
        ax.set_xticks(range(len(ratios)), [f"{x:g}" for x in ratios])
        ax.set_yticks(range(len(conditions)), [f"1e{np.log10(c):.0f}" if c > 1 else "1" for c in conditions])
        ax.grid(False)
    for ax in axes.flat[len(solvers) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("condition number")
    for ax in axes[-1]:
        ax.set_xlabel("entries per degree of freedom")
    bar = fig.colorbar(image, ax=axes, label="successful seeds (%)", shrink=0.8, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "25", "50", "75", "100"])
    return fig
