"""How figures look: one colour and line per solver everywhere, drawn without pyplot's global state."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from studies.store import write_atomic

__all__ = [
    "PALETTE",
    "Line",
    "band",
    "colour",
    "context",
    "figure",
    "figure_problem",
    "line",
    "lines",
    "save",
    "title",
]

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#6a51a3",
    "#56b4e9",
    "#8c6d31",
    "#b2182b",
    "#5a5a5a",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.labelcolor": "#22262c",
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.hashsalt": "lowrank-sp",
    "xtick.color": "#4a5058",
    "ytick.color": "#4a5058",
}


@dataclass(frozen=True)
class Line:
    """Colour, dash and marker of one method; `**line.kwargs` goes to `Axes.plot`."""

    color: str
    linestyle: str = "-"
    marker: str = "o"

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments of `Axes.plot`."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}


# A family shares a colour; its alternating or second member is dashed.
_KNOWN = {
    "gd": Line("#5a5a5a", "-", "o"),
    "altgd": Line("#5a5a5a", "--", "s"),
    "scaledgd": Line("#0072b2", "-", "o"),
    "altscaledgd": Line("#0072b2", "--", "s"),
    "scaledcg": Line("#56b4e9", "-", "^"),
    "precgd": Line("#56b4e9", "--", "v"),
    "reflora": Line("#d55e00", "-", "D"),
    "reflorascalar": Line("#d55e00", "--", "d"),
    "lorapro": Line("#e69f00", "-", "P"),
    "riemanniangd": Line("#009e73", "-", "^"),
    "riemanniancg": Line("#009e73", "--", "v"),
    "landinggd": Line("#6a51a3", "-", "X"),
    "als": Line("#cc79a7", "-", "h"),
    "adam": Line("#b2182b", "-", "<"),
    "lora": Line("#5a5a5a", "-", "o"),
    "polar": Line("#8c6d31", "-", ">"),
}


def line(name: str) -> Line:
    """The line of a method, always the same for a name; names are compared without case and punctuation."""
    plain = _plain(name)
    code = zlib.crc32(plain.encode())
    return _KNOWN.get(plain) or Line(PALETTE[code % len(PALETTE)], "-", _MARKERS[code // 16 % len(_MARKERS)])


def colour(name: str) -> str:
    """The colour of a method."""
    return line(name).color


def lines(names: Iterable[str]) -> dict[str, Line]:
    """Lines of the methods of one figure: known methods keep theirs, the others get colours that are free."""
    ordered = list(dict.fromkeys(names))
    found = {name: line(name) for name in ordered if _plain(name) in _KNOWN}
    used = {entry.color for entry in found.values()}
    free = [color for color in PALETTE if color not in used] or list(PALETTE)
    for index, name in enumerate(name for name in ordered if name not in found):
        dash = ("-", "--", ":")[index // len(free) % 3]
        found[name] = Line(free[index % len(free)], dash, _MARKERS[index % len(_MARKERS)])
    return {name: found[name] for name in ordered}


def context() -> AbstractContextManager[Any]:
    """The style as a temporary setting of matplotlib; the report draws every figure inside it."""
    return mpl.rc_context(_RC)


def figure(
    heading: str = "", rows: int = 1, columns: int = 1, width: float = 4.8, height: float = 3.4, **axes: Any
) -> tuple[Figure, Any]:
    """A figure whose heading becomes its caption, and its axes as `Figure.subplots` gives them."""
    with context():
        fig = Figure(figsize=(width * columns, height * rows))
        if heading:
            fig.suptitle(heading, fontsize=12, fontweight="bold")
        return fig, fig.subplots(rows, columns, **axes)


def band(axes: Axes, x: Sequence[float], values: Any, name: str, entry: Line | None = None) -> None:
    """Draw the median over runs and a band from minimum to maximum; `values` is (runs, len(x))."""
    data = np.atleast_2d(np.asarray(values, dtype=float))
    entry = entry or line(name)
    axes.plot(x, np.nanmedian(data, axis=0), label=name, markevery=max(1, len(x) // 12), **entry.kwargs)
    axes.fill_between(x, np.nanmin(data, axis=0), np.nanmax(data, axis=0), color=entry.color, alpha=0.15, linewidth=0)


def title(fig: Figure, default: str) -> str:
    """The heading of a figure, else the title of its first titled axes, else the default."""
    return next((text for text in (fig.get_suptitle(), *(axes.get_title() for axes in fig.axes)) if text), default)


def save(fig: Figure, folder: Path, name: str) -> None:
    """Write `name.png` and `name.svg`; equal figures give equal files."""
    FigureCanvasAgg(fig)
    with context():
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
            write_atomic(folder / f"{name}.{kind}", buffer.getvalue())


def figure_problem(figures: Mapping[Any, Any]) -> str:
    """Why a mapping is not a set of named figures, or an empty string."""
    for name, fig in figures.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            return f"figure name {name!r}: use letters, digits, '_', '-' and '.'"
        if not isinstance(fig, Figure):
            return f"figure {name!r}: got {type(fig).__name__}; return a matplotlib.figure.Figure"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
