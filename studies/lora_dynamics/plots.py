"""Figures of the study of LoRA's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from studies import style
from studies.lora_dynamics.analysis import of

__all__ = ["figures"]

Row = Mapping[str, Any]
Rows = Sequence[Row]


def figures(rows: Rows) -> dict[str, Figure]:
    """Those for which there are rows."""
    makers = {
        "widths": (_widths, ("shared", "decoupled", "preconditioned")),
        "compression": (_compression, ("closed",)),
        "first-step": (_first_step, ("spectral_gap", "encoder")),
        "first-gradients": (_first_gradients, ("encoder",)),
        "minima": (_minima, ("minima",)),
        "samples": (_samples, ("regression",)),
    }
    return {name: make(rows) for name, (make, parts) in makers.items() if all(of(rows, part) for part in parts)}


def _widths(rows: Rows) -> Figure:
    fig, axes = style.figure("Increments of the output in wide layers, after four steps", 1, 3, 3.6, 3.3, sharey=True)
    runs = {
        r"one rate, $m^{-1/2}$": of(rows, "shared", exponents=[-0.5, -0.5]),
        r"LoRA+: $1/m$ and $1$": of(rows, "decoupled", input="of width"),
        r"preconditioned, $1/m$": of(rows, "preconditioned"),
    }
    names = {"delta1": r"$|\delta_1|$: what a does", "delta2": r"$|\delta_2|$: what b does", "output": "|output|"}
    for ax, (key, title) in zip(axes, names.items(), strict=True):
        for marker, (name, found) in zip("os^", runs.items(), strict=True):
            for row in found:
                values = np.array(row["medians"][key])[:, -1]
                ax.loglog(row["widths"], values, marker=marker, label=name)
        ax.set(title=title, xlabel="width m")
    axes[0].legend(loc="lower left")
    return fig


def _compression(rows: Rows) -> Figure:
    fig, ax = style.figure("LoRA compresses gradients while $\\eta s L$ is small", width=5.6, height=3.6)
    found = of(rows, "closed")
    x = [r["rate_times_limit"] for r in found]
    ax.loglog(x, [r["compression_gap"] for r in found], "o", label="distance to compressed gradients")
    ax.loglog(x, [r["second_term"] for r in found], "s", label="second term of the closed form")
    grid = np.geomspace(min(x), 1, 20)
    ax.loglog(grid, grid**2, "--", color="#5a5a5a", label=r"$(\eta s L)^2$")
    ax.axhline(0.01, color="#8a8f98", linewidth=0.8)
    ax.set(xlabel=r"$\eta s L$", ylabel="relative to the update")
    ax.legend(loc="lower right")
    return fig


def _first_step(rows: Rows) -> Figure:
    fig, (left, right) = style.figure("Where LoRA's first step puts B: among leading singular vectors?", 1, 2, 4.6, 3.4)
    gaps, layers = of(rows, "spectral_gap"), of(rows, "encoder")
    levels = sorted({r["level"] for r in gaps} - {0})
    angles = [[r["angle"] for r in gaps if r["level"] == k] for k in levels]
    left.plot(levels, [np.median(a) for a in angles], "o-")
    left.fill_between(levels, [min(a) for a in angles], [max(a) for a in angles], alpha=0.2, linewidth=0)
    left.set(xscale="log", ylim=(0, 92), xlabel="tail / leading singular values", ylabel="largest angle (degrees)")
    left.set_title("gradients with r equal leading values")
    blocks = [r["block"] for r in layers]
    right.plot(blocks, [r["angle"] for r in layers], "o", label="largest angle")
    right.plot(blocks, [r["least_angle"] for r in layers], "v", label="least angle")
    right.set(ylim=(0, 92), xlabel="block", title="six layers of each block of MiniLM")
    right.legend(loc="center left")
    return fig


def _first_gradients(rows: Rows) -> Figure:
    fig, ax = style.figure("First gradient of B with EVA's A, relative to the best A", width=6.4, height=3.6)
    layers = of(rows, "encoder")
    kinds = list(dict.fromkeys(r["layer"].split(".", 1)[1] for r in layers))
    shown = {
        "independent_share": "Gaussian gradients",
        "token_share": "gradients of the tokens",
        "batch_share": "gradient of the batch",
        "batch_random": "random A, batch",
    }
    for k, (key, label) in enumerate(shown.items()):
        for j, kind in enumerate(kinds):
            values = [r[key] for r in layers if r["layer"].split(".", 1)[1] == kind]
            place = np.full(len(values), j + 0.16 * (k - 1.5))
            ax.plot(values, place, "osD^"[k], color=style.PALETTE[k], label=label if j == 0 else None, alpha=0.8)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.03), xlabel="share of the largest squared norm")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _minima(rows: Rows) -> Figure:
    fig, ax = style.figure("Ends of descent that are the best of all matrices", width=5.6, height=3.5)
    found = of(rows, "minima")
    for k, data in enumerate(sorted({r["data"] for r in found})):
        ranks = sorted({r["rank"] for r in found if r["data"] == data})
        means = [np.mean([r["certified"] for r in found if r["data"] == data and r["rank"] == n]) for n in ranks]
        ax.plot(ranks, means, "os^D"[k % 4] + "-", color=style.PALETTE[k], label=f"N = {data}")
        enough = next(n for n in range(1, 99) if n * (n + 1) / 2 > data)
        ax.axvline(enough + 0.04 * (k - 1), color=style.PALETTE[k], linestyle=":", linewidth=1.4)
    ax.set(xlabel="rank (dotted: from here on r (r + 1) / 2 > N)", ylabel="share of starts", ylim=(-0.04, 1.04))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _samples(rows: Rows) -> Figure:
    fig, axes = style.figure(r"Errors follow the root of $r (d + k) / n$", 1, 2, 3.9, 3.3, sharey=True)
    groups: dict[tuple[int, int], list[float]] = {}
    for r in of(rows, "regression"):
        groups.setdefault((r["samples"], r["parameters"]), []).append(r["distance"])
    n, size = np.array(list(groups), dtype=float).T
    distance = np.array([np.sqrt(np.mean(np.square(values))) for values in groups.values()])
    rates = {r"$\sqrt{r (d + k) / n}$": np.sqrt(size / n), r"$r (d + k) / \sqrt{n}$, as printed": size / np.sqrt(n)}
    for ax, (name, x) in zip(axes, rates.items(), strict=True):
        for k, count in enumerate(sorted(set(n))):
            here = n == count
            ax.loglog(x[here], distance[here], "os^D"[k % 4], color=style.PALETTE[k], label=f"n = {count:g}")
        ends = np.array([x.min(), x.max()])
        ax.loglog(ends, ends * np.median(distance / x), "--", color="#5a5a5a", label="proportional")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel=name)
    axes[0].set(ylabel=r"$\|\hat W - W\|_F$")
    axes[0].legend(loc="upper left")
    return fig
