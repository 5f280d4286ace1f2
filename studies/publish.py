"""Results that travel with a study: its rows, verdicts and figures, copied into its folder."""

from __future__ import annotations

from pathlib import Path

from studies.report import Section
from studies.store import compact_json, write_atomic

__all__ = ["publish"]


def publish(section: Section, out: Path) -> Path:
    """Copy rows, claims and PNG figures to the study's `results` folder, and remove old figures there."""
    source, target = out / section.study.name, section.study.folder / "results"
    figures = [f"{name}.png" for name in section.figures]
    write_atomic(target / "rows.jsonl", "".join(compact_json(row) + "\n" for row in section.rows))
    for name in (*figures, "claims.json"):
        write_atomic(target / name, (source / name).read_bytes())
    for path in target.glob("*.png"):
        if path.name not in figures:
            path.unlink()
    return target
