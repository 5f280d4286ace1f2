"""How strong a spike must be: power iteration and ScaledGD from random and spectral starts, and from the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.tensor_gap import plots
from studies.tensor_gap.analysis import exponent, ratios, thresholds, worse_fit
from studies.tensor_gap.power import power_iteration

Cell = Mapping[str, Any]
Row = Mapping[str, Any]


def run(cell: Cell) -> Row:
    """Overlaps with the spike, and fits relative to the square root of n, of every start; one value a trial."""
    trials = list(PARTS[cell["part"]](cell))
    return {key: [round(float(trial[key]), 4) for trial in trials] for key in trials[0]}


def _instances(cell: Cell) -> Iterator[tuple[Any, np.random.Generator]]:
    for trial in range(cell["trials"]):
        seed = (cell["seed"], trial, cell["size"], round(100 * cell["strength"]))
        yield (
            lr.synthetic.spiked_tensor(cell["size"], strength=cell["strength"], seed=np.random.default_rng(seed)),
            np.random.default_rng((*seed, 1)),
        )


def _power(cell: Cell) -> Iterator[dict[str, float]]:
    """Power iteration from the truth, from the unfoldings, and from random vectors."""
    n = cell["size"]
    for problem, rng in _instances(cell):
        spectral = lr.inits.spectral(problem, lr.CP, 1)
        starts = [
            np.hstack((true, unfolded, rng.standard_normal((n, cell["restarts"]))))
            for true, unfolded in zip(problem.truth.arrays(), spectral.arrays(), strict=True)
        ]
        vectors, fit = power_iteration(problem.data, starts, cell["sweeps"])
        overlap, fit = _overlaps(vectors, problem.truth), fit / n**0.5
        best = 2 + int(fit[2:].argmax())
        columns = {"truth": 0, "unfolding": 1, "random": 2, "restarts": best}
        found = {f"overlap_{name}": overlap[k] for name, k in columns.items()}
        found |= {f"fit_{name}": fit[k] for name, k in columns.items()}
        yield found | {"overlap_start": _overlaps([a / np.linalg.norm(a) for a in spectral.arrays()], problem.truth)[0]}


def _descent(cell: Cell) -> Iterator[dict[str, float]]:
    """ScaledGD from the unfoldings and from a random point of the size of the spectral one."""
    shape = (cell["size"],) * 3
    for problem, rng in _instances(cell):
        spectral = lr.inits.spectral(problem, lr.CP, 1)
        random = lr.CP.random(shape, 1, rng)
        random = random.scale(float(spectral.frobenius() / random.frobenius())).balanced()
        found = {}
        for name, start in (("unfolding", spectral.balanced()), ("random", random)):
            point = lr.solve(problem, start, lr.ScaledGD(), cell["descents"], 1e-3).point
            vectors = [a / np.linalg.norm(a) for a in point.arrays()]
            found[f"overlap_{name}"] = _overlaps(vectors, problem.truth)[0]
        yield found


def _overlaps(vectors: list[np.ndarray], truth: lr.CP) -> np.ndarray:
    """The least absolute cosine (starts,) over the modes between unit vectors (n, starts) and the spike."""
    spike = [a[:, 0] / np.linalg.norm(a) for a in truth.arrays()]
    return np.min([abs(v @ x) for v, x in zip(spike, vectors, strict=True)], axis=0)


PARTS = {"power": _power, "descent": _descent}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Strengths at which half of the runs succeed, their growth with n and their ratios."""
    power, descent = (thresholds([row for row in rows if row["part"] == part]) for part in PARTS)
    gap = ratios(power["unfolding"], power["truth"])
    return {
        **{f"exponent_{name}": exponent(found) for name, found in power.items()},
        "strength_truth": list(power["truth"].values()),
        "unfolding_over_random": ratios(power["unfolding"], power["random"]),
        "unfolding_over_truth": gap,
        "gap_growth": gap[-1] / gap[0] if gap else [],
        "restarts_over_unfolding": ratios(power["restarts"], power["unfolding"]),
        "worse_fit": worse_fit([row for row in rows if row["part"] == "power"]),
        **{f"scaledgd_over_power_{name}": ratios(descent[name], power[name]) for name in ("unfolding", "random")},
    }


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Strengths at which half of the runs succeed."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Success against strength, and the strengths needed against n."""
    return plots.figures(rows)
