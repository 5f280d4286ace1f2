"""A card as one HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from studies.page_style import CSS

__all__ = ["page", "show"]


def page(document: dict[str, Any]) -> str:
    """The whole page, which needs no other file."""
    sections = "".join(_section(title, rows) for title, rows in document["sections"].items())
    facts = document["provenance"]
    note = f"lowrank-sp, commit {facts.get('commit', '-')}; {facts.get('machine', {}).get('cpu', '')}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Report card: {escape(document['card'])}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(document['card'])}</h1><p>{escape(document['about'])}</p></header>\n{sections}\n"
        f'<footer><p class="note">{escape(note)}</p></footer>\n</main>\n</body>\n</html>\n'
    )


def _section(title: str, rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    body = "".join("<tr>" + "".join(_cell(row.get(key, "")) for key in keys) + "</tr>" for row in rows)
    return (
        f"<section><h2>{escape(title)}</h2>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>\n'
    )


def _cell(value: Any) -> str:
    if value in ("yes", "no"):
        return f'<td><span class="chip {value}">{value}</span></td>'
    kind = ' class="number"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
    return f"<td{kind}>{escape(show(value))}</td>"


def show(value: Any) -> str:
    """A value as the card prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return str(value)
