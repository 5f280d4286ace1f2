"""The table of parameter formulas of a survey: what it prints, what the forms count, what a bridge trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import lowrank_sp as lr

__all__ = ["FORMULAS", "Case", "Formula", "kronecker_shapes", "trained", "vera_columns"]


class Case(NamedTuple):
    """Layers of ``m`` inputs and ``n`` outputs, and the sizes of the forms."""

    m: int
    n: int
    layers: int
    rank: int
    values: int
    terms: int

    @property
    def shape(self) -> tuple[int, int]:
        """As a layer stores its weight: (out, in)."""
        return self.n, self.m


class Formula(NamedTuple):
    """A row: the printed number, the form of a layer (or of the stack) with its size, and changes to LoRA's recipe."""

    printed: Callable[[Case], int]
    form: Callable[[Case], Any]
    size: Callable[[Case], Any] = lambda c: c.rank
    stacked: bool = False
    changes: Callable[[], dict[str, Any]] = dict

    def counted(self, case: Case) -> int:
        """From the shapes of the form."""
        form, size = self.form(case), self.size(case)
        if self.stacked:
            return form.parameter_count((case.m, case.n, case.layers), size)
        return case.layers * form.parameter_count(case.shape, size)


def _support(case: Case) -> Any:
    places = np.random.default_rng(0).choice(case.m * case.n, case.values, replace=False)
    return lr.LowRankPlusSparse.on(*np.divmod(places, case.m), case.shape)


def _times_base() -> dict[str, Any]:
    from llm_bridge.combines import TimesBase

    return {"combine": TimesBase()}


def _magnitudes() -> dict[str, Any]:
    from llm_bridge.combines import MagnitudeDirection

    return {"combine": MagnitudeDirection()}


def _divisor(k: int) -> int:
    return next(d for d in range(int(k**0.5), 0, -1) if k % d == 0)


def _kronecker(case: Case) -> Any:
    return lr.Kronecker.of(_divisor(case.n), _divisor(case.m))


def _kronecker_count(case: Case) -> int:
    d1, d2 = _divisor(case.n), _divisor(case.m)
    return (d1 * d2 + (case.n // d1) * (case.m // d2)) * case.layers


FORMULAS: dict[str, Formula] = {
    "LoRA": Formula(lambda c: (c.m + c.n) * c.rank * c.layers, lambda c: lr.BurerMonteiro),
    "AdaLoRA": Formula(lambda c: (c.m + c.n + 1) * c.rank * c.layers, lambda c: lr.DiagonalCore),
    "PoLAR": Formula(lambda c: (c.m + c.n + c.rank) * c.rank * c.layers, lambda c: lr.PoLAR),
    "RoSA": Formula(lambda c: ((c.m + c.n) * c.rank + c.values) * c.layers, _support),
    "FedPara": Formula(lambda c: 2 * (c.m + c.n) * c.rank * c.layers, lambda c: lr.Hadamard),
    "HiRA": Formula(lambda c: (c.m + c.n) * c.rank * c.layers, lambda c: lr.BurerMonteiro, changes=_times_base),
    "KronA": Formula(_kronecker_count, _kronecker, size=lambda c: 1),
    "CaRA, LoRTA": Formula(lambda c: (c.m + c.n + c.layers) * c.rank, lambda c: lr.CP.of(3), stacked=True),
    "LoTR": Formula(
        lambda c: (c.m + c.n) * c.rank + c.rank**2 * c.layers,
        lambda c: lr.Tucker.of(3, (0, 1)),
        size=lambda c: (c.rank, c.rank, c.layers),
        stacked=True,
    ),
    "FacT-TK": Formula(
        lambda c: (c.m + c.n + c.layers) * c.rank + c.rank**3,
        lambda c: lr.Tucker.of(3),
        size=lambda c: (c.rank,) * 3,
        stacked=True,
    ),
    "FacT-TT": Formula(
        lambda c: c.m * c.rank + c.n * c.rank**2 + c.layers * c.rank,
        lambda c: lr.TensorTrain.of(3),
        size=lambda c: (c.rank, c.rank),
        stacked=True,
    ),
    "DoRA": Formula(
        lambda c: (c.m + c.n) * c.rank * c.layers + c.n * c.layers, lambda c: lr.BurerMonteiro, changes=_magnitudes
    ),
    "VeRA": Formula(lambda c: (c.m + c.rank) * c.layers, lambda c: lr.VeRA),
    "NoLA": Formula(
        lambda c: c.terms * (c.m + c.n) * c.rank + 2 * c.terms * c.layers,
        lambda c: lr.NoLA.of(c.rank),
        size=lambda c: c.terms,
    ),
}


def trained(name: str, case: Case) -> int:
    """Parameters that train in a stack of linear layers adapted by llm_bridge with the form of that row."""
    import torch
    from torch import nn

    import llm_bridge as lb

    formula = FORMULAS[name]
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(case.m, case.n, bias=False) for _ in range(case.layers)])
    recipe = lb.recipe("lora").but("counted", form=formula.form(case), **formula.changes())
    lb.adapt(model, recipe, rank=formula.size(case))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def kronecker_shapes(case: Case) -> tuple[list[int], list[int]]:
    """Shape of X (x) Y, and the one that the table states for the same factors."""
    point = _kronecker(case).random(case.shape, 1, np.random.default_rng(0))
    (d1, d2), (d3, d4) = point.left.shape[-2:], point.right.shape[-2:]
    return list(np.kron(point.left[0], point.right[0]).shape), [d1 * d2, d3 * d4]


def vera_columns(case: Case) -> int:
    """Columns of ``diag(a) A diag(b) B^T`` with A and B as printed, both m x r, less the n that there should be."""
    a = b = np.ones((case.m, case.rank))
    return (a @ b.T).shape[1] - case.n
