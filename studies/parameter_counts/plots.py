"""Figures of the parameter-count study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from studies import style

__all__ = ["figures"]

Row = Mapping[str, Any]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Printed and counted numbers of the benchmark; targets against the printed numbers of two models."""
    found = {}
    benchmark = [row for row in rows if row["part"] == "benchmark" and row["printed"] > 0]
    models = [row for row in rows if row["part"] == "models"]
    if benchmark:
        found["benchmark"] = _benchmark(benchmark)
    if models:
        found["models"] = _models(models)
    return found


def _benchmark(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("Llama-3.1-8B: printed and counted trainable parameters", width=7.0, height=4.6)
    names = [row["method"] for row in rows]
    place = range(len(names))
    ax.scatter([row["counted"] for row in rows], place, marker="o", s=40, label="counted from the forms")
    ax.scatter([row["printed"] for row in rows], place, marker="|", s=160, linewidths=2, label="printed")
    ax.set_yticks(list(place), names)
    ax.invert_yaxis()
    ax.set(xlabel="millions of parameters", xscale="log")
    ax.set_xticks([20, 30, 40, 60, 90], ["20", "30", "40", "60", "90"])
    ax.minorticks_off()
    ax.legend()
    return fig


def _models(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("LoRA's parameters by the layers it adapts, and the printed numbers", width=7.0, height=3.6)
    labels = [f"{row['model']}, r = {row['rank']}" for row in rows]
    for number, kind in enumerate(("queries, values", "queries, keys, values", "attention", "all linear layers")):
        values = [list(row["usual"].values())[number] for row in rows]
        ax.scatter(values, range(len(rows)), marker="osD^"[number], s=45, label=kind, zorder=3)
    ax.scatter([row["printed"] for row in rows], range(len(rows)), marker="x", s=70, linewidths=2, label="printed")
    ax.set_yticks(range(len(rows)), labels)
    ax.set(xlabel="millions of parameters", xscale="log")
    ax.margins(y=0.15)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig
