"""Starts for forms with many arrays: each by a rule of its own, fixed bases from the weight, and supports."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_sp.coverage import covers
from lowrank_sp.parameterizations import BurerMonteiro, largest_support

from .base import Start, StartSite
from .random import Default
from .spectrum import dominant_svd

__all__ = [
    "ByArray",
    "ColumnsOfWeight",
    "Constant",
    "Fan",
    "GradientPlaces",
    "LargestPlaces",
    "Normal",
    "NormedDirections",
    "SingularFrame",
    "SubtractedByArray",
    "TriangularFrame",
    "VanishingZeros",
    "WeightCore",
]


@dataclass(frozen=True)
class Constant:
    """All entries equal."""

    value: float

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal:
    """Entries ``N(0, std^2)``."""

    std: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return self.std * rng.standard_normal(shape)


@dataclass(frozen=True)
class Fan:
    """Entries ``N(0, gain^2 / k)`` with k the length of an axis, over which the array is multiplied."""

    axis: int = -2
    gain: float = 1.0

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return self.gain * rng.standard_normal(shape) / shape[self.axis] ** 0.5


Draw = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


@covers("I14", "I26", "I27")
@dataclass(frozen=True)
class ByArray(Start):
    """Every array by its own rule: `Constant`, `Normal`, `Fan`.

    VeRA has zeros and 0.1 in its vectors and Kaiming-normal matrices; RandLoRA zeros in the middle, small numbers
    outside and standard normal bases; LoHa and LoRAs with shared factors have theirs.

    Parameters
    ----------
    draws : tuple of (str, rule)
        By the names of the arrays; what is not named is drawn as the form does.
    """

    draws: tuple[tuple[str, Draw], ...]

    def __call__(self, site):
        form, rules = site.form.for_shape(site.shape), dict(self.draws)
        unknown = sorted(rules.keys() - set(form.names))
        if unknown:
            raise TypeError(f"{site.form.__name__} has no {', '.join(unknown)}; it has {', '.join(form.names)}")
        arrays = dict(zip(form.names, form.shapes(site.shape, site.rank), strict=True))
        drawn = {} if arrays.keys() <= rules.keys() else _by_name(form.random(site.shape, site.rank, site.rng))
        for name, shape in arrays.items():
            if name in site.given:
                drawn[name] = np.zeros(shape)
            elif name in rules:
                drawn[name] = rules[name](shape, site.rng)
        return form(*[torch.as_tensor(drawn[name], device=site.weight().device) for name in form.names])


def _by_name(point: Any) -> dict[str, np.ndarray]:
    return dict(zip(point.names, point.arrays(), strict=True))


@dataclass(frozen=True)
class SubtractedByArray(ByArray):
    """`ByArray` where the update does not vanish, so that it is subtracted."""

    moves = True


@dataclass(frozen=True)
class VanishingZeros(Start):
    """`Default` for forms in which several arrays have to vanish: all that the form names do."""

    def __call__(self, site):
        point = Default()(site)
        zeros = [0 * a if name in site.form.zeros else a for name, a in zip(point.names, point.arrays(), strict=True)]
        return type(point)(*zeros)


# from the weight ---------------------------------------------------------------------------------------------


@covers("I11", "I10")
@dataclass(frozen=True)
class SingularFrame(Start):
    """Leading singular vectors of W as fixed outer factors, of an update that vanishes.

    For LoRA-XS, SVFit, SVFT and nested NoRA. The published methods start at the singular values themselves and keep
    what remains of W; the difference to them, which is what trains here, starts at zero.

    Parameters
    ----------
    power : float
        The left vectors are multiplied with the singular values to this power: 1 for LoRA-XS.

    Notes
    -----
    Source: :cite:`balazy2024loraxs`, :cite:`sun2024svfit`, :cite:`lingam2024svft`, :cite:`lin2024nora`.
    """

    power: float = 0.0

    def __call__(self, site):
        # All of them where as many are asked for: the range finder serves few.
        u, s, v = dominant_svd(site.weight(), site.rank, site.rng)
        drawn = VanishingZeros()(site)
        frame = {"left": u * s**self.power, "right": v}
        arrays = zip(drawn.names, drawn.arrays(), strict=True)
        return type(drawn)(*[frame.get(name, a) for name, a in arrays])


@covers("I11")
@dataclass(frozen=True)
class TriangularFrame(Start):
    """The first columns of ``P L`` and rows of U of a pivoted ``W = P L D U``, of an update that vanishes: LoLDU.

    U has ones on its diagonal; rows whose pivot vanishes are left as they are. Source: :cite:`shi2024loldu`, which
    the surveys only name; its further scalar, which can be absorbed, is left out.
    """

    def __call__(self, site):
        site.require("left", "values", "right")
        p, lower, upper = torch.linalg.lu(site.weight())
        rows, pivots = upper[: site.rank], upper.diagonal()[: site.rank]
        safe = torch.where(pivots.abs() > torch.finfo(pivots.dtype).eps * pivots.abs().max(), pivots, 1.0)
        return site.form((p @ lower)[:, : site.rank], torch.zeros_like(safe), (rows / safe[:, None]).mT)


@covers("I11")
@dataclass(frozen=True)
class WeightCore(Start):
    """The leading part of W with its singular values as the core, ``s F = U_r diag(S_r) V_r^T``: LaMDA.

    Source: :cite:`azizi2024lamda`, which the surveys only name.
    """

    moves = True

    def __call__(self, site):
        site.require("left", "core", "right")
        u, s, v = dominant_svd(site.weight(), site.rank, site.rng)
        return site.form(u, torch.diag(s / site.scale), v)


@covers("I24")
@dataclass(frozen=True)
class NormedDirections(Start):
    """Random directions and a strength, with the norms of the columns of W: DeLoRA.

    Parameters
    ----------
    strength : float
        Of the update; 8 in the experiments of the survey.

    Notes
    -----
    The update does not vanish, so it is subtracted. Source: :cite:`bini2025delora`; :cite:`he2026unified`.
    """

    strength: float = 8.0
    moves = True

    def __call__(self, site):
        m, n = site.shape
        left, right = site.uniform(site.rank**-0.5, m, site.rank), site.uniform(n**-0.5, n, site.rank)
        return site.form(left, right, left.new_full((1,), self.strength), site.weight().norm(dim=0))


# supports ----------------------------------------------------------------------------------------------------


class _Places(Start):
    """`VanishingZeros` with fixed places chosen from a matrix."""

    @abstractmethod
    def scores(self, site: StartSite) -> Tensor:
        """Where the largest magnitudes of this matrix (out, in) are, values are free."""

    def __call__(self, site):
        point = VanishingZeros()(site)
        places = largest_support(self.scores(site).cpu(), point.values.shape[-1])
        return _replaced(point, "places", places)


@dataclass(frozen=True)
class LargestPlaces(_Places):
    """The places of the largest entries of W: SHiRA by weight magnitude. Source: :cite:`bhardwaj2024shira`."""

    def scores(self, site):
        return site.weight()


@dataclass(frozen=True)
class GradientPlaces(_Places):
    """The places of the largest entries of the gradient: RoSA. Source: :cite:`nikdan2024rosa`.

    The source adds up squared gradients of single samples; here it is the gradient of the calibration batches.
    """

    needs = "gradients"

    def scores(self, site):
        g = site.statistic
        return g.dense() if isinstance(g, BurerMonteiro) else g


@dataclass(frozen=True)
class ColumnsOfWeight(Start):
    """The columns of W that a rank-r approximation leaves the most of: LOST. Source: :cite:`li2025lost`."""

    def __call__(self, site):
        point, weight = VanishingZeros()(site), site.weight()
        _, s, v = dominant_svd(weight, min(site.rank, *site.shape), site.rng)
        left_over = weight.square().sum(0) - (v * s).square().sum(1)
        chosen = left_over.argsort(descending=True)[: point.columns.shape[-1]].sort().values
        return _replaced(point, "columns", chosen.cpu().numpy())


def _replaced(point: Any, name: str, index: np.ndarray) -> Any:
    """The point with another fixed array of integers."""
    number = point.names.index(name)
    return point.with_array(number, torch.as_tensor(index, device=point.arrays()[number].device))
