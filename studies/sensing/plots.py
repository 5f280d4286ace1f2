"""Figures of the sensing study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.sensing.analysis import Row, axis, best_counts, pick, rate

__all__ = ["figures"]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """One figure for every question."""
    return {
        "population": _population(rows),
        "transition": _transition(rows),
        "noise": _noise(rows),
        "condition": _condition(rows),
        "landscape": _landscape(rows),
        "overparametrized": _overparametrized(rows),
    }


def _seeds_by(rows: Sequence[Row], over: str, key: str) -> tuple[list[Any], np.ndarray]:
    """The values of an axis, and an array (seeds, values)."""
    values = sorted(axis(rows, over))
    table = [[r[key] for r in sorted(rows, key=lambda r: r["seed"]) if r[over] == v] for v in values]
    return values, np.array(table).T


def _population(rows: Sequence[Row]) -> Figure:
    chosen = pick(rows, "population")
    fig, ax = style.figure("Sensing tends to factorization (median and range over seeds)", width=6.0, height=3.8)
    for name, key, entry in (
        ("gradient", "gradient_gap", style.Line(style.PALETTE[0])),
        ("loss", "loss_gap", style.Line(style.PALETTE[1], "--", "s")),
    ):
        x, values = _seeds_by(chosen, "measurements", key)
        style.band(ax, x, values, name, entry)
    guide = np.array([min(axis(chosen, "measurements")), max(axis(chosen, "measurements"))], float)
    ax.plot(guide, 4 * guide**-0.5, color="#8a8f98", linestyle=":", label="slope -1/2")
    ax.set(xscale="log", yscale="log", xlabel="measurements N", ylabel="relative gap to the factorization")
    ax.legend()
    return fig


def _transition(rows: Sequence[Row]) -> Figure:
    chosen, ensembles = pick(rows, "transition"), pick(rows, "ensembles")
    ranks = axis(chosen, "rank")
    fig, axes = style.figure(
        "Share of instances recovered", 1, len(ranks) + 1, width=4.2, height=3.4, sharey=True, squeeze=False
    )
    for ax, rank in zip(axes[0], ranks, strict=False):
        for solver in axis(chosen, "solver"):
            _draw_rates(ax, pick(rows, "transition", rank=rank, solver=solver), solver, style.line(solver))
        ax.set_title(f"rank {rank}, Gaussian")
    entries = style.lines(axis(ensembles, "ensemble"))
    for name, entry in entries.items():
        _draw_rates(axes[0][-1], pick(rows, "ensembles", ensemble=name), name, entry)
    axes[0][-1].set_title(f"rank {ensembles[0]['rank']}, ScaledCG")
    axes[0][0].set_ylabel("success rate")
    for ax in axes[0]:
        ax.set_xlabel("measurements / degrees of freedom")
        ax.legend(loc="lower right")
    return fig


def _draw_rates(ax: Any, rows: Sequence[Row], label: str, entry: style.Line) -> None:
    ratios = sorted(axis(rows, "ratio"))
    ax.plot(ratios, [rate([r for r in rows if r["ratio"] == x]) for x in ratios], label=label, **entry.kwargs)


def _noise(rows: Sequence[Row]) -> Figure:
    chosen = pick(rows, "noise")
    fig, ax = style.figure("The error that noise leaves (median and range over seeds)", width=5.6, height=3.8)
    levels, values = _seeds_by(chosen, "level", "error")
    style.band(ax, levels, values, "ScaledCG")
    predicted = [next(r["predicted"] for r in chosen if r["level"] == level) for level in levels]
    ax.plot(levels, predicted, color="#22262c", linestyle=":", label="least squares in the tangent space")
    ax.set(xscale="log", yscale="log", xlabel="relative noise", ylabel="relative error")
    ax.legend()
    return fig


def _condition(rows: Sequence[Row]) -> Figure:
    chosen = pick(rows, "condition")
    limit, target = chosen[0]["max_iter"], chosen[0]["target"]
    fig, ax = style.figure(f"Iterations to a relative error of {target:g}, best step", width=6.4, height=4.0)
    for solver in axis(chosen, "solver"):
        counts = best_counts(rows, solver)
        values = np.minimum(np.array([counts[k] for k in counts], float).T, 1.15 * limit)
        style.band(ax, list(counts), values, solver)
    ax.axhline(limit, color="#8a8f98", linestyle=":")
    ax.annotate("not reached", (1.0, 1.05 * limit), color="#4a5058", va="bottom", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="condition number", ylabel="iterations", ylim=(None, 2 * limit))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _landscape(rows: Sequence[Row]) -> Figure:
    starts, curved = pick(rows, "starts"), pick(rows, "saddle")
    fig, (left, right) = style.figure("The landscape", 1, 2, width=5.0, height=3.8)
    groups = [(problem, solver) for problem in axis(starts, "problem") for solver in axis(starts, "solver")]
    for place, (problem, solver) in enumerate(groups):
        excess = [max(r["excess"], 1e-18) for r in starts if (r["problem"], r["solver"]) == (problem, solver)]
        spread = place + np.linspace(-0.25, 0.25, len(excess))
        left.plot(spread, excess, linestyle="none", marker=".", color=style.colour(solver), alpha=0.7)
    left.axhline(1e-8, color="#8a8f98", linestyle=":")
    left.set_xticks(range(len(groups)), [solver for _, solver in groups], rotation=30, ha="right")
    problems = axis(starts, "problem")
    for index, problem in enumerate(problems):
        centre = (index + 0.5) / len(problems)
        left.annotate(problem, (centre, 0.9), xycoords="axes fraction", ha="center")
    left.set(yscale="log", ylim=(1e-19, 1), ylabel="excess loss / loss at zero")
    left.set_title("random starts of three scales")
    kinds = style.lines(axis(curved, "point"))
    for size, (name, entry) in zip((11, 6, 6, 6), kinds.items(), strict=True):
        points = [r for r in curved if r["point"] == name]
        right.plot(
            [r["predicted"] for r in points], [r["eigenvalue"] for r in points],
            linestyle="none", marker=entry.marker, color=entry.color, label=name, alpha=0.8, markersize=size,
        )  # fmt: skip
    ends = [min(r["predicted"] for r in curved), 0.0]
    right.plot(ends, ends, color="#8a8f98", linestyle=":")
    right.set(xlabel="predicted", ylabel="measured")
    right.set_title("smallest Hessian eigenvalue")
    right.legend()
    return fig


def _overparametrized(rows: Sequence[Row]) -> Figure:
    chosen = pick(rows, "overparametrized")
    pairs = axis(chosen, "steps")
    fig, axes = style.figure(
        "Share of instances recovered by PoLAR (thin lines: degrees of freedom of the rank that is fitted)",
        1, len(pairs), width=4.2, height=3.4, sharey=True, squeeze=False,
    )  # fmt: skip
    unknowns = chosen[0]["m"] + chosen[0]["n"]
    for ax, steps in zip(axes[0], pairs, strict=True):
        for index, factor in enumerate(axis(chosen, "factor")):
            entry = style.Line(style.PALETTE[index], ("-", "--", ":")[index], "os^"[index])
            _draw_rates(ax, pick(rows, "overparametrized", steps=steps, factor=factor), f"{factor} x rank", entry)
            rank = chosen[0]["rank"]
            own = factor * (unknowns - factor * rank) / (unknowns - rank)
            ax.axvline(own, color=entry.color, linestyle=entry.linestyle, linewidth=0.8, alpha=0.6)
        ax.set_title(f"steps {steps} (factors, core)")
        ax.set_xlabel("measurements / degrees of freedom")
    axes[0][0].set_ylabel("success rate")
    axes[0][-1].legend(loc="center right")
    return fig
