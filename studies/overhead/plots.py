"""The figure of the overhead study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from studies import style
from studies.overhead.analysis import by_variant
from studies.overhead.variants import VARIANTS

__all__ = ["figures"]

Row = Mapping[str, Any]

TITLES = {
    "cpu": "A step relative to LoRA's: the survey on a GPU, ours on a CPU, 512 tokens",
    "long": "A step relative to LoRA's: the survey on a GPU, ours on a CPU, 2048 tokens",
    "counted": "A step relative to LoRA's: the survey on a GPU, ours counted at the same sizes",
    "gpu": "A step relative to LoRA's: the survey and ours, both on a GPU",
}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Time and memory of every variant, printed and measured, for every part that was run."""
    parts = {part: by_variant(rows, part) for part in TITLES}
    return {part: _ratios(part, there) for part, there in parts.items() if there}


def _ratios(part: str, there: Mapping[str, Sequence[Row]]) -> Figure:
    fig, axes = style.figure(TITLES[part], columns=2, width=4.8, height=5.4, sharey=True)
    ours, least = ("counted", "least ") if part == "counted" else ("measured here", "")
    names = [name for name in VARIANTS if name in there]
    place = range(len(names))
    for ax, quantity in zip(axes, ("time", "memory"), strict=True):
        printed = [getattr(VARIANTS[name], f"source_{quantity}") for name in names]
        ax.scatter(printed, place, marker="|", s=160, linewidths=2, label="survey", color=style.PALETTE[1])
        middle = [statistics.median(row[quantity] for row in there[name]) for name in names]
        ax.scatter(middle, place, marker="o", s=36, label=ours, color=style.PALETTE[0], zorder=3)
        if quantity == "time":
            low = [min(row["least"] for row in there[name]) for name in names]
            high = [max(row["most"] for row in there[name]) for name in names]
            ax.hlines(place, low, high, color=style.PALETTE[0], linewidth=1.2)
        ax.axvline(1.0, color="#8a8f98", linewidth=0.8)
        ax.set(xlabel=f"{least if quantity == 'time' else ''}{quantity} / LoRA's", xscale="log")
        ticks = [0.7, 1, 1.5, 2, 3, 5, 8] if quantity == "time" else [0.7, 1, 1.5, 2, 3]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    axes[0].set_yticks(list(place), names)
    axes[0].invert_yaxis()
    axes[1].legend()
    return fig
