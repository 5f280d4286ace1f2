"""Figures and tables of a scene as a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "tables"]

Row = Mapping[str, Any]

LINES = {
    "CP": style.Line("#0072b2", "-", "o"),
    "Tucker": style.Line("#009e73", "-", "D"),
    "TensorTrain": style.Line("#e69f00", "-", "^"),
    "matrix": style.Line("#d55e00", "--", "s"),
    "band means": style.Line("#8a8f98", "--", "P"),
}
NAMES = {"TensorTrain": "tensor train", "matrix": "matrix, pixels x bands"}


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Errors against numbers of parameters and held-out errors side by side, and a band of the scene."""
    found = {"errors": _errors(_of(rows, "approximation"), _of(rows, "completion"))}
    if any("recovered" in row for row in rows):
        found["band"] = _band(_of(rows, "completion"))
    return found


def _errors(near: Sequence[Row], done: Sequence[Row]) -> Figure:
    fig, (left, right) = style.figure("One scene as a tensor and as a matrix", 1, 2, width=4.8, height=3.8)
    for form, line in LINES.items():
        here = sorted((row for row in near if row["form"] == form), key=lambda row: row["used"])
        if here:
            left.plot(
                [row["used"] for row in here],
                [row["error"] for row in here],
                label=NAMES.get(form, form),
                **line.kwargs,
            )
    left.set(
        xlabel="numbers of parameters", ylabel="relative error, less band means", title="approximation", ylim=(0, None)
    )
    left.legend()
    for place, (method, line) in enumerate(LINES.items()):
        values = [row["error"] for row in done if row["method"] == method]
        right.plot([place] * len(values), values, **{**line.kwargs, "linestyle": "none"})
    right.set_xticks(range(len(LINES)), ["CP", "Tucker", "train", "matrix", "means"])
    right.set(ylabel="relative error on hidden entries", title="completion from 5 %", ylim=(0, None))
    return fig


def _band(rows: Sequence[Row]) -> Figure:
    shown = {row["method"]: row for row in rows if "recovered" in row}
    first = next(iter(shown.values()))
    truth = np.asarray(first["truth"])
    panels = {"truth": truth, "observed (5 %)": np.where(np.asarray(first["seen"]) == 1, truth, np.nan)}
    panels |= {method: np.asarray(shown[method]["recovered"]) for method in LINES if method in shown}
    fig, axes = style.figure(
        "Red light, seed 0: all recoveries from the same entries", 1, len(panels), width=2.3, height=2.8
    )
    low, high = np.percentile(truth, (1, 99))
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(values, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        error = f"\nheld-out error {shown[name]['error']:.3f}" if name in shown else ""
        ax.set_title(NAMES.get(name, name) + error, fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    fig.colorbar(image, ax=axes, label="radiance (sensor counts)", shrink=0.8)
    return fig


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Errors of approximation and of completion, with the ranks."""
    near = [
        {
            "form": NAMES.get(row["form"], row["form"]),
            "rank": str(row["rank"]),
            "parameters": row["used"],
            "relative error": round(row["error"], 4),
        }
        for row in sorted(_of(rows, "approximation"), key=lambda row: row["numbers"])
    ]
    done = []
    for method in LINES:
        here = [row for row in _of(rows, "completion") if row["method"] == method]
        if here:
            errors = [row["error"] for row in here]
            values = {"median": median(errors), "least": min(errors), "largest": max(errors)}
            line = {f"held-out error ({key})": round(value, 4) for key, value in values.items()}
            ranks = ", ".join(str(row["rank"]) for row in here)
            done.append({"model": NAMES.get(method, method), **line, "ranks by split": ranks})
    return {"Approximation": near, "Completion from 5 % of the entries": done}
