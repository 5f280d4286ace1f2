"""The figure of the expressiveness study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studies import style
from studies.expressiveness.analysis import FORMS, medians

__all__ = ["figures"]

Row = Mapping[str, Any]


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Median relative errors, targets by forms."""
    by = medians(rows)
    if not by:
        return {}
    forms = [form for form in FORMS if any(form in errors for errors in by.values())]
    values = np.array([[errors.get(form, np.nan) for form in forms] for errors in by.values()])
    fig, ax = style.figure(
        "Relative error of the nearest matrix found, with equal numbers of parameters",
        width=8.2,
        height=5.0,
    )
    ax.imshow(values, cmap="Blues", vmin=0, vmax=2.0, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            best = value <= np.nanmin(values[i]) + 1e-9
            text = "0" if value < 1e-6 else f"{value:.3f}"
            ax.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if best else "normal",
            )
    ax.set_xticks(range(len(forms)), forms, rotation=25, ha="right")
    ax.set_yticks(range(len(by)), list(by))
    ax.set(ylabel="target", xlabel="form")
    ax.grid(visible=False)
    return {"errors": fig}
