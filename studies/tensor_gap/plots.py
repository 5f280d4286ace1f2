"""Figures and tables of spiked tensor PCA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.tensor_gap.analysis import STARTS, exponent, shares, thresholds

__all__ = ["figures", "tables"]

Row = Mapping[str, Any]

NAMES = {
    "truth": "from the truth",
    "unfolding": "from the unfoldings",
    "restarts": "best of ten random starts",
    "random": "from a random start",
}
LINES = {
    "truth": style.Line("#009e73", ":", "D"),
    "unfolding": style.Line("#0072b2", "-", "o"),
    "restarts": style.Line("#e69f00", "--", "^"),
    "random": style.Line("#d55e00", "-", "s"),
}


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Success against strength, and the strengths needed against n."""
    return {"success": _success(rows), "thresholds": _thresholds(rows)} if _of(rows, "power") else {}


def _success(rows: Sequence[Row]) -> Figure:
    power, descent = _of(rows, "power"), _of(rows, "descent")
    sizes = sorted({row["size"] for row in power})
    fig, axes = style.figure(
        "Share of spikes found: power iteration (lines) and ScaledGD (crosses)",
        1, len(sizes), width=3.4, height=3.6, sharey=True, squeeze=False,
    )  # fmt: skip
    for ax, n in zip(axes[0], sizes, strict=True):
        for start in STARTS:
            ax.plot(*shares(power, n, start), label=NAMES[start], **LINES[start].kwargs)
            if start in ("unfolding", "random") and any(row["size"] == n for row in descent):
                dots = {"linestyle": "none", "marker": "x", "markersize": 8, "color": LINES[start].color}
                ax.plot(*shares(descent, n, start), **dots)
        ax.set(xscale="log", xlabel="strength", title=f"n = {n}")
        ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        ax.minorticks_off()
    axes[0][0].set_ylabel("share with overlap of at least 0.5")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


def _thresholds(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("The strength that half of the runs need", width=5.6, height=3.9)
    for start, found in thresholds(_of(rows, "power")).items():
        sizes, values = list(found), list(found.values())
        slope = exponent(found)
        ax.plot(sizes, values, label=f"{NAMES[start]}: n^{slope:.2f}", **LINES[start].kwargs)
    ax.set(xscale="log", yscale="log", xlabel="n", ylabel="strength, in units of sqrt(n)")
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.set_yticks([1.5, 2, 3, 4], ["1.5", "2", "3", "4"])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Strengths at which half of the runs succeed."""
    lines = []
    for part, method in (("power", "power iteration"), ("descent", "ScaledGD")):
        if not _of(rows, part):
            continue
        for start, found in thresholds(_of(rows, part)).items():
            if found:
                values = {f"n = {n}": round(float(np.round(v, 3)), 3) for n, v in found.items()}
                lines.append({"method": method, "start": NAMES[start], **values})
    return {"Strength that half of the runs need": lines}
