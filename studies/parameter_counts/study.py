"""Parameter counts of the surveys, evaluated from the forms and by adapters in models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.parameter_counts import analysis, plots
from studies.parameter_counts.counts import BENCHMARK, count, lokr_near
from studies.parameter_counts.formulas import FORMULAS, Case, kronecker_shapes, trained, vera_columns
from studies.parameter_counts.models import MODELS

Cell = Mapping[str, Any]
Row = Mapping[str, Any]

SMALL = 10_000  # numbers in a weight up to which a model is built and adapted


def run(cell: Cell) -> Row:
    """One count."""
    return PARTS[cell["part"]](cell)


def _formulas(cell: Cell) -> Row:
    """A row of the table of formulas at one size."""
    case, formula = Case(*cell["case"]), FORMULAS[cell["method"]]
    row: dict[str, Any] = {"printed": formula.printed(case), "counted": formula.counted(case)}
    if not formula.stacked and case.m * case.n <= SMALL:
        row["trained"] = trained(cell["method"], case)
    if cell["method"] == "KronA":
        true, printed = kronecker_shapes(case)
        row["wrong_sides"] = sum(a != b for a, b in zip(true, printed, strict=True))
    if cell["method"] == "VeRA":
        row["wrong_columns"] = vera_columns(case)
    return row


def _benchmark(cell: Cell) -> Row:
    """A row of the cost table on Llama-3.1-8B, in millions."""
    method, printed = cell["row"]
    counted = BENCHMARK[method](MODELS["Llama-3.1-8B"].sites()) / 1e6
    return {"method": method, "printed": printed, "counted": counted, "gap": abs(counted - printed)}


def _lokr(cell: Cell) -> Row:
    """The nearest of the usual settings of LoKr to the printed count."""
    return lokr_near(MODELS["Llama-3.1-8B"].sites(), cell["printed"], cell["limits"], cell["sizes"])


def _layer(cell: Cell) -> Row:
    """LoRA in one layer, against training all of it."""
    shape, rank, (printed, ratio) = cell["shape"], *cell["row"]
    counted = lr.BurerMonteiro.parameter_count(tuple(shape), rank)
    reduction = shape[0] * shape[1] / counted
    return {"rank": rank, "counted": counted, "gap": counted - printed, "reduction": reduction, "printed_ratio": ratio}


def _models(cell: Cell) -> Row:
    """LoRA in a model: counts in millions over all sets of targets, and over queries and values."""
    name, rank, printed = cell["row"]
    model = MODELS[name]
    counts = {kind: count(lr.BurerMonteiro, model.sites((kind,)), rank) / 1e6 for kind in model.linear}
    names = list(counts)
    sets = [s for k in range(1, len(names) + 1) for s in combinations(names, k)]
    usual = [("q", "v"), ("q", "k", "v"), model.attention, tuple(names)]
    return {
        "model": name,
        "rank": rank,
        "printed": printed,
        "total": model.total / 1e6,
        "query_value": counts["q"] + counts["v"],
        "usual": {" + ".join(s): sum(counts[k] for k in s) for s in usual},
        "sets": {" + ".join(s): sum(counts[k] for k in s) for s in sets},
    }


def _heads(cell: Cell) -> Row:
    """One low-rank product a head against one for all heads."""
    width, rank, heads = cell["width"], cell["rank"], cell["heads"]
    grouped = lr.BlockGrid.of(heads, 1).parameter_count((width, width), rank)
    return {"factor": grouped / lr.BurerMonteiro.parameter_count((width, width), rank)}


PARTS = {
    "formulas": _formulas,
    "benchmark": _benchmark,
    "lokr": _lokr,
    "layer": _layer,
    "models": _models,
    "heads": _heads,
}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Printed numbers beside counted ones."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Gaps between printed and counted numbers."""
    return plots.figures(rows)
