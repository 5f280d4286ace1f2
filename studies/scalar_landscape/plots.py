"""The figures of the scalar testbed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.scalar_landscape.analysis import SOLVERS, loss, pick, product

__all__ = ["figures"]

Rows = list[dict[str, Any]]


def figures(rows: Rows) -> dict[str, Figure]:
    return {
        "paths": _figure_paths(rows),
        "one_step": _figure_one_step(rows),
        "curvature": _figure_curvature(rows),
        "steps": _figure_steps(rows),
    }


def _figure_paths(rows: Rows) -> Figure:
    """Fig. 9 of the source: iterates on the contours, and the orbits that they share."""
    heading = "Iterates from five gauge-equivalent starts (xy = 4)"
    fig, axes = style.figure(heading, 1, 3, width=3.6, height=3.9, sharey=True)
    x, y = np.meshgrid(np.linspace(0.02, 4.6, 240), np.linspace(0.02, 4.6, 240))
    u = np.linspace(0.1, 4.6, 300)
    for ax, solver in zip(axes, SOLVERS):
        entries = pick(rows, "path", solver=solver)
        ax.contourf(x, y, np.log10(0.5 * (x * y - 1) ** 2 + 1e-3), levels=14, cmap="Greys_r", alpha=0.35)
        ax.plot(u, 1 / u, color="black", linewidth=1.4, label="xy = 1 (minima)")
        shared = product(entries[0])[:4]
        for index, value in enumerate(shared):
            label = "orbits of the iterates from (2, 2)" if index == 0 else None
            ax.plot(u, value / u, color="#8a8f98", linewidth=0.9, linestyle="--", label=label)
        for index, row in enumerate(entries):
            label = "iterates" if index == 0 else None
            ax.plot(
                row["x"],
                row["y"],
                color=style.colour(solver),
                marker="o",
                linewidth=1.2,
                markersize=3.5,
                label=label,
            )
        ax.set(
            title=f"{solver}, step {entries[0]['step']:g}",
            xlabel="x",
            xlim=(0, 4.6),
            ylim=(0, 4.6),
            aspect="equal",
        )
        ax.grid(False)
    axes[0].set_ylabel("y")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _figure_one_step(rows: Rows) -> Figure:
    fig, ax = style.figure("Loss after one step from xy = 4", width=6.4, height=4.0)
    chosen = [
        ("GD from (2, 2)", "GD", [2.0, 2.0], "--", 3.2),
        ("GD from (1, 4)", "GD", [1.0, 4.0], ":", 1.8),
        ("ScaledGD, any start", "ScaledGD", [1.0, 4.0], "-", 1.8),
        ("RefLoRA, any start", "RefLoRA", [1.0, 4.0], "-", 1.8),
    ]
    for label, solver, start, dash, width in chosen:
        row = pick(rows, "one_step", solver=solver, start=start)[0]
        ax.plot(row["step"], loss(row), label=label, color=style.colour(solver), linestyle=dash, linewidth=width)
    for index, (value, solver) in enumerate(((2.25, "ScaledGD"), (0.0, "RefLoRA"))):
        label = "printed in the source for η = 1/3" if index == 0 else None
        mark = {"markersize": 10, "markeredgewidth": 2.5, "clip_on": False, "zorder": 5}
        ax.plot(1 / 3, value, "x", color=style.colour(solver), label=label, **mark)
    for value, text in ((1 / 6, "1/6"), (1 / 3, "1/3"), (2 / 3, "2/3")):
        ax.axvline(value, color="#8a8f98", linewidth=0.8)
        ax.annotate(text, (value, 4.6), xytext=(3, 0), textcoords="offset points", fontsize=9)
    ax.set(xlabel="step size η", ylabel="loss f after the step", xlim=(0, 5 / 6), ylim=(0, 5))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _figure_curvature(rows: Rows) -> Figure:
    fig, (left, right) = style.figure("Curvature and descent along gauge orbits", 1, 2, width=4.9, height=3.8)
    for row, color in zip(pick(rows, "orbit"), style.PALETTE):
        ratio = np.array(row["larger"]) / np.array(row["smaller"])
        left.loglog(ratio, row["top"], color=color, label=f"xy = {row['product']:g}")
    left.set(title="Largest Hessian eigenvalue", xlabel="imbalance x / y", ylabel="λ max")
    left.legend()
    for row, color in zip(pick(rows, "orbit_step"), style.PALETTE[3:]):
        right.semilogx(row["imbalance"], row["loss"], color=color, label=f"η = {row['step']:g}")
    right.axhline(4.5, color="#8a8f98", linestyle="--", linewidth=1.2, label="before the step")
    right.axvline(1, color="#8a8f98", linewidth=0.9)
    right.annotate("balanced", (1, 4.9), xytext=(4, 0), textcoords="offset points", fontsize=9)
    right.set(title="Loss after one GD step from xy = 4", xlabel="imbalance x / y", ylabel="loss f", ylim=(0, 6))
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _figure_steps(rows: Rows) -> Figure:
    fig, (left, right) = style.figure("Why steps must be tuned", 1, 2, width=4.9, height=3.8)
    for solver in SOLVERS:
        entries = pick(rows, "tuning", solver=solver)
        steps = [row["step"] for row in entries]
        counts = np.array([row["report"] for row in entries], dtype=float)
        solved = np.isfinite(counts).all(axis=1)
        keep = np.flatnonzero(solved)
        style.band(left, np.array(steps)[keep], counts[keep].T, solver)
    left.set(
        title="Random starts: median, min to max,\nfor steps that solve every start",
        xlabel="step size η",
        ylabel="iterations to |xy − 1| ≤ 1e−12",
        xscale="log",
        yscale="log",
    )
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for solver in ("ScaledGD", "RefLoRA"):
        entries = pick(rows, "scale", solver=solver)
        errors = [max(row["relative_error"], 1e-3) for row in entries]
        right.loglog([row["target"] for row in entries], errors, label=solver, **style.line(solver).kwargs)
    right.set(title="One step, η = 0.05, from xy = 4a", xlabel="target a", ylabel="relative error |xy / a − 1|")
    right.annotate("RefLoRA exact at a = 10", (10, 1e-3), xytext=(-125, 3), textcoords="offset points", fontsize=9)
    right.legend()
    return fig
