"""Figures and tables of the completion of a hyperspectral scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["BAND", "PICTURED", "best", "figures", "median_over", "solvers", "tables"]

Row = Mapping[str, Any]

OURS = ("ALS", "ridge ALS", "ScaledCG", "ScaledGD", "RiemannianCG", "GD")
BASELINES = ("soft-impute", "band mean")
BAND = 28  # in the picture: about 670 nm, red light, where vegetation and soil differ
PICTURED = 0.1  # the share of entries of the picture
LINES = {
    **style.lines(OURS),
    "ridge ALS": style.Line("#cc79a7", "--", "p"),
    "soft-impute": style.Line("#222222", ":", "x"),
    "band mean": style.Line("#8a8f98", "-.", "_"),
}


def solvers(rows: Sequence[Row]) -> list[str]:
    present = {row["method"] for row in rows}
    return [method for method in OURS if method in present]


def best(rows: Sequence[Row], fraction: float) -> str:
    """Our solver with the least median validation error at a fraction: held-out entries have no say."""
    return min(solvers(rows), key=lambda method: median_over(rows, method, fraction, "validation"))


def median_over(rows: Sequence[Row], method: str, fraction: float, key: str) -> float:
    return median(row[key] for row in rows if row["method"] == method and row["fraction"] == fraction)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """What validation chose for every method and fraction: medians over the seeds."""
    keys = ("error", "least_error", "last_error", "chosen_rank", "chosen_iteration", "within_seconds")
    pairs = dict.fromkeys((row["fraction"], row["method"]) for row in rows)
    return {
        "Held-out relative error, medians over the seeds": [
            {
                "fraction": fraction,
                "method": method,
                **{key: float(f"{median_over(rows, method, fraction, key):.4g}") for key in keys},
            }
            for fraction, method in sorted(pairs)
        ]
    }


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Held-out error against iterations and seconds, chosen errors side by side, and a band of the scene."""
    found = {"curves": _curves(rows), "errors": _errors(rows)}
    if any("recovered" in row for row in rows):
        found["band"] = _band(rows)
    return found


def _curves(rows: Sequence[Row]) -> Figure:
    fractions = sorted({row["fraction"] for row in rows})
    fig, axes = style.figure(
        "Held-out error along the paths (median split; the dot is the choice of validation)",
        2, len(fractions), width=4.4, height=3.3, squeeze=False, sharey="col",
    )  # fmt: skip
    for column, fraction in enumerate(fractions):
        for row, (key, label) in enumerate((("iteration", "iteration"), ("seconds", "solver time (s)"))):
            ax = axes[row][column]
            for method in [*solvers(rows), "soft-impute"]:
                _draw_path(ax, _median_row(rows, method, fraction), key, method)
            ax.axhline(median_over(rows, "band mean", fraction, "error"), **_plain("band mean"), label="band mean")
            ax.set(xscale="log", yscale="log", xlabel=label)
            _percent_ticks(ax)
            if row == 0:
                ax.set_title(f"{100 * fraction:g} % of the entries observed")
            if column == 0:
                ax.set_ylabel("held-out relative error")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


def _median_row(rows: Sequence[Row], method: str, fraction: float) -> Row:
    """The row of the seed with the median error."""
    chosen = sorted((r for r in rows if r["method"] == method and r["fraction"] == fraction), key=lambda r: r["error"])
    return chosen[(len(chosen) - 1) // 2]


def _draw_path(ax: Any, row: Row, key: str, method: str) -> None:
    curves = row["curves"]
    ax.plot(curves[key], curves["error"], label=method, **_plain(method))
    at = int(np.argmin(curves["validation"]))
    ax.plot(curves[key][at], curves["error"][at], marker="o", color=LINES[method].color, zorder=5)


def _plain(method: str) -> dict[str, Any]:
    return {"color": LINES[method].color, "linestyle": LINES[method].linestyle}


def _percent_ticks(ax: Any) -> None:
    ticks = [0.04, 0.05, 0.06, 0.08, 0.1, 0.14]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(0.034, 0.16)


def _errors(rows: Sequence[Row]) -> Figure:
    fractions = sorted({row["fraction"] for row in rows})
    fig, ax = style.figure("Held-out error at the choice of validation", width=7.2, height=3.8)
    methods = [*solvers(rows), *BASELINES]
    for index, method in enumerate(methods):
        entry = LINES[method]
        offset = (index - (len(methods) - 1) / 2) / (len(methods) + 2)
        dots = {"linestyle": "none", "marker": entry.marker, "color": entry.color, "alpha": 0.8}
        for place, fraction in enumerate(fractions):
            values = [r["error"] for r in rows if r["method"] == method and r["fraction"] == fraction]
            label = method if place == 0 else None
            ax.plot([place + offset] * len(values), values, label=label, **dots)
    ax.set_xticks(range(len(fractions)), [f"{100 * f:g} %" for f in fractions])
    ax.set(xlabel="share of the entries observed", ylabel="held-out relative error", yscale="log")
    _percent_ticks(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _band(rows: Sequence[Row]) -> Figure:
    shown = {row["method"]: row for row in rows if "recovered" in row}
    winner = best(rows, PICTURED)
    truth = np.asarray(shown[winner]["truth"])
    seen = np.where(np.asarray(shown[winner]["seen"]) == 1, truth, np.nan)
    panels = {"truth": truth, f"observed ({100 * PICTURED:g} %)": seen}
    panels |= {method: np.asarray(shown[method]["recovered"]) for method in (winner, *BASELINES)}
    fig, axes = style.figure(
        f"Band {BAND + 1} of the scene, seed 0: all recoveries from the same entries",
        1,
        len(panels),
        width=2.6,
        height=3.0,
    )
    low, high = np.percentile(truth, (1, 99))
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(values, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        error = shown[name]["error"] if name in shown else None
        ax.set_title(name if error is None else f"{name}\nheld-out error {error:.3f}", fontsize=10)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    fig.colorbar(image, ax=axes, label="radiance (sensor counts)", shrink=0.8)
    return fig
