"""Figures of the study of block forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.localized import images
from studies.localized.analysis import NAMES, drops

__all__ = ["figures"]

Row = Mapping[str, Any]
LABELS = {"lora": "LoRA", "melora": "MELoRA", "localized": "Localized LoRA"}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Reconstructions of one digit, errors on images, accuracy drops by budget."""
    found = {}
    seen = [row for row in rows if row["part"] == "images" and row["found"]]
    if seen:
        found["reconstructions"] = _reconstructions("mnist" if seen[0]["source"] == "mnist" else "digits")
        found["images"] = _images([row for row in seen if row["source"] != "mnist"])
    if any(drops(rows).values()):
        found["transfer"] = _transfer(rows)
    return found


def _reconstructions(source: str) -> Figure:
    picture = images.load(source)[0 if source == "mnist" else 2]
    fig, axes = style.figure("A digit 2 in 28 x 28 and its nearest matrices with 224 numbers", 1, 4, 2.3, 2.8)
    found = images.errors(picture)
    shown = {name: images.nearest(picture, *pair) for name, pair in images.forms(28).items()}
    titles = {name: f"{LABELS[name]}: {found[name]:.3f}" for name in NAMES}
    for ax, name in zip(axes, ("original", *NAMES), strict=True):
        ax.imshow(shown.get(name, picture), cmap="gray", vmin=0, vmax=1)
        ax.set_title(titles.get(name, name), fontsize=10)
        ax.axis("off")
    return fig


def _images(rows: Sequence[Row]) -> Figure:
    fig, axes = style.figure(
        "Localized LoRA against LoRA at equal numbers of parameters",
        1,
        len(rows),
        3.3,
        3.4,
    )
    for ax, row in zip(np.atleast_1d(axes), rows, strict=True):
        top = 1.05 * max(*row["lora"], *row["localized"])
        ax.plot([0, top], [0, top], color="#8a8f98", linewidth=1)
        ax.scatter(row["lora"], row["localized"], s=14, alpha=0.7)
        share = np.mean(np.array(row["localized"]) < np.array(row["lora"]))
        ax.set_title(f"{row['source']}: nearer on {share:.0%}", fontsize=10)
        ax.set(
            xlabel="relative error, LoRA",
            ylabel="Localized LoRA",
            xlim=(0, top),
            ylim=(0, top),
        )
    return fig


def _transfer(rows: Sequence[Row]) -> Figure:
    fig, ax = style.figure(
        "Digits 0-4 to digits 5-9: accuracy below full fine-tuning",
        width=6.4,
        height=3.8,
    )
    entries = style.lines(LABELS[name] for name in NAMES)
    for number, (name, budgets) in enumerate(drops(rows).items()):
        if not budgets:
            continue
        x = np.array(list(budgets)) * 1.05 ** (number - 1)
        middle = np.array([np.mean(v) for v in budgets.values()])
        ends = np.array([[m - min(v), max(v) - m] for m, v in zip(middle, budgets.values(), strict=True)]).T
        ax.errorbar(
            x,
            middle,
            yerr=ends,
            capsize=2,
            label=LABELS[name],
            **entries[LABELS[name]].kwargs,
        )
    ax.axhline(0, color="#8a8f98", linewidth=1)
    ax.set(
        xscale="log",
        xlabel="trainable parameters (full: 4485)",
        ylabel="accuracy drop, percentage points",
    )
    ax.set_xticks([256, 512, 1024, 2048, 4096], ["256", "512", "1024", "2048", "4096"])
    ax.minorticks_off()
    ax.legend()
    return fig
