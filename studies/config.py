"""A study's config.toml, read strictly: errors name file, key, what was received and what would work."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.claims import KINDS, OVER, Claim, Expectation
from studies.grid import Cell, Grid

__all__ = ["Config", "ConfigError", "read_config"]


class ConfigError(ValueError):
    """A study, its configuration or the command that names it cannot be used as given."""


@dataclass(frozen=True)
class Config:
    """The checked contents of a config.toml."""

    title: str
    summary: str
    source: str
    covers: tuple[str, ...]
    full: Grid
    quick: Grid
    claims: tuple[Claim, ...]

    def grid(self, quick: bool = False) -> Grid:
        """The full grid or the reduced one."""
        return self.quick if quick else self.full

    def cells(self, quick: bool = False) -> list[Cell]:
        """The cells of the full grid or of the reduced one."""
        return self.grid(quick).cells()


def read_config(path: Path) -> Config:
    """Read and check a config.toml; raises ConfigError."""
    try:
        return _config(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _config(data: Mapping[str, Any]) -> Config:
    _keys("the top level", data, ("study", "grid", "claims"), ("fixed", "quick"))
    study = _table("study", data["study"])
    _keys("[study]", study, ("title", "summary", "source"), ("covers",))
    full = Grid(_table("fixed", data.get("fixed", {})), _parts("grid", data["grid"]))
    return Config(
        title=_text("study.title", study["title"]),
        summary=_text("study.summary", study["summary"]),
        source=_text("study.source", study["source"]),
        covers=_texts("study.covers", study.get("covers", [])),
        full=full,
        quick=_quick(full, _table("quick", data.get("quick", {}))),
        claims=_claims(data["claims"]),
    )


def _quick(full: Grid, quick: Mapping[str, Any]) -> Grid:
    _keys("[quick]", quick, (), ("fixed", "grid", "skip"))
    try:
        return full.override(
            _table("quick.fixed", quick.get("fixed", {})),
            _parts("quick.grid", quick.get("grid", {})),
            _texts("quick.skip", quick.get("skip", [])),
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("quick") else f"quick: {text}") from error


def _claims(entries: Any) -> tuple[Claim, ...]:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"claims: got {entries!r}; write at least one table [[claims]]")
    claims = tuple(_claim(f"claims[{index}]", entry) for index, entry in enumerate(entries))
    seen: set[str] = set()
    for claim in claims:
        if claim.id in seen:
            raise ValueError(f"claims: the id {claim.id!r} is used twice; ids are unique within a study")
        seen.add(claim.id)
    return claims


def _claim(where: str, entry: Any) -> Claim:
    entry = _table(where, entry)
    needed = ("id", "statement", "source", "measure", "expect")
    _keys(f"[[{where}]]", entry, needed, ("covers", "kind", "over", "unit", "tolerance"))
    text = {key: _text(f"{where}.{key}", entry[key]) for key in needed}
    try:
        expect = Expectation.parse(text.pop("expect"), _tolerance(entry.get("tolerance")))
    except ValueError as error:
        raise ValueError(f"{where} ({text['id']}): {error}") from error
    return Claim(
        **text,
        expect=expect,
        over=_choice(f"{where}.over", entry.get("over", "all"), OVER),
        kind=_choice(f"{where}.kind", entry.get("kind", "source"), KINDS),
        unit=_text(f"{where}.unit", entry["unit"]) if "unit" in entry else "",
        covers=_texts(f"{where}.covers", entry.get("covers", [])),
    )


def _tolerance(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"tolerance: got {value!r}; give a number >= 0")
    return float(value)


def _keys(where: str, table: Mapping[str, Any], needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    allowed = (*needed, *optional)
    for key in table:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in needed:
        if key not in table:
            raise ValueError(f"{where}: the key {key!r} is missing; needed: {', '.join(needed)}")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {value!r}; expected a table [{where}]")
    return value


def _parts(where: str, value: Any) -> Mapping[str, Mapping[str, Any]]:
    return {part: _table(f"{where}.{part}", table) for part, table in _table(where, value).items()}


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: got {value!r}; expected a non-empty string")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: got {value!r}; expected a list of strings")
    return tuple(_text(f"{where}[{index}]", item) for index, item in enumerate(value))


def _choice(where: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{where}: got {value!r}; choose one of {', '.join(choices)}")
    return value
