"""Blocks of low rank against one global low-rank matrix: images, counts, and the transfer of a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from studies.localized import analysis, images, plots

Cell = Mapping[str, Any]
Row = Mapping[str, Any]


def run(cell: Cell) -> Row:
    """One cell of one part."""
    return PARTS[cell["part"]](cell)


def _images(cell: Cell) -> Row:
    """Errors of the three forms on every image of a source; ``found`` is false where MNIST's file is missing."""
    try:
        matrices = images.load(cell["source"])
    except FileNotFoundError as error:
        return {"found": False, "why": str(error).split(" into ")[0]}
    found = [images.errors(a) for a in matrices]
    ranks = [int(np.linalg.matrix_rank(a)) for a in matrices]
    return {
        "found": True,
        "ranks": ranks,
        **{name: [e[name] for e in found] for name in found[0]},
    }


def _counts(cell: Cell) -> Row:
    """The parameter example of the source: d = 256, r = 16, N = 4."""
    d, r, n, k = (cell[name] for name in ("width", "rank", "number", "side"))
    return {
        "lora": lr.BurerMonteiro.parameter_count((d, d), r),
        "melora": lr.BlockDiagonal.of(n).parameter_count((d, d), r // n),
        "localized": lr.BlockGrid.of(k, k).parameter_count((d, d), r // (n * k)),
    }


def _freedom(cell: Cell) -> Row:
    """Numbers and dimension of the sets of matrices, from the Jacobian at a random point."""
    from studies.cards.geometry import dimensions

    form, size = images.forms(cell["width"])[cell["form"]]
    found = dimensions(form, (cell["width"], cell["width"]), size)
    return {"numbers": found["parameters"], "dimension": found["image dimension"]}


def _sweep(cell: Cell) -> Row:
    """Counts of the sweep of the second experiment in the source's network, and whether its grid fits the image."""
    shape, side = (cell["hidden"], cell["side"] ** 2), cell["side"]
    sizes, blocks = cell["sizes"], cell["blocks"]
    fitting = [(k, r) for k in blocks for r in sizes if 2 * r * k <= cell["hidden"]]
    grids = [lr.BlockGrid.of(k, k).parameter_count(shape, r) for k, r in fitting]
    lora = [lr.BurerMonteiro.parameter_count(shape, r) for r in sizes]
    return {
        "full": (shape[1] + 1) * shape[0] + (shape[0] + 1) * 5,
        "smallest_grid": min(grids),
        "smallest_lora": min(lora),
        "uneven_grids": sum(side % k > 0 for k in blocks),
    }


def _transfer(cell: Cell) -> Row:
    """One configuration at every learning rate; the best by validation loss counts."""
    from studies.localized.transfer import adapted

    method, blocks, size = cell["configuration"]
    runs = [adapted(method, blocks, size, step, cell["steps"], cell["seed"]) for step in cell["rates"]]
    best = min(runs, key=lambda one: one["loss"])
    kept = {name: best[name] for name in ("step", "parameters", "loss", "accuracy")}
    return {"method": method, "blocks": blocks, "size": size, **kept}


PARTS = {
    "images": _images,
    "counts": _counts,
    "freedom": _freedom,
    "sweep": _sweep,
    "transfer": _transfer,
}


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Errors on images, and accuracy drops by budget."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Reconstructions, errors on images, accuracy drops by budget."""
    return plots.figures(rows)
