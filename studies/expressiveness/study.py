"""Which structured form is nearest to which matrix, at equal numbers of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies.expressiveness import analysis, plots
from studies.expressiveness.fits import FITS, hira
from studies.expressiveness.targets import make, unit

Cell = Mapping[str, Any]
Row = Mapping[str, Any]


def run(cell: Cell) -> Row:
    """All forms on one target."""
    try:
        target, weight = make(cell["target"], cell["side"], cell["seed"])
    except ModuleNotFoundError as error:
        return {"found": False, "why": str(error)}
    fits = {name: fit(target) for name, fit in FITS.items()}
    if weight is not None:
        fits["HiRA"] = hira(target, weight)
    norm = np.linalg.norm(target)
    return {
        "found": True,
        "unit": unit(cell["side"]),
        "rank": int(np.linalg.matrix_rank(target)),
        "errors": {name: float(np.linalg.norm(near - target) / norm) for name, (near, _) in fits.items()},
        "ranks": {name: int(np.linalg.matrix_rank(near)) for name, (near, _) in fits.items()},
        "counts": {name: count for name, (_, count) in fits.items()},
    }


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name, for the claims."""
    return analysis.measures(rows)


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Errors by target and form."""
    return analysis.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Errors by target and form."""
    return plots.figures(rows)
