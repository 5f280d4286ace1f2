"""The figures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.nystrom_init import analysis

__all__ = ["figures"]

_BLUE, _GREY = style.colour("ScaledGD"), style.colour("GD")
_LINES = {
    ("GD", "gaussian 0.1"): style.Line(_GREY, "--", "s"),
    ("GD", "gaussian 0.001"): style.Line(_GREY, ":", "D"),
    ("GD", "nystrom"): style.Line(_GREY, "-", "o"),
    ("AltGD", "nystrom"): style.Line("#009e73", "-", "o"),
    ("AltGD", "half-nystrom 0.001"): style.Line("#009e73", ":", "D"),
    ("AltGD", "half-nystrom 0.1"): style.Line("#009e73", "--", "s"),
    ("ScaledGD", "gaussian 0.1"): style.Line(_BLUE, "--", "s"),
    ("ScaledGD", "nystrom"): style.Line(_BLUE, "-", "o"),
}
_STARTS = {
    "gaussian 0.1": "Gaussian, σ=0.1",
    "gaussian 0.001": "Gaussian, σ=0.001",
    "nystrom": "Nyström",
    "half-nystrom 0.001": "half-Nyström, σ=0.001",
    "half-nystrom 0.1": "half-Nyström, σ=0.1",
}


def figures(rows: analysis.Rows, levels: Sequence[float]) -> dict[str, Figure]:
    return {
        "fig8": _curves(rows),
        "kappa": _kappa(rows),
        "accuracy": _accuracy(rows, levels),
        "recursion": _recursion(analysis.pick(rows, part="recursion")),
        "success": _success(analysis.pick(rows, part="success")),
    }


def _label(solver: str, start: str) -> str:
    return f"{solver}, {_STARTS[start]}"


def _curves(rows: analysis.Rows) -> Figure:
    fig, axes = style.figure("Loss from Gaussian and Nyström starts, best step each", width=6.4, height=4.4)
    for (solver, start), line in _LINES.items():
        chosen = analysis.best(analysis.pick(rows, part="curves", solver=solver, start=start))
        if chosen:
            at = analysis.sampled_iterations(chosen[0]["cap"])
            end = int(max(row["counts"][-1] for row in chosen))
            shown = at <= at[np.searchsorted(at, end)]
            label = f"{_label(solver, start)} (η={chosen[0]['step']})"
            style.band(axes, at[shown], np.array([row["loss"] for row in chosen])[:, shown], label, line)
    axes.set(xscale="symlog", yscale="log", xlabel="iteration", ylabel="loss / first loss", ylim=(1e-25, 10))
    axes.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
    axes.set_xlim(0, None)
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def _kappa(rows: analysis.Rows) -> Figure:
    heading = "Iterations to relative error 1e-8 against the condition number"
    fig, axes = style.figure(heading, width=6.8, height=5.6)
    cap = max(row["cap"] for row in rows if row["part"] in ("gd", "altgd"))
    height = 1.4 * cap
    for (solver, start), line in _LINES.items():
        found = analysis.counts(rows, solver, start)
        kept = {k: c for k, c in found.items() if np.isfinite(c).all()}
        missed = sorted(set(found) - set(kept))
        if len(kept) > 1:
            exponent = abs(round(float(np.median(analysis.slopes(found))), 1))
            label = f"{_label(solver, start)}: κ^{exponent:.1f}"
            style.band(axes, list(kept), np.array(list(kept.values())).T, label, line)
        if missed:
            axes.plot(missed, [height] * len(missed), "x", color=line.color, markersize=7, markeredgewidth=1.8)
            height *= 1.7
    axes.axhline(cap, color="#8a8f98", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="condition number κ", ylabel="iterations, best step")
    fig.legend(loc="outside lower center", ncols=2, title=f"fitted exponent (×: not every seed within {cap})")
    return fig


def _accuracy(rows: analysis.Rows, levels: Sequence[float]) -> Figure:
    fig, panels = style.figure("Iterations against the accuracy, κ = 10", columns=3, width=4.2, height=3.8)
    digits = -np.log10(levels)
    for axes, solver in zip(panels, ("GD", "ScaledGD")):
        for (name, start), line in _LINES.items():
            chosen = analysis.best(analysis.pick(rows, part="curves", solver=name, start=start), level=11)
            if name == solver and chosen:
                style.band(axes, digits, [row["counts"] for row in chosen], _STARTS[start], line)
        axes.set(xlabel="log₁₀(1/ε), ε relative error", title=f"{solver}, best step", ylim=(0, None))
        axes.legend(loc="upper left")
    panels[0].set_ylabel("iterations")
    for step, dash in {0.3: ":", 0.4: "--", 0.5: "-"}.items():
        chosen = analysis.pick(rows, part="scaled", start="nystrom", kappa=10, step=step)
        if chosen:
            line = style.Line(_BLUE, dash, "o")
            style.band(panels[2], np.log2(digits), [row["counts"] for row in chosen], f"η = {step}", line)
    panels[2].set(xlabel="log₂ log₁₀(1/ε)", title="ScaledGD, Nyström", ylim=(0, None))
    panels[2].legend(loc="upper left")
    return fig


def _recursion(rows: analysis.Rows) -> Figure:
    kappas = analysis.values(rows, "kappa")
    fig, panels = style.figure(
        "ScaledGD from a Nyström start: recursion (lines) and measured errors (markers, all seeds)",
        columns=len(kappas),
        width=3.7,
        height=3.8,
        sharey=True,
    )
    steps = analysis.values(rows, "step")
    for axes, kappa in zip(np.atleast_1d(panels), kappas):
        for color, step in zip(style.PALETTE, steps):
            line = np.maximum(analysis.predicted_errors(step, 40), 1e-17)
            axes.plot(np.arange(41), line, color=color, label=f"η = {step:g}")
            for row in analysis.pick(rows, kappa=kappa, step=step):
                axes.plot(np.maximum(row["errors"], 1e-17), ".", color=color, markersize=4, alpha=0.6)
        axes.set(yscale="log", xlabel="iteration", title=f"κ = {kappa:g}", ylim=(1e-17, 3), xlim=(0, 40))
    np.atleast_1d(panels)[0].set_ylabel("relative error")
    np.atleast_1d(panels)[-1].legend(loc="upper right")
    return fig


def _success(rows: analysis.Rows) -> Figure:
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    names = {"ScaledGD damped": "ScaledGD, damping 0.1"}
    scales, steps = analysis.values(rows, "scale"), analysis.values(rows, "step")
    fig, panels = style.figure(
        f"Share of Gaussian starts at relative error 1e-8 within {rows[0]['cap']} iterations (κ = 10)",
        columns=len(solvers),
        width=3.4,
        height=3.8,
        sharey=True,
    )
    image: Any = None
    for axes, solver in zip(panels, solvers):
        mine = {(row["scale"], row["step"]): row["rate"] for row in analysis.pick(rows, solver=solver)}
        grid = np.array([[mine.get((scale, step), np.nan) for step in steps] for scale in scales])
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlBu", origin="lower", aspect="auto")
        for i, j in np.ndindex(*grid.shape):
            dark = abs(grid[i, j] - 0.5) > 0.35
            axes.text(j, i, f"{grid[i, j]:.1f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
        axes.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
        axes.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.set(xlabel="step η", title=names.get(solver, solver))
        axes.grid(False)
    panels[0].set_ylabel("scale σ of the Gaussian start")
    fig.colorbar(image, ax=list(panels), label="share of runs", fraction=0.03)
    return fig
