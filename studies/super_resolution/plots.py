"""Figures and tables of spectral super-resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "rate", "tables"]

Row = Mapping[str, Any]

MET = 0.05  # an error of the frequencies that counts as a success, in units of 1 / length
# The reference is drawn first and large, so that what meets it can be seen.
LINES = {
    "ESPRIT, all samples": style.Line("#b0b5bd", "-", "D"),
    "zero-filled FFT": style.Line("#d55e00", "-", "s"),
    "Hankel completion": style.Line("#0072b2", "-", "o"),
}
SIZES = {"ESPRIT, all samples": 11, "zero-filled FFT": 5, "Hankel completion": 5}


def _errors(rows: Sequence[Row], method: str, **where: Any) -> list[float]:
    return [
        row["error"] for row in rows if row["method"] == method and all(row[k] == value for k, value in where.items())
    ]


def rate(rows: Sequence[Row], method: str, **where: Any) -> float:
    """Share of the seeds whose frequencies are all found."""
    return float(np.mean([error <= MET for error in _errors(rows, method, **where)]))


def _part(rows: Sequence[Row], part: str, key: str) -> tuple[list[Row], list[Any]]:
    chosen = [row for row in rows if row["part"] == part]
    return chosen, sorted({row[key] for row in chosen})


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Success rates for every part, and errors under noise."""
    (samples, shares), (close, gaps), (noisy, levels) = (
        _part(rows, *names) for names in (("samples", "share"), ("separation", "separation"), ("noise", "noise"))
    )
    counts = sorted({row["tones"] for row in samples})
    return {
        "Signals whose frequencies are all found, by share of samples": [
            {
                "tones": k,
                "method": m,
                **{f"{100 * s:g} %": round(rate(samples, m, share=s, tones=k), 2) for s in shares},
            }
            for k in counts
            for m in LINES
        ],
        "The same by separation of the pairs, in units of 1 / length": [
            {"method": m, **{f"{gap:g}": round(rate(close, m, separation=gap), 2) for gap in gaps}} for m in LINES
        ],
        "Largest error of a frequency in units of 1 / length, medians, by noise": [
            {"method": m, **{f"{x:g}": float(f"{median(_errors(noisy, m, noise=x)):.2g}") for x in levels}}
            for m in LINES
        ],
    }


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Three curves, and the spectrum of one signal where it is there."""
    fig, (left, middle, right) = style.figure("Tones from some samples of a signal", 1, 3, width=4.2, height=3.6)
    samples, shares = _part(rows, "samples", "share")
    counts = sorted({row["tones"] for row in samples})
    for method, entry in LINES.items():
        for k, dash in zip(counts, ("-", "--", ":"), strict=False):
            look = {**entry.kwargs, "linestyle": dash, "markersize": SIZES[method]}
            values = [100 * rate(samples, method, share=s, tones=k) for s in shares]
            left.plot([100 * s for s in shares], values, **look)
    for k, dash in zip(counts, ("-", "--", ":"), strict=False):
        left.plot([], [], color="#5a5a5a", linestyle=dash, label=f"{k} tones")
    close, gaps = _part(rows, "separation", "separation")
    noisy, levels = _part(rows, "noise", "noise")
    for method, entry in LINES.items():
        solid = {**entry.kwargs, "markersize": SIZES[method]}
        middle.plot(gaps, [100 * rate(close, method, separation=gap) for gap in gaps], **solid)
        style.band(right, levels, np.transpose([_errors(noisy, method, noise=x) for x in levels]), method, entry)
        right.lines[-1].set_markersize(SIZES[method])
    left.set(xlabel="samples given (%)", ylabel="signals resolved (%)", ylim=(-4, 104))
    left.legend(loc="center right")
    middle.set(xlabel="distance in a pair (1 / length)", ylabel="signals resolved (%)", ylim=(-4, 104), xscale="log")
    middle.set_xticks(gaps, [f"{gap:g}" for gap in gaps])
    middle.minorticks_off()
    right.set(xlabel="relative noise", ylabel="largest frequency error (1 / length)", xscale="log", yscale="log")
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    found = {"resolution": fig}
    if any("spectrum" in row for row in rows):
        found["spectrum"] = _spectrum({row["method"]: row for row in rows if "spectrum" in row})
    return found


def _spectrum(shown: Mapping[str, Row]) -> Figure:
    row = shown["Hankel completion"]
    length = row["length"]
    fig, axes = style.figure(
        f"{row['tones']} tones in pairs {row['separation']:g} / {length} apart, {100 * row['share']:g} % given",
        1, 2, width=5.6, height=3.2, gridspec_kw={"width_ratios": (1.6, 1)},
    )  # fmt: skip
    grid = np.arange(len(row["spectrum"])) / len(row["spectrum"])
    for ax in axes:
        ax.plot(grid, row["spectrum"], color="#8a8f98", linewidth=1.2, label="spectrum of the samples, zero-filled")
        ax.vlines(row["truth"], 0, row["weights"], color="#009e73", linewidth=3, alpha=0.45, label="true tones")
        for method in ("zero-filled FFT", "Hankel completion"):
            entry, height = LINES[method], 0.06 if method.startswith("zero") else 0.0
            found = shown[method]["found"]
            ax.plot(
                found, [height] * len(found), color=entry.color, marker=entry.marker, linestyle="none", label=method
            )
        ax.set(xlabel="frequency (cycles per sample)")
    axes[0].set(ylabel="amplitude", xlim=(0, 1))
    centre = float(np.mean(row["truth"][:2]))
    axes[1].set(xlim=(centre - 2.5 / length, centre + 2.5 / length), title="the first pair")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
