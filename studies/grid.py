"""A grid names the parts of a study and expands them, always in the same order, into cells."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

__all__ = ["Cell", "Grid", "canonical", "cell_key"]

Cell = dict[str, Any]
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Constants shared by all cells, and named parts whose lists are axes of a Cartesian product."""

    fixed: Table
    parts: Mapping[str, Table]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("grid: no part is left; give at least one table [grid.PART]")
        for key, value in self.fixed.items():
            _check_value(f"fixed.{key}", key, value)
            if isinstance(value, list):
                raise ValueError(
                    f"fixed.{key}: got the list {value!r}; a constant is a scalar, "
                    f"and a list belongs in a part as an axis with one value: {key} = [{value!r}]"
                )
        for part, table in self.parts.items():
            for key, value in table.items():
                _check_axis(f"grid.{part}.{key}", key, value)

    def part_cells(self, part: str) -> Iterator[Cell]:
        """Cells of one part: the last axis varies fastest, and a part's value wins over a fixed one."""
        table = self.parts[part]
        axes = [value if isinstance(value, list) else [value] for value in table.values()]
        for values in product(*axes):
            yield {"part": part, **self.fixed, **dict(zip(table, values, strict=True))}

    def cells(self) -> list[Cell]:
        """Cells of all parts, in the order of the file."""
        return [cell for part in self.parts for cell in self.part_cells(part)]

    def override(self, fixed: Table, parts: Mapping[str, Table], skip: Sequence[str] = ()) -> Grid:
        """The same grid with single keys replaced and some parts dropped; nothing new may appear."""
        _check_known("quick.fixed", fixed, self.fixed)
        _check_known("quick.grid", parts, self.parts)
        _check_known("quick.skip", skip, self.parts)
        for part, table in parts.items():
            _check_known(f"quick.grid.{part}", table, self.parts[part])
        kept = {part: {**table, **parts.get(part, {})} for part, table in self.parts.items() if part not in skip}
        return Grid({**self.fixed, **fixed}, kept)


def canonical(value: Any) -> str:
    """One JSON text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def cell_key(study: str, cell: Cell, code: str) -> str:
    """Sixteen hex digits that name a cell of a study at one version of its code."""
    text = canonical({"study": study, "cell": cell, "code": code})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_known(where: str, given: Table | Sequence[str], known: Table) -> None:
    for key in given:
        if key not in known:
            raise ValueError(
                f"{where}: {key!r} is not in the full grid; it can override {', '.join(known) or 'nothing'}"
            )


def _check_axis(where: str, key: str, value: Any) -> None:
    if not isinstance(value, list):
        return _check_value(where, key, value)
    if not value:
        raise ValueError(f"{where}: the axis is empty; give at least one value, or drop the key")
    for item in value:
        _check_value(where, key, item)
    if len({canonical(item) for item in value}) < len(value):
        raise ValueError(f"{where}: the axis {value!r} repeats a value; each value may appear once")
    return None


def _check_value(where: str, key: str, value: Any) -> None:
    if key == "part":
        raise ValueError(f"{where}: the name 'part' is taken, every cell carries the name of its part; rename the key")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            _check_value(where, key, item)
        elif not isinstance(item, bool | int | float | str) or (isinstance(item, float) and math.isnan(item)):
            raise ValueError(f"{where}: got {item!r}; a value is a number, a string, a boolean or a list of these")
