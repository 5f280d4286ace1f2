"""Convex and thresholding baselines: solvers like all others, run by `lowrank_sp.solve`."""

from collections.abc import Callable
from typing import Any

from .admm import ADMM, RobustADMM
from .conditional import FrankWolfe, RankOnePursuit
from .grassmann import GrassmannTucker
from .pursuit import PCP
from .shrinkage import APG, SVT, SoftImpute
from .tensor import CPALS, HOOI, TTSVD
from .tensor_power import PowerDeflation
from .thresholding import NIHT, SVP

__all__ = [
    "ADMM",
    "APG",
    "BASELINES",
    "CPALS",
    "HOOI",
    "NIHT",
    "PCP",
    "SVP",
    "SVT",
    "TENSOR_BASELINES",
    "TTSVD",
    "FrankWolfe",
    "GrassmannTucker",
    "PowerDeflation",
    "RankOnePursuit",
    "RobustADMM",
    "SoftImpute",
]

BASELINES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (SoftImpute, APG, SVT, SVP, NIHT, ADMM, PCP, RobustADMM)
}
TENSOR_BASELINES: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (CPALS, HOOI, TTSVD, PowerDeflation, GrassmannTucker)
}
