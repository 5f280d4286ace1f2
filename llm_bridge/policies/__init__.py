"""Policies of ranks: which components of the updates may act, decided while the model trains."""

from .ablation import ablation, reallocated
from .base import Budget, RankPolicy
from .gates import HardConcreteGates
from .growing import Growing
from .importance import Importance, NormShare, Sensitivity
from .nested import NestedRanks, Truncated, with_leading_ranks
from .pruning import Pruning, adalora, dynamic_components
from .selection import SelectionWeights

__all__ = [
    "Budget",
    "Growing",
    "HardConcreteGates",
    "Importance",
    "NestedRanks",
    "NormShare",
    "Pruning",
    "RankPolicy",
    "SelectionWeights",
    "Sensitivity",
    "Truncated",
    "ablation",
    "adalora",
    "dynamic_components",
    "reallocated",
    "with_leading_ranks",
]
