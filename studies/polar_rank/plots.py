"""The figures of the study."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies import style
from studies.polar_rank import analysis

__all__ = ["figures"]

_METHODS = {
    "plain": style.Line("#009e73", "-", "^"),
    "scaled metric": style.Line("#0072b2", "-", "o"),
    "auto": style.Line("#56b4e9", "--", "s"),
}


def figures(rows: analysis.Rows) -> dict[str, Figure]:
    parts = {part: analysis.pick(rows, part=part) for part in dict.fromkeys(row["part"] for row in rows)}
    return {
        "rank": _rank(parts["rank"]),
        "kappa": _kappa(parts["kappa"], parts["metric"]),
        "core": _core(parts["core"]),
        "landing": _landing(parts["retraction"], parts["landing"]),
    }


def _rank(rows: analysis.Rows) -> Figure:
    fig, axes = style.figure("Iterations to relative error 1e-8 against the rank, best step", width=6.6, height=4.2)
    true = rows[0]["true_rank"]
    for color, kappa in zip(style.PALETTE, analysis.values(rows, "kappa")):
        mine = analysis.pick(rows, kappa=kappa)
        ranks = analysis.values(mine, "r")
        data = np.array([analysis.counts(analysis.best(analysis.pick(mine, r=r))) for r in ranks]).T
        style.band(axes, ranks, np.minimum(data, mine[0]["cap"]), f"κ = {kappa:g}", style.Line(color))
        fine = np.geomspace(true + 1, ranks[-1], 100)
        constant = np.median(data[:, ranks.index(2 * true)]) / analysis.bound(2 * true, true)
        shape = constant * analysis.bound(fine, true)
        label = "shape of the bound, fitted at $2 r_A$" if color == style.PALETTE[0] else None
        axes.plot(fine, shape, color=color, linestyle=":", linewidth=1.2, label=label)
    ticks = analysis.values(rows, "r")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"rank r of the parameterization ($r_A$ = {true})",
        ylabel="iterations",
    )
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(10, 1e4)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="median, min to max")
    return fig


def _kappa(plain: analysis.Rows, metric: analysis.Rows) -> Figure:
    ranks = analysis.values(plain, "r")
    fig, panels = style.figure(
        "Iterations to relative error 1e-8 against the condition number",
        columns=len(ranks),
        width=4.6,
        height=3.8,
        sharey=True,
    )
    for axes, r in zip(np.atleast_1d(panels), ranks):
        mine = analysis.pick(plain, r=r)
        kappas = analysis.values(mine, "kappa")
        data = np.array([analysis.counts(analysis.best(analysis.pick(mine, kappa=k))) for k in kappas]).T
        exponent = np.median(analysis.exponents(mine))
        style.band(axes, kappas, data, f"published metric: κ^{exponent:.2f}", _METHODS["plain"])
        for name in ("scaled metric", "auto"):
            rows = analysis.pick(metric, r=r, method=name)
            if rows:
                kappas = analysis.values(rows, "kappa")
                data = np.array([analysis.counts(analysis.pick(rows, kappa=k)) for k in kappas]).T
                label = {"auto": "scaled metric, automatic step", "scaled metric": "scaled metric, step 1"}[name]
                style.band(axes, kappas, data, label, _METHODS[name])
        axes.set(xscale="log", yscale="log", xlabel="condition number κ", title=f"r = {r}")
        axes.legend(loc="upper left")
    np.atleast_1d(panels)[0].set_ylabel("iterations")
    np.atleast_1d(panels)[0].set_ylim(1, 1e5)
    return fig


def _stack(rows: analysis.Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored curves on one axis of iterations; a curve that ended keeps its last value."""
    length = max(len(row[key]) for row in rows)
    data = np.array([row[key] + [row[key][-1]] * (length - len(row[key])) for row in rows])
    return analysis.sampled_iterations(rows[0]["cap"])[:length], data


def _core(rows: analysis.Rows) -> Figure:
    kappas, ranks = analysis.values(rows, "kappa"), analysis.values(rows, "r")
    kappa = kappas[len(kappas) // 2]
    fig, panels = style.figure(
        f"Full and diagonal core from the same U₀, V₀ (κ = {kappa:g}, best step each)",
        columns=len(ranks),
        width=3.9,
        height=3.7,
        sharey=True,
        squeeze=False,
    )
    lines = {"full": style.Line("#009e73", "-", "^"), "diagonal": style.Line("#d55e00", "--", "s")}
    names = {"full": "full core (PoLAR)", "diagonal": "diagonal core (SVD form)"}
    for axes, r in zip(panels[0], ranks):
        for kind, line in lines.items():
            chosen = analysis.best(analysis.pick(rows, kappa=kappa, r=r, core=kind))
            at, data = _stack(chosen, "loss")
            style.band(axes, at, data, names[kind], line)
        axes.set(xscale="symlog", yscale="log", xlabel="iteration", title=f"r = {r}", xlim=(0, None))
        axes.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
    panels[0][0].set_ylabel("loss / first loss")
    panels[0][0].legend(loc="lower left")
    return fig


def _quartiles(axes: Axes, x: np.ndarray, data: np.ndarray, name: str, line: style.Line) -> None:
    """Median and a band between the quartiles: many methods share these axes."""
    low, middle, high = np.percentile(data, (25, 50, 75), axis=0)
    axes.plot(x, middle, label=name, markevery=max(1, len(x) // 12), **line.kwargs)
    axes.fill_between(x, low, high, color=line.color, alpha=0.12, linewidth=0)


def _landing(retraction: analysis.Rows, landing: analysis.Rows) -> Figure:
    kappas = analysis.values(landing, "kappa")
    fig, panels = style.figure(
        "Retraction and landing (r = 8, step 1): loss above, orthogonality defect below",
        rows=2,
        columns=len(kappas),
        width=4.0,
        height=3.1,
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    wanted = [p for p in analysis.values(landing, "penalty") if p in (0.005, 0.05, 0.3, 0.5)]
    runs: dict[str, Any] = {"polar retraction": ("#009e73", analysis.pick(retraction, method="polar"))}
    for color, penalty in zip(("#e69f00", "#6a51a3", "#0072b2", "#b2182b"), wanted):
        runs[f"landing, penalty {penalty:g}"] = (color, analysis.pick(landing, penalty=penalty))
    for column, kappa in enumerate(kappas):
        for index, (name, (color, rows)) in enumerate(runs.items()):
            dash = ("-", "--", ":", "-.", "--")[index]
            line = style.Line(color, dash, "" if index else "^")
            mine = analysis.pick(rows, kappa=kappa)
            _quartiles(panels[0][column], *_stack(mine, "loss"), name, line)
            at, data = _stack(mine, "defects")
            _quartiles(panels[1][column], at + 1, np.maximum(data, 1e-17), name, line)
        panels[0][column].set(yscale="log", title=f"κ = {kappa:g}", ylim=(1e-17, 30))
        panels[1][column].set(xscale="log", yscale="log", xlabel="iteration", xlim=(1, None), ylim=(1e-17, 30))
    panels[0][0].set_ylabel("loss / first loss")
    panels[1][0].set_ylabel("‖QᵀQ − I‖, worse factor")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="median and quartiles")
    return fig
