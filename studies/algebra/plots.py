"""Figures and tables of the algebra study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "tables"]

Row = Mapping[str, Any]

NAMES = {"lora": "LoRA (rank 4)", "grid": "Localized (2 x 2 blocks, rank 2)", "diagonal": "MELoRA (4 blocks, rank 4)"}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Full rank of 0/1 matrices against density; block forms against LoRA at equal budget."""
    found = {}
    if any(row["part"] == "bernoulli" for row in rows):
        found["bernoulli"] = _bernoulli([row for row in rows if row["part"] == "bernoulli"])
    if any(row["part"] == "accuracy" for row in rows):
        found["blocks"] = _accuracy([row for row in rows if row["part"] == "accuracy"])
    return found


def _bernoulli(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("Random 0/1 matrices become invertible near p = log(n) / n")
    for number, n in enumerate(sorted({row["size"] for row in rows})):
        factors = sorted({row["factor"] for row in rows if row["size"] == n})
        values = [np.mean([r["full"] for r in rows if r["size"] == n and r["factor"] == c]) for c in factors]
        ax.plot(factors, values, marker="os^D"[number % 4], label=f"n = {n}")
    ax.set(xscale="log", xlabel="density p, in units of log(n) / n", ylabel="share of matrices of full rank")
    ax.set_xticks(factors, [f"{c:g}" for c in factors])
    ax.minorticks_off()
    ax.legend()
    return fig


def _accuracy(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("Which block form is nearest depends on the target (224 numbers each, 28 x 28)", width=7.0)
    targets = list(dict.fromkeys(row["target"] for row in rows))
    for number, (key, label) in enumerate(NAMES.items()):
        values = [[row[key] for row in rows if row["target"] == target] for target in targets]
        middle = np.array([np.median(v) for v in values])
        spread = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, values, strict=True)]).T
        place = np.arange(len(targets)) + 0.27 * (number - 1)
        ax.bar(place, middle, 0.25, yerr=spread, capsize=2, label=label, color=style.PALETTE[number])
    ax.set_xticks(range(len(targets)), [f"target: {target}" for target in targets])
    ax.set(ylabel="relative error of the nearest matrix", ylim=(0, 1.15))
    ax.legend(ncols=3, loc="upper center", fontsize=8)
    return fig


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Dimensions of Hadamard images, and errors of block forms."""
    hadamard = [
        {
            "m x n": "{} x {}".format(*row["shape"]),
            "r": row["size"],
            "dimension of the image": row["image"],
            "2r(m+n-r) - (m+n-1)": row["corrected_bound"],
            "2r(m+n-r), printed": row["printed_bound"],
            "matrices of rank r^2": row["of_rank_r2"],
        }
        for row in rows
        if row["part"] == "hadamard" and row["seed"] == 0
    ]
    errors = [
        {"target": target, **{label: _median(rows, target, key) for key, label in NAMES.items()}}
        for target in dict.fromkeys(row["target"] for row in rows if row["part"] == "accuracy")
    ]
    return {"Reach of Hadamard products": hadamard, "Errors of block forms, medians over the seeds": errors}


def _median(rows: Sequence[Row], target: str, key: str) -> float:
    values = [row[key] for row in rows if row["part"] == "accuracy" and row["target"] == target]
    return round(float(np.median(values)), 4)
