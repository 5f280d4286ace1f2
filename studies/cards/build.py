"""Making a card: every section for a form or a rule, printed and saved as one page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_sp.factors import Gauged, MatrixFactors
from lowrank_sp.parameterizations import FORMS
from lowrank_sp.rules import Rule, check_needs
from lowrank_sp.testing import check_parameterization, check_rule
from lowrank_sp.testing.common import fitting_shape, settle
from studies.cards.behaviour import Budget, convergence, sample_complexity, solvers
from studies.cards.cost import apply_cost
from studies.cards.geometry import dimensions, equivariance
from studies.cards.page import page, show
from studies.cards.subject import resolve
from studies.provenance import commit, machine, versions
from studies.store import write_atomic

__all__ = ["card", "text"]

RANK, SHAPE = 3, (24, 20)
APPLY_SHAPE, APPLY_RANK, TOKENS = (512, 512), 8, 512


def card(
    name: str, out: Path, progress: Callable[[str], None] = lambda _: None, budget: Budget | None = None
) -> tuple[dict[str, Any], Path]:
    """Make the card of a registered or user-defined form or rule, and save it as HTML and JSON.

    Parameters
    ----------
    name : str
        See `studies.cards.subject.resolve`.
    out : Path
        Folder; the files are ``cards/<name>.html`` and ``.json`` in it.
    progress : callable, optional
        Told what is being done.
    budget : Budget, optional

    Returns
    -------
    dict
        Sections: title to rows.
    Path
        Of the page.
    """
    label, thing = resolve(name)
    make = _rule_card if isinstance(thing, Rule) else _form_card
    sections = make(thing, progress, budget or Budget())
    safe = "".join(c if c.isalnum() or c in "-_+" else "_" for c in label)
    folder = out / "cards"
    document = {"card": label, "about": _about(thing), "sections": sections, "provenance": _made()}
    write_atomic(folder / f"{safe}.json", (json.dumps(document, indent=2) + "\n").encode())
    write_atomic(folder / f"{safe}.html", page(document).encode())
    return document, folder / f"{safe}.html"


def _made() -> dict[str, Any]:
    return {"commit": commit(), "machine": machine(), "versions": versions()}


def _about(thing: Any) -> str:
    doc = (thing if isinstance(thing, type) else type(thing)).__doc__ or ""
    return doc.strip().split("\n\n")[0].replace("\n", " ")


def _form_card(form: Any, progress: Callable[[str], None], budget: Budget) -> dict[str, list[dict[str, Any]]]:
    shape = _shape(form)
    rank = RANK
    progress(f"contracts at {shape}, size {rank}")
    sections = {"Contracts": _contracts(form), "Arrays": _arrays(form, shape, rank)}
    progress("dimensions")
    small = fitting_shape(form, rank)
    counts = dimensions(form, shape, rank)
    sections[f"Dimensions at {_times(shape)}, size {rank}"] = [{"quantity": k, "value": v} for k, v in counts.items()]
    if not issubclass(form, MatrixFactors):
        return sections
    progress("gauge")
    gaps = equivariance(form, small, rank)
    if gaps:
        sections["Does the path of the matrix depend on the gauge?"] = gaps
    progress("convergence")
    sections[f"Iterations to 1e-6 on the one-layer testbed, {_times(shape)}, rank {rank}"] = convergence(
        form, shape, rank, solvers(), budget
    )
    progress("sample complexity")
    sections[f"Recovery from Gaussian measurements, {_times(shape)}, size {rank}"] = sample_complexity(
        form, shape, rank, counts["image dimension"], budget
    )
    progress("cost of apply")
    size, r = _apply_size(form)
    sections[f"Cost of apply and its gradient, {_times(size)}, size {r}, {TOKENS} tokens"] = apply_cost(
        form, size, r, TOKENS, budget.repetitions
    )
    return {title: rows for title, rows in sections.items() if rows}


def _rule_card(rule: Any, progress: Callable[[str], None], budget: Budget) -> dict[str, list[dict[str, Any]]]:
    fitting = {}
    for name, form in FORMS.items():
        if issubclass(form, MatrixFactors):
            try:
                check_needs(rule, settle(form.random(fitting_shape(form, 2), 2, np.random.default_rng(0))))
            except (TypeError, ValueError):
                continue
            fitting[name] = form
    progress("contract")
    sections = {"Contract": [_attempt("on its first form", lambda: check_rule(rule))]}
    progress("gauge")
    gaps = []
    for name, form in fitting.items():
        point = form.random(fitting_shape(form, RANK), RANK, np.random.default_rng(0))
        if isinstance(point, Gauged):
            rows = equivariance(form, fitting_shape(form, RANK), RANK, {name: rule})
            gaps += [{"form": name, **{k: v for k, v in row.items() if k != "rule"}} for row in rows]
    sections["Does the path of the matrix depend on the gauge?"] = gaps
    progress("convergence")
    sections[f"Iterations to 1e-6 on the one-layer testbed, {_times(SHAPE)}, rank {RANK}"] = [
        {"form": name, **_only(convergence(form, _shape(form), RANK, {"": _descent(rule)}, budget))}
        for name, form in fitting.items()
    ]
    return {title: rows for title, rows in sections.items() if rows}


def _only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in rows[0].items() if key != "method"}


def _descent(rule: Rule) -> Any:
    from lowrank_sp.descent import Descent
    from lowrank_sp.rules.step import parse_step

    return Descent(rule, (parse_step("auto"),), name=type(rule).__name__)


def _shape(form: Any) -> tuple[int, ...]:
    """A shape large enough to be interesting, or the smallest that the form takes."""
    for shape in (SHAPE, (24, 24), (36, 16)):
        try:
            form.shapes(shape, RANK)
        except (ValueError, TypeError):
            continue
        return shape
    return fitting_shape(form, RANK)


def _apply_size(form: Any) -> tuple[tuple[int, int], int]:
    for rank in (APPLY_RANK, 4, 2, 16):
        try:
            form.shapes(APPLY_SHAPE, rank)
        except ValueError:
            continue
        return APPLY_SHAPE, rank
    return fitting_shape(form, APPLY_RANK), APPLY_RANK


def _contracts(form: Any) -> list[dict[str, Any]]:
    cases = {
        "NumPy": {},
        "torch": {"library": "torch"},
        "batched": {"batch": (2,)},
        "complex": {"dtype": "complex128"},
    }
    return [_attempt(name, lambda case=case: check_parameterization(form, **case)) for name, case in cases.items()]


def _attempt(name: str, check: Callable[[], None]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except Exception as error:  # a user's class may fail in any way: that is what the card reports
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"contract": name, "passed": "no", "why": why[:200]}
    return {"contract": name, "passed": "yes", "why": ""}


def _arrays(form: Any, shape: Any, rank: int) -> list[dict[str, Any]]:
    point = form.random(shape, rank, np.random.default_rng(0))
    return [
        {
            "array": name,
            "shape": _times(array.shape),
            "space": type(space).__name__,
            "zero at the start": name in point.zeros,
        }
        for name, array, space in zip(point.names, point.arrays(), point.spaces, strict=True)
    ]


def _times(shape: Any) -> str:
    return " x ".join(str(int(k)) for k in shape)


def text(document: dict[str, Any]) -> str:
    """The card for a terminal."""
    lines = [document["card"], "=" * len(document["card"]), document["about"]]
    for title, rows in document["sections"].items():
        lines += ["", title, *_table(rows)]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([show(row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    drawn = ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return [drawn[0], "  " + "  ".join("-" * w for w in widths), *drawn[1:]]
