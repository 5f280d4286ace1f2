"""Tables for a terminal, at most one hundred columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from studies.claims import NOT_EVALUATED, Verdict
from studies.report import Section

__all__ = ["WIDTH", "claims_table", "columns", "shorten"]

WIDTH = 100
_HEADS = ("  claim", "expected", "measured", "verdict")
_WIDEST = (WIDTH, 22, 34, 14)


def shorten(text: str, width: int) -> str:
    """The text, or its beginning and an ellipsis where it does not fit."""
    return text if len(text) <= width else text[: width - 1] + "\u2026"


def columns(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line with aligned columns; cells that do not fit are shortened."""
    return "  ".join(f"{shorten(cell, width):<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def claims_table(sections: Sequence[Section]) -> str:
    """All claims with expectation, measured values and verdict, grouped by study."""
    widths = _widths([_HEADS, *(_cells(verdict) for section in sections for verdict in section.verdicts)])
    lines = [columns(_HEADS, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]
    for section in sections:
        lines.append(shorten(_heading(section), WIDTH))
        for verdict in section.verdicts:
            claim, *rest = _cells(verdict)
            # An identifier that does not fit gets a line of its own: it is never cut.
            lines += (
                [columns((claim, *rest), widths)] if len(claim) <= widths[0] else [claim, columns(("", *rest), widths)]
            )
            if verdict.status == NOT_EVALUATED:
                lines += textwrap.wrap(verdict.reason, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _heading(section: Section) -> str:
    notes = ["quick grid"] if section.quick else []
    if len(section.rows) < section.total:
        notes.append(f"{len(section.rows)} of {section.total} cells")
    return section.study.name + (f" ({', '.join(notes)})" if notes else "")


def _cells(verdict: Verdict) -> tuple[str, str, str, str]:
    claim = verdict.claim
    over = "" if claim.over == "all" else f"{claim.over} "
    measured = verdict.measured if verdict.values else "-"
    return f"  {claim.id}", f"{over}{claim.expect.text}", measured, verdict.status


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Natural widths up to a limit; the first column gives way when the line is too long."""
    natural = [min(limit, max(map(len, cells))) for limit, cells in zip(_WIDEST, zip(*rows, strict=True), strict=True)]
    return [min(natural[0], WIDTH - sum(natural[1:]) - 2 * len(natural[1:])), *natural[1:]]
