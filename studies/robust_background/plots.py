"""Figures and tables of the separation of background and moving objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from studies import style

__all__ = ["OBJECTS", "figures", "tables"]

Row = Mapping[str, Any]

OBJECTS = 3  # in the videos of the picture
METHODS = ("robust_pca", "PCP", "PCA", "median image")
LINES = {
    "robust_pca": style.Line("#0072b2", "-", "o"),
    "PCP": style.Line("#222222", ":", "x"),
    "PCA": style.Line("#d55e00", "-", "s"),
    "median image": style.Line("#8a8f98", "-.", "^"),
}


def _kinds(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    return sorted({(row["objects"], row["pause"], row["noise"]) for row in rows}, key=lambda kind: (kind[1], *kind))


def _values(rows: Sequence[Row], kind: tuple[int, float, float], method: str, key: str) -> list[float]:
    return [
        row[key] for row in rows if row["method"] == method and (row["objects"], row["pause"], row["noise"]) == kind
    ]


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Medians over the photographs."""
    lines = [
        {
            "coins": kind[0],
            "rest": f"{100 * kind[1]:g} %",
            "noise": kind[2],
            "method": method,
            "background PSNR (dB)": round(median(_values(rows, kind, method, "psnr")), 1),
            "F1": round(median(_values(rows, kind, method, "f1")), 3),
            "F1 at the best threshold": round(median(_values(rows, kind, method, "best_f1")), 3),
            "seconds": float(f"{median(_values(rows, kind, method, 'seconds')):.2g}"),
        }
        for kind in _kinds(rows)
        for method in METHODS
    ]
    return {"Medians over the photographs; PSNR is cut off at 100 dB": lines}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Quality for every kind of video, and one frame without and with a rest."""
    found = {"quality": _quality(rows)}
    for name, rests in (("moving", False), ("resting", True)):
        shown = [row for row in rows if "found" in row and (row["pause"] > 0) == rests]
        if shown:
            noise = max(row["noise"] for row in shown)
            first = shown[0]["photograph"]
            found[name] = _frames([r for r in shown if r["photograph"] == first and r["noise"] == noise], rests)
    return found


def _quality(rows: Sequence[Row]) -> Figure:
    kinds = _kinds(rows)
    fig, axes = style.figure(
        "Background and detection (median and range over the photographs)", 1, 2, width=5.6, height=3.9
    )
    labels = [f"{k} coin{'s' * (k > 1)}, {'rest' if p else 'no rest'}\nnoise {n:g}" for k, p, n in kinds]
    for ax, key, label in zip(axes, ("psnr", "f1"), ("PSNR of the background (dB)", "F1 of the objects"), strict=True):
        for number, method in enumerate(METHODS):
            entry = LINES[method]
            for place, kind in enumerate(kinds):
                values = _values(rows, kind, method, key)
                middle = median(values)
                reach = [[middle - min(values)], [max(values) - middle]]
                name = method if place == 0 else None
                at = place + 0.17 * (number - 1.5)
                ax.errorbar(
                    at, middle, reach, color=entry.color, marker=entry.marker, capsize=2, linestyle="none", label=name
                )
        ax.set_xticks(range(len(kinds)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        ax.set_ylabel(label)
    axes[0].set_ylabel("PSNR of the background (dB, at most 100)")
    axes[1].set_ylim(0, 1.03)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _frames(rows: Sequence[Row], rests: bool) -> Figure:
    by = {row["method"]: row for row in rows}
    first = by[METHODS[0]]
    words = f"coins that rest for {100 * first['pause']:g} % of the time" if rests else "coins that keep moving"
    fig, axes = style.figure(f"One frame: {words}, noise {first['noise']:g}", 2, 5, width=2.4, height=1.95)
    columns = [("the video", first["frame"], first["moving"], "")]
    columns += [(m, by[m]["background"], by[m]["found"], f"\n{by[m]['psnr']:.1f} dB") for m in METHODS]
    for column, (name, picture, found, quality) in enumerate(columns):
        axes[0, column].imshow(picture, cmap="gray", vmin=0, vmax=200)
        axes[1, column].imshow(found, cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(name + quality, fontsize=10)
        axes[1, column].set_title(
            "objects" if column == 0 else f"F1 {by[name]['f1']:.2f}", fontsize=9, fontweight="normal"
        )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    axes[0, 0].set_ylabel("background")
    axes[1, 0].set_ylabel("objects")
    return fig
