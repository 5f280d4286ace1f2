"""A claim is an inequality on a measured quantity, and its verdict always carries the measured values."""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "KINDS",
    "NOT_EVALUATED",
    "NOT_REPRODUCED",
    "OVER",
    "REPRODUCED",
    "Claim",
    "Expectation",
    "Verdict",
    "count_verdicts",
    "judge",
]

REPRODUCED, NOT_REPRODUCED, NOT_EVALUATED = "reproduced", "not reproduced", "not evaluated"
KINDS = ("source", "corrected")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_REDUCE: dict[str, Callable[[Sequence[float]], Sequence[float]]] = {
    "all": lambda values: values,
    "median": lambda values: [statistics.median(values)],
    "mean": lambda values: [sum(values) / len(values)],
    "max": lambda values: [max(values)],
    "min": lambda values: [min(values)],
}
OVER = tuple(_REDUCE)
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_SIMPLE = re.compile(rf"\s*(<=|<|>=|>|==)\s*{_NUMBER}\s*")
_BETWEEN = re.compile(rf"\s*between\s+{_NUMBER}\s+and\s+{_NUMBER}\s*")


@dataclass(frozen=True)
class Expectation:
    """The inequality of a claim: `<= 15`, `== 2` up to a tolerance, `between 0.4 and 0.6` with its ends."""

    text: str
    operator: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str, tolerance: float | None = None) -> Expectation:
        """Read an expectation; raises ValueError with the accepted forms."""
        if tolerance is not None and not text.strip().startswith("=="):
            raise ValueError(f"tolerance: got {tolerance!r} with expect {text!r}; only '==' takes a tolerance")
        if match := _SIMPLE.fullmatch(text):
            bound, slack = float(match[2]), tolerance or 0.0
            shown = f"{match[1]} {match[2]}" + (f" +- {tolerance:g}" if tolerance else "")
            return cls(shown, match[1], bound - slack, bound + slack)
        if match := _BETWEEN.fullmatch(text):
            low, high = float(match[1]), float(match[2])
            if low > high:
                raise ValueError(f"expect: got {text!r}, an empty interval; write the smaller number first")
            return cls(f"between {match[1]} and {match[2]}", "between", low, high)
        raise ValueError(f"expect: got {text!r}; write '<= 15', '< 1', '>= 2', '> 0', '== 3' or 'between 0.4 and 0.6'")

    def holds(self, value: float) -> bool:
        """Whether one value satisfies the inequality."""
        compare = _COMPARE.get(self.operator)
        return compare(value, self.low) if compare else self.low <= value <= self.high


@dataclass(frozen=True)
class Claim:
    """One sentence of the literature, with the measure that decides it."""

    id: str
    statement: str
    source: str
    measure: str
    expect: Expectation
    over: str = "all"
    kind: str = "source"
    unit: str = ""
    covers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: status, measured values, and a reason where one is needed."""

    claim: Claim
    status: str
    values: tuple[float, ...] = ()
    reason: str = ""

    @property
    def summary(self) -> dict[str, float | int | None]:
        """Median, extremes and count of the measured values."""
        if not self.values or any(map(math.isnan, self.values)):
            return {"median": None, "min": None, "max": None, "n": len(self.values)}
        low, high = min(self.values), max(self.values)
        return {"median": statistics.median(self.values), "min": low, "max": high, "n": len(self.values)}

    @property
    def measured(self) -> str:
        """`median [min, max] n=count`, with the unit left to the caller."""
        stats = self.summary
        if stats["median"] is None:
            return f"NaN n={stats['n']}" if self.values else "nothing measured"
        if stats["n"] == 1:
            return f"{stats['median']:.4g} n=1"
        return f"{stats['median']:.3g} [{stats['min']:.3g}, {stats['max']:.3g}] n={stats['n']}"


def judge(claim: Claim, measures: Mapping[str, Any], note: str = "") -> Verdict:
    """Decide one claim from what a study measured; `note` says when only part of the rows was there."""
    if claim.measure not in measures:
        known = ", ".join(map(str, measures)) or "none"
        return Verdict(claim, NOT_EVALUATED, reason=f"measure {claim.measure!r} is missing; measured: {known}")
    try:
        values = tuple(float(v) for v in np.asarray(measures[claim.measure], dtype=float).ravel())
    except (TypeError, ValueError) as error:
        return Verdict(claim, NOT_EVALUATED, reason=f"measure {claim.measure!r} is not numeric: {error}")
    if not values:
        return Verdict(claim, NOT_EVALUATED, reason=f"measure {claim.measure!r} has no values")
    missing = sum(map(math.isnan, values))
    if missing:
        return Verdict(claim, NOT_EVALUATED, values, f"{missing} of {len(values)} values are NaN")
    holds = all(claim.expect.holds(value) for value in _REDUCE[claim.over](values))
    return Verdict(claim, REPRODUCED if holds else NOT_REPRODUCED, values, note)


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """The one-line summary, e.g. `3 claims: 2 reproduced, 1 not reproduced, 0 not evaluated`."""
    counts = [
        f"{sum(v.status == status for v in verdicts)} {status}"
        for status in (REPRODUCED, NOT_REPRODUCED, NOT_EVALUATED)
    ]
    return f"{len(verdicts)} claim{'' if len(verdicts) == 1 else 's'}: {', '.join(counts)}"
