"""Figures and tables of held-out antibody measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from studies import style

__all__ = ["figures", "tables"]

Row = Mapping[str, Any]

LINES = {
    "CP": style.Line("#0072b2", "-", "o"),
    "samples x rest": style.Line("#d55e00", "-", "s"),
    "antigens x rest": style.Line("#cc79a7", "-", "^"),
    "receptors x rest": style.Line("#009e73", "-", "D"),
    "soft-impute": style.Line("#222222", ":", "x"),
    "two-way means": style.Line("#e69f00", "--", "v"),
    "means": style.Line("#8a8f98", "--", "P"),
}
TITLES = {"entries": "single entries", "fibers": "all receptors of a sample and an antigen"}


def _of(rows: Sequence[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Held-out errors of all methods, and errors on the whole tensor against the number of parameters."""
    found = {}
    if _of(rows, "prediction"):
        found["prediction"] = _prediction(_of(rows, "prediction"))
    if _of(rows, "compression"):
        found["compression"] = _compression(_of(rows, "compression"))
    return found


def _prediction(rows: Sequence[Row]) -> Figure:
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    fig, axes = style.figure(
        "Held-out error, one point a split", 1, len(patterns), width=5.2, height=4.0, squeeze=False, sharey=True
    )
    shares = sorted({row["observed"] for row in rows})
    for ax, pattern in zip(axes[0], patterns, strict=True):
        for index, (method, line) in enumerate(LINES.items()):
            place = (index - (len(LINES) - 1) / 2) / (len(LINES) + 2)
            here = [row for row in rows if row["method"] == method and row["pattern"] == pattern]
            x = [shares.index(row["observed"]) + place for row in here]
            dots = {**line.kwargs, "linestyle": "none", "alpha": 0.8}
            ax.plot(x, [row["error"] for row in here], label=method, **dots)
        ax.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
        ax.set(xlabel="share observed", title=f"hidden: {TITLES[pattern]}")
    axes[0][0].set_ylabel("relative error on hidden entries")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig


def _compression(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure("The whole tensor at equal numbers of parameters", width=5.4, height=3.6)
    for key, label, method in (("cp", "CP", "CP"), ("pca", "PCA, samples x rest", "samples x rest")):
        x, y = [row[f"{key}_numbers"] for row in rows], [row[key] for row in rows]
        ax.plot(x, y, label=label, **LINES[method].kwargs)
    ax.set(xlabel="numbers of parameters (ranks 1 to 8)", ylabel="relative error")
    ax.legend()
    return fig


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Medians of held-out errors, and errors on the whole tensor."""
    prediction = _of(rows, "prediction")
    cases = sorted({(row["pattern"], row["observed"]) for row in prediction})
    held_out = []
    for method in LINES:
        line: dict[str, Any] = {"method": method}
        for pattern, share in cases:
            here = [
                row
                for row in prediction
                if (row["method"], row["pattern"], row["observed"]) == (method, pattern, share)
            ]
            if here:
                line[f"{pattern}, {100 * share:g} %"] = round(median(row["error"] for row in here), 4)
                line[f"rank at {pattern}, {100 * share:g} %"] = median(row["chosen_rank"] for row in here)
        held_out.append(line)
    keys = ("rank", "cp_numbers", "cp", "pca_numbers", "pca")
    whole = [{key: round(row[key], 4) for key in keys} for row in _of(rows, "compression")]
    return {"Held-out relative error, medians over the splits": held_out, "The whole tensor": whole}
