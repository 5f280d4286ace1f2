"""Which entries of the inventory a class or function implements."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

__all__ = ["COVERED", "covers"]

COVERED: dict[str, list[str]] = {}  # ID -> qualified names, in the order of definition

_ID = re.compile(r"[POIRESABTXD]\d{2,3}[a-z]?")
_Named = TypeVar("_Named", bound=Callable)


def covers(*ids: str) -> Callable[[_Named], _Named]:
    """Record that a class or function implements the inventory entries with these IDs.

    The IDs are those of ``docs/inventory.toml``; ``docs/coverage.md`` lists them with what proves each.

    Parameters
    ----------
    *ids
        Such as ``"P01"`` (a parameterization) or ``"O04"`` (a solver).

    Raises
    ------
    ValueError
        When no ID is given, or one is not a letter of the inventory followed by its number.

    Examples
    --------
    >>> @covers("P01")
    ... class Factorization: ...
    >>> Factorization.__covers__
    ('P01',)
    """
    malformed = [i for i in ids if not _ID.fullmatch(i)]
    if malformed or not ids:
        received = malformed or "none"
        raise ValueError(f"covers() takes IDs of docs/inventory.toml, such as 'P01' or 'D30b'; got {received}")

    def record(named: _Named) -> _Named:
        name = f"{named.__module__}.{named.__qualname__}"
        own = vars(named).get("__covers__", ())  # not what a base class covers
        named.__covers__ = tuple(dict.fromkeys((*own, *ids)))
        for i in ids:
            names = COVERED.setdefault(i, [])
            if name not in names:
                names.append(name)
        return named

    return record
