"""Figures and tables of phase retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "rate", "tables"]

Row = Mapping[str, Any]

LINES = {
    "ScaledCG": style.line("ScaledCG"),
    "GD, automatic step": style.line("GD"),
    "ScaledGD, exact step": style.line("ScaledGD"),
    "Wirtinger flow": style.Line("#d55e00", "--", "D"),
}


def rate(rows: Sequence[Row], method: str, ratio: float, met: float) -> float:
    """Share of the digits recovered."""
    return float(np.mean([row["error"] <= met for row in rows if row["method"] == method and row["ratio"] == ratio]))


def _part(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def _median(rows: Sequence[Row], key: str, **where: Any) -> float:
    """Of the rows with given values; NaN without any."""
    values = [row[key] for row in rows if all(row[name] == value for name, value in where.items())]
    return median(values) if values else float("nan")


def _axes(rows: Sequence[Row], key: str) -> tuple[list[str], list[float]]:
    return [method for method in LINES if any(r["method"] == method for r in rows)], sorted({row[key] for row in rows})


def tables(rows: Sequence[Row], met: float) -> dict[str, list[dict[str, Any]]]:
    """Success rates, and iterations and milliseconds of the recovered digits; errors under noise."""
    exact, noisy = _part(rows, "oversampling"), _part(rows, "noise")
    methods, ratios = _axes(exact, "ratio")
    good = [row for row in exact if row["error"] <= met]
    success = [{"method": m, **{f"{x:g} x": round(rate(exact, m, x, met), 2) for x in ratios}} for m in methods]
    cost = [
        {
            "method": m,
            "iterations": _median(good, "iterations", method=m),
            "milliseconds": float(f"{1000 * _median(good, 'seconds', method=m):.2g}"),
        }
        for m in methods
    ]
    errors = [
        {
            "noise": level,
            "method": m,
            "relative error": float(f"{_median(noisy, 'error', noise=level, method=m):.3g}"),
            "of linearised least squares": float(f"{_median(noisy, 'floor', noise=level, method=m):.3g}"),
        }
        for level in _axes(noisy, "noise")[1]
        for m in _axes(noisy, "noise")[0]
    ]
    return {
        "Share of the digits recovered, by measurements per pixel": success,
        "Cost of a recovered digit, medians": cost,
        "Errors under noise, medians over the digits": errors,
    }


def figures(rows: Sequence[Row], met: float) -> dict[str, Figure]:
    """Success and iterations against oversampling, errors under noise; pictures of two digits."""
    fig, (left, middle, right) = style.figure("Phase retrieval of 8 x 8 digits", 1, 3, width=4.1, height=3.6)
    exact, noisy = _part(rows, "oversampling"), _part(rows, "noise")
    methods, ratios = _axes(exact, "ratio")
    good = [row for row in exact if row["error"] <= met]
    for number, method in enumerate(methods):
        line = {**LINES[method].kwargs, "markersize": 11 - 2 * number, "linewidth": 3 - 0.5 * number}
        left.plot(ratios, [100 * rate(exact, method, ratio, met) for ratio in ratios], label=method, **line)
        middle.plot(ratios, [_median(good, "iterations", method=method, ratio=ratio) for ratio in ratios], **line)
    methods, levels = _axes(noisy, "noise")
    for number, method in enumerate(methods):
        line = {**LINES[method].kwargs, "markersize": 11 - 4 * number}
        right.plot(levels, [_median(noisy, "error", noise=x, method=method) for x in levels], **line)
    floor = [_median(noisy, "floor", noise=x, method=methods[0]) for x in levels]
    right.plot(levels, floor, color="#222222", linestyle=":", label="linearised least squares")
    left.set(xlabel="measurements per pixel", ylabel="digits recovered (%)", ylim=(-4, 104))
    middle.set(xlabel="measurements per pixel", ylabel="iterations (recovered digits)", yscale="log")
    right.set(xlabel="relative noise of the intensities", ylabel="relative error", xscale="log", yscale="log")
    right.legend(loc="upper left")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return {"success": fig, "digits": _digits(rows)}


def _digits(rows: Sequence[Row]) -> Figure:
    """Recoveries by ScaledCG: exact at several oversampling ratios, then under noise."""
    shown = [row for row in rows if "found" in row and (row["part"] == "oversampling" or row["noise"] >= 1e-2)]
    numbers = sorted({row["digit"] for row in shown})
    by = {(row["digit"], row["part"], row["ratio"], row["noise"]): row for row in shown}
    keys = sorted({key[1:] for key in by}, key=lambda key: (key[0] == "noise", key[1], key[2]))
    fig, axes = style.figure(
        "Digits by ScaledCG from intensities alone", len(numbers), len(keys) + 1, width=1.7, height=2.2, squeeze=False
    )
    for line, number in zip(axes, numbers, strict=True):
        panels = [("image", by[number, *keys[0]]["truth"])]
        for part, ratio, noise in keys:
            row = by[number, part, ratio, noise]
            label = f"{ratio:g} per pixel" if part == "oversampling" else f"noise {noise:g}"
            panels.append((f"{label}\nerror {row['error']:.0e}", row["found"]))
        for ax, (label, image) in zip(line, panels, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(label, fontsize=9, fontweight="normal")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return fig
