"""Figures of the printed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.benchmark_tables.analysis import methods, of, peak

__all__ = ["figures"]

Row = Mapping[str, Any]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Averages by rate, and peaks with and without the task that nobody learns."""
    glue = of(rows, "glue")
    return {"rates": _rates(glue), "peaks": _peaks(glue)}


def _rates(glue: Sequence[Row]) -> Figure:
    fig, ax = style.figure(
        "Printed GLUE averages (RoBERTa-base); stars: the best rate of a method", width=6.6, height=5.4
    )
    rates = sorted({r["rate"] for r in glue})
    names = sorted(methods(glue), key=lambda name: (peak(glue, name)[1], -peak(glue, name)[0]))
    values = {(r["method"], r["rate"]): r["average"] for r in glue}
    grid = np.array([[values[name, rate] for rate in rates] for name in names])
    image = ax.imshow(grid, aspect="auto", cmap="viridis", vmin=50, vmax=82)
    for i, name in enumerate(names):
        for j, rate in enumerate(rates):
            mark = " *" if rate == peak(glue, name)[1] else ""
            ax.text(j, i, f"{grid[i, j]:.1f}{mark}", ha="center", va="center", fontsize=7.5,
                    color="white" if grid[i, j] < 70 else "black")  # fmt: skip
    ax.set_xticks(range(len(rates)), [f"{rate:.0e}".replace("e-0", "e-") for rate in rates])
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="learning rate")
    ax.grid(False)
    fig.colorbar(image, ax=ax, label="average of nine tasks", extend="min")
    return fig


def _peaks(glue: Sequence[Row]) -> Figure:
    fig, ax = style.figure("Peaks relative to LoRA's: WNLI decides who is first", width=6.0, height=5.0)
    names = sorted(methods(glue), key=lambda name: peak(glue, name)[0])
    series = (("all nine tasks", (), "o"), ("without WNLI", ("WNLI",), "D"))
    for label, without, marker in series:
        base = peak(glue, "LoRA", without)[0]
        values = [peak(glue, name, without)[0] - base for name in names]
        ax.plot(values, range(len(names)), marker, label=label)
    ax.axvline(0, color="#5a5a5a", linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="best average over learning rates, less that of LoRA")
    ax.legend(loc="upper left")
    return fig
