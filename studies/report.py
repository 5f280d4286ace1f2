"""Stored rows in, verdicts, figures and one HTML page out; nothing is computed again."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies import page, style
from studies.catalogue import Study, load, names
from studies.claims import NOT_EVALUATED, Verdict, judge
from studies.config import ConfigError
from studies.runner import flatten
from studies.store import Row, Store, write_atomic

__all__ = ["Picture", "Section", "report", "section", "with_rows"]


@dataclass(frozen=True)
class Picture:
    """A saved figure: its caption and its width."""

    caption: str
    inches: float


@dataclass(frozen=True)
class Section:
    """What the report says about one study."""

    study: Study
    quick: bool
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    figures: Mapping[str, Picture]  # by file name without its ending
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    problems: tuple[str, ...]  # what could not be drawn or tabulated, with tracebacks

    @property
    def total(self) -> int:
        """Number of cells of the grid that was run last."""
        return len(self.study.cells(self.quick))

    def distinct(self, key: str) -> list[Any]:
        """The different values of a provenance field among the rows."""
        return [json.loads(text) for text in dict.fromkeys(json.dumps(row.get(key)) for row in self.rows)]


def report(
    out: Path | str,
    studies: Iterable[str] | None = None,
    root: Path | None = None,
    command: str = "python -m studies report",
) -> list[Section]:
    """Write claims.json and figures of each study and `<out>/report.html`; default: all studies with rows."""
    out = Path(out)
    chosen = list(studies) if studies is not None else with_rows(out, root)
    if not chosen:
        raise ConfigError(f"{out}: no study has rows here; run one first: python -m studies run NAME")
    sections = [section(load(name, root), out) for name in chosen]
    write_atomic(out / "report.html", page.render(sections, command))
    return sections


def with_rows(out: Path, root: Path | None = None) -> list[str]:
    """Names of the studies that have stored rows under `out`."""
    return [name for name in names(root) if Store(out / name).load()]


def section(study: Study, out: Path) -> Section:
    """Judge, draw and tabulate one study from its rows, and write its claims.json and figures."""
    folder = out / study.name
    quick, rows = _rows(study, folder)
    flat = flatten(rows)
    problems: list[str] = []
    verdicts = _verdicts(study, flat, len(rows), len(study.cells(quick)))
    pictures: dict[str, Picture] = {}
    tables: dict[str, Any] = {}
    if rows:
        pictures = _attempt(lambda: _draw(study, flat, folder), "figures", problems) or {}
        tables = _attempt(lambda: _tabulate(study, flat), "tables", problems) or {}
    made = Section(study, quick, rows, verdicts, pictures, tables, tuple(problems))
    write_atomic(folder / "claims.json", json.dumps(_record(made), indent=1, allow_nan=False) + "\n")
    return made


def _rows(study: Study, folder: Path) -> tuple[bool, tuple[Row, ...]]:
    """The rows of the grid that was run last, in its order, without rows of other grids or older code."""
    try:
        quick = bool(json.loads((folder / "run.json").read_text(encoding="utf-8"))["quick"])
    except (OSError, ValueError, KeyError, TypeError):
        quick = False
    stored = Store(folder).load()
    return quick, tuple(stored[key] for key in study.cells(quick) if key in stored)


def _verdicts(study: Study, flat: list[dict[str, Any]], count: int, total: int) -> tuple[Verdict, ...]:
    note = "" if count == total else f"judged on {count} of {total} cells"
    measures, reason = _measure(study, flat) if count else ({}, "no rows of this grid and code are stored; run it")
    if reason:
        return tuple(Verdict(claim, NOT_EVALUATED, reason=reason) for claim in study.config.claims)
    return tuple(judge(claim, measures, note) for claim in study.config.claims)


def _measure(study: Study, flat: list[dict[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """What the study measures on its rows, or the reason why that is not known."""
    try:
        measures = study.module.measures(flat)
    except Exception as error:
        return {}, f"measures raised {type(error).__name__}: {error}"
    if not isinstance(measures, Mapping):
        return {}, f"measures returned {type(measures).__name__}; return a dict of numbers or sequences"
    return measures, ""


def _attempt(action: Any, what: str, problems: list[str]) -> Any:
    try:
        return action()
    except Exception as error:
        problems.append(f"{what} could not be made: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        return None


def _draw(study: Study, flat: list[dict[str, Any]], folder: Path) -> dict[str, Picture]:
    with style.context():
        figures = study.module.figures(flat)
    if not isinstance(figures, Mapping):
        raise TypeError(f"figures returned {type(figures).__name__}; return a dict of matplotlib figures")
    if problem := style.figure_problem(figures):
        raise TypeError(problem)
    for name, fig in figures.items():
        style.save(fig, folder, name)
    return {name: Picture(style.title(fig, name), fig.get_figwidth()) for name, fig in figures.items()}


def _tabulate(study: Study, flat: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    make = vars(study.module).get("tables")
    tables = make(flat) if make else {}
    if not isinstance(tables, Mapping) or not all(isinstance(row, Mapping) for rows in tables.values() for row in rows):
        raise TypeError("tables returned something else than a dict of lists of dicts")
    return {str(name): [dict(row) for row in rows] for name, rows in tables.items()}


def _record(made: Section) -> dict[str, Any]:
    return {
        "study": made.study.name,
        "title": made.study.config.title,
        "grid": "quick" if made.quick else "full",
        "cells": made.total,
        "rows": len(made.rows),
        "commits": made.distinct("commit"),
        "versions": made.distinct("versions"),
        "machines": made.distinct("machine"),
        "figures": list(made.figures),
        "claims": [_claim_record(verdict) for verdict in made.verdicts],
    }


def _claim_record(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "kind": claim.kind,
        "covers": list(claim.covers),
        "measure": claim.measure,
        "expect": claim.expect.text,
        "over": claim.over,
        "unit": claim.unit,
        "verdict": verdict.status,
        "reason": verdict.reason,
        **{key: _finite(value) for key, value in verdict.summary.items()},
        "values": [_finite(value) for value in verdict.values],
    }


def _finite(value: float | int | None) -> float | int | str | None:
    return value if value is None or math.isfinite(value) else str(value)
