"""The figures of the gauge study."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies import style
from studies.gauge_solvers.analysis import DIRECTIONS, METRICS, SOLVERS, conditions, counts, pick

__all__ = ["figures"]

Rows = list[dict[str, Any]]


def figures(rows: Rows) -> dict[str, Figure]:
    return {
        "convergence": _figure_convergence(rows),
        "condition": _figure_condition(rows),
        "equivariance": _figure_equivariance(rows),
        "horizontal": _figure_horizontal(rows),
        "balance": _figure_balance(rows),
    }


def _figure_convergence(rows: Rows) -> Figure:
    """Fig. 10 of the source: one thin line per seed."""
    kappas = conditions(rows, "balanced")
    fig, axes = style.figure("Convergence at tuned steps, one line per seed", 1, len(kappas), 3.3, 3.6, sharey=True)
    for ax, kappa in zip(axes, kappas):
        for name in SOLVERS:
            entries = pick(rows, "balanced", solver=name, condition_number=kappa)
            entry = style.line(name)
            for index, row in enumerate(entries):
                label = name if index == 0 else None
                width, dash = (3.2, "-") if name == "GD" else (1.2, entry.linestyle)
                x = np.array(row["iteration"]) + 1
                ax.loglog(x, row["error"], color=entry.color, linestyle=dash, linewidth=width, label=label)
        ax.set(title=f"κ = {kappa}", xlabel="iteration + 1", ylim=(1e-8, 1e2))
    axes[0].set_ylabel("relative error")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig


def _figure_condition(rows: Rows) -> Figure:
    fig, axes = style.figure(
        "Iterations at tuned steps (no marker: above 30 000)", 1, 2, width=4.6, height=4.0, sharey=True
    )
    for ax, part in zip(axes, ("balanced", "skewed")):
        for name in SOLVERS:
            style.band(ax, conditions(rows, part), counts(rows, part, name).T, name)
        ax.set(xscale="log", yscale="log", xlabel="condition number κ")
        _ticks(ax, conditions(rows, part))
    axes[0].set(title="balanced starts", ylabel="iterations to relative error 1e−8")
    axes[1].set_title("skewed starts, cond(Q) = 10")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig


def _ticks(ax: Axes, values: list[float]) -> None:
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.set_xticks([], minor=True)


def _figure_equivariance(rows: Rows) -> Figure:
    fig, ax = style.figure("Do gauge-equivalent starts give the same matrix?", width=7.6, height=4.4)
    top = 1e4
    for name, entry in _rule_lines(dict.fromkeys(r["rule"] for r in pick(rows, "equivariance"))).items():
        entries = pick(rows, "equivariance", rule=name)
        x = sorted({r["gauge_condition"] for r in entries})
        values = np.array([[r["gap"] for r in entries if r["gauge_condition"] == c] for c in x])
        style.band(ax, x, np.clip(values, 1e-17, top).T, name, entry)
    ax.axhline(top, color="#8a8f98", linewidth=0.9)
    ax.annotate("diverged", (1.2, top), xytext=(0, -12), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="cond(Q)", ylim=(1e-17, 3e4))
    ax.set_ylabel("relative difference of the products\nafter 20 steps")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _rule_lines(names: Iterable[str]) -> dict[str, style.Line]:
    """A base rule keeps its colour; momentum is dashed, Adam dotted."""
    found = {}
    for name in names:
        base = style.line(name.split(" + ")[0])
        dash = "--" if "momentum" in name else ":" if "Adam" in name else "-"
        marker = "v" if "momentum" in name else "x" if "Adam" in name else base.marker
        found[name] = style.Line(base.color if name != "RefLoRAScalar" else "#e0a080", dash, marker)
    return found


def _figure_horizontal(rows: Rows) -> Figure:
    fig, ax = style.figure("Vertical share of each direction, by metric", width=5.6, height=3.9)
    entries = [r["vertical"] for r in pick(rows, "horizontal")]
    values = np.array([[np.median([e[d][m] for e in entries]) for m in METRICS] for d in DIRECTIONS])
    image = ax.imshow(np.log10(values + 1e-17), cmap="Blues", vmin=-17, vmax=0, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.0e}", ha="center", va="center", color="white" if value > 1e-7 else "black")
    ax.set(xticks=range(len(METRICS)), yticks=range(len(DIRECTIONS)), xlabel="metric", ylabel="direction")
    ax.set_xticklabels(METRICS)
    ax.set_yticklabels(DIRECTIONS)
    ax.grid(False)
    fig.colorbar(image, label="log₁₀ of the median over seeds")
    return fig


def _figure_balance(rows: Rows) -> Figure:
    fig, (left, right) = style.figure("Balance of the factors", 1, 2, width=4.8, height=3.7)
    entries = pick(rows, "conserved")
    steps = sorted({r["step"] for r in entries})
    values = np.array([[r["change"] for r in entries if r["step"] == s] for s in steps])
    style.band(left, steps, values.T, "GD")
    guide = np.median(values[0]) * np.array(steps) / steps[0]
    left.plot(steps, guide, color="#8a8f98", linestyle=":", label="slope 1")
    left.set(title="GD over a fixed time", xlabel="step size η", xscale="log", yscale="log")
    left.set_ylabel("relative change of XᵀX − YᵀY")
    _ticks(left, steps)
    left.legend()
    for name, entry in (("GD", style.line("GD")), ("SAM", style.Line(style.PALETTE[3], "-", "s"))):
        curves = np.array([r["imbalance"] for r in pick(rows, "sharpness", optimizer=name)])
        style.band(right, 50 * np.arange(curves.shape[1]), curves, name, entry)
    right.set(title="Rank one, from ‖X‖ = 4 ‖Y‖", xlabel="iteration", ylim=(0, 1.2))
    right.set_ylabel("|‖X‖² − ‖Y‖²|, relative to the start")
    right.legend()
    return fig
