"""The report as one HTML page: everything escaped, styled inline, readable without a network."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from studies.claims import NOT_EVALUATED, NOT_REPRODUCED, REPRODUCED, Verdict
from studies.page_style import CSS

if TYPE_CHECKING:
    from studies.report import Picture, Section

__all__ = ["render"]

_CHIPS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", NOT_EVALUATED: "open"}


def render(sections: Sequence[Section], command: str) -> str:
    """The whole page."""
    body = [
        _header(sections),
        _claims(sections),
        *map(_study, sections),
        _footer(sections, command),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Studies: what reproduces</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(sections: Sequence[Section]) -> str:
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    tiles = "".join(
        f'<div class="tile {_CHIPS[status]}"><b>{sum(v.status == status for v in verdicts)}</b>{status}</div>'
        for status in _CHIPS
    )
    cells = sum(len(section.rows) for section in sections)
    return (
        "<header><h1>What reproduces, and what does not</h1>"
        f"<p>{_count(len(verdicts), 'claim')} of {_count(len(sections), 'study', 'studies')}, judged on "
        f"{_count(cells, 'stored row')}. A claim is an inequality fixed before the run.</p>"
        f'<div class="tiles">{tiles}</div></header>'
    )


def _claims(sections: Sequence[Section]) -> str:
    body = []
    for section in sections:
        anchor = escape(section.study.name, quote=True)
        body.append(f'<tr class="group"><th colspan="5"><a href="#{anchor}">{_text(section.study.config.title)}</a>')
        body.append(f"{_quick(section)}</th></tr>")
        body += [_claim(verdict) for verdict in section.verdicts]
    heads = "".join(f"<th>{name}</th>" for name in ("Claim", "Source", "Expected", "Measured", "Verdict"))
    return (
        f'<section><h2>Claims</h2><div class="wide"><table class="claims"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">Measured: median [minimum, maximum], n = number of values. '
        '<span class="tag">corrected</span> marks a claim whose source prints a wrong value; '
        "the right one is stated here.</p></section>"
    )


def _claim(verdict: Verdict) -> str:
    claim = verdict.claim
    tag = ' <span class="tag">corrected</span>' if claim.kind == "corrected" else ""
    unit = f" {_text(claim.unit)}" if claim.unit else ""
    over = "every value" if claim.over == "all" else claim.over
    reason = f"<small>{_text(verdict.reason)}</small>" if verdict.reason else ""
    return (
        f"<tr><td>{_text(claim.statement)}<small><code>{_text(claim.id)}</code></small></td>"
        f"<td>{_text(claim.source)}{tag}</td>"
        f'<td class="number">{_expectation(claim.expect.text)}{unit}<small>{over}</small></td>'
        f'<td class="number">{_measured(verdict)}</td>'
        f"<td>{_chip(verdict.status)}{reason}</td></tr>"
    )


def _expectation(text: str) -> str:
    signs = (("<=", "\u2264"), (">=", "\u2265"), ("==", "="), ("+-", "\u00b1"))
    for ascii_sign, sign in signs:
        text = text.replace(ascii_sign, sign)
    return _text(text)


def _measured(verdict: Verdict) -> str:
    stats = verdict.summary
    if stats["median"] is None:
        return "&ndash;"
    spread = f"[{stats['min']:.4g}, {stats['max']:.4g}]&ensp;" if stats["n"] != 1 else ""
    return f"{stats['median']:.4g}<small>{spread}n = {stats['n']}</small>"


def _study(section: Section) -> str:
    config, anchor = section.study.config, escape(section.study.name, quote=True)
    counts = {status: sum(verdict.status == status for verdict in section.verdicts) for status in _CHIPS}
    chips = " ".join(_chip(status, count) for status, count in counts.items() if count)
    tables = "".join(f"<h3>{_text(name)}</h3>{_table(rows)}" for name, rows in section.tables.items())
    figures = "".join(_figure(section.study.name, name, picture) for name, picture in section.figures.items())
    problems = "".join(f'<pre class="problem">{_text(text.splitlines()[0])}</pre>' for text in section.problems)
    return (
        f'<section id="{anchor}"><h2>{_text(config.title)}{_quick(section)}</h2>'
        f'<p class="byline"><code>{_text(section.study.name)}</code> &middot; {_text(config.source)}</p>'
        f"<p>{_text(config.summary)}</p><p>{chips}</p>{_grid(section)}{problems}{tables}"
        f'<div class="figures">{figures}</div></section>'
    )


def _grid(section: Section) -> str:
    grid = section.study.config.grid(section.quick)
    done = [row["cell"]["part"] for row in section.rows]
    rows = [
        {
            "part": part,
            "values": "; ".join(f"{key} = {_axis(value)}" for key, value in table.items()),
            "cells": len(list(grid.part_cells(part))),
            "stored": done.count(part),
        }
        for part, table in grid.parts.items()
    ]
    fixed = ", ".join(f"{key} = {value}" for key, value in grid.fixed.items())
    note = f'<p class="note">Fixed: {_text(fixed)}</p>' if fixed else ""
    summary = f"Grid: {len(section.rows)} of {_count(section.total, 'cell')} stored"
    opened = "" if len(section.rows) == section.total else " open"
    return f"<details{opened}><summary>{summary}</summary>{_table(rows)}{note}</details>"


def _axis(values: Any) -> str:
    shown = [str(value) for value in (values if isinstance(values, list) else [values])]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:3])}, \u2026, {shown[-1]} ({len(shown)})"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="note">Empty.</p>'
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {key: all(_is_number(row.get(key)) for row in rows) for key in keys}
    kind = {key: ' class="number"' if numeric[key] else "" for key in keys}
    head = "".join(f"<th{kind[key]}>{_text(key)}</th>" for key in keys)
    lines = ("".join(f"<td{kind[key]}>{_cell(row.get(key))}</td>" for key in keys) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(study: str, name: str, picture: Picture) -> str:
    path, caption = escape(f"{study}/{name}", quote=True), _text(picture.caption)
    image = f'<img src="{path}.png" alt="{caption}" width="{round(100 * picture.inches)}">'
    return (
        f'<figure><a href="{path}.svg">{image}</a>'
        f'<figcaption>{caption} <a href="{path}.svg">SVG</a></figcaption></figure>'
    )


def _footer(sections: Sequence[Section], command: str) -> str:
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {
        "Command": [command],
        "Made": [made],
        "Commit of the rows": _distinct(sections, "commit", str),
        "Machine": _distinct(sections, "machine", lambda m: f"{m['cpu']}, {m['cores']} cores, {m['platform']}"),
        "Versions": _distinct(sections, "versions", lambda v: ", ".join(f"{key} {text}" for key, text in v.items())),
    }
    items = "".join(f"<dt>{key}</dt><dd>{'<br>'.join(map(_text, values)) or '-'}</dd>" for key, values in facts.items())
    return f"<footer><h2>How this was made</h2><dl>{items}</dl></footer>"


def _distinct(sections: Iterable[Section], key: str, show: Any) -> list[str]:
    return list(dict.fromkeys(show(value) for section in sections for value in section.distinct(key)))


def _chip(status: str, count: int | None = None) -> str:
    return f'<span class="chip {_CHIPS[status]}">{"" if count is None else f"{count} "}{status}</span>'


def _quick(section: Section) -> str:
    return ' <span class="tag">quick grid</span>' if section.quick else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _text(value: Any) -> str:
    return escape(str(value))
