"""llm_bridge: fine-tune transformers with the parameterizations and update rules of lowrank_sp."""

from . import recipes as _registered  # noqa: F401
from . import starts
from .adapter import Adapted, Adapter
from .allocate import ranks_by_importance, ranks_by_variance
from .calibrate import collect, importance, most_important
from .checkpoint import describe, load, save
from .combines import Additive, Cheaper, Combine, Formed, MagnitudeDirection, OneSided, Placed, TimesBase, Waves
from .experts import balancing
from .export import export_lora
from .finetune import FinetuneResult, finetune
from .inject import adapt, adapted, drop, setups, unload
from .interchange import load_peft, save_peft
from .life import MergeReport, activate, disable, merge, route, unmerge
from .loftq import LoftQReport, loftq
from .noise import InputDropout, ModuleDropout, Noise, RankDropout
from .optimizer import LowRankOptimizer, optimizer
from .paths import close_paths, open_paths
from .policies import (
    Budget,
    Growing,
    HardConcreteGates,
    Importance,
    NestedRanks,
    NormShare,
    Pruning,
    RankPolicy,
    SelectionWeights,
    Sensitivity,
    adalora,
    dynamic_components,
    with_leading_ranks,
)
from .quantizers import NormalFloat, Quantizer, Uniform
from .recipe import (
    RECIPES,
    Recipe,
    by_block,
    by_shape,
    by_type,
    everywhere,
    over_rank,
    over_root_rank,
    recipe,
    recipes,
    register,
    unscaled,
)
from .recipes import Heads, per_head
from .sites import Site, find_sites
from .starts import Default, Principal, Start, StartSite
from .steps import (
    Beside,
    Companion,
    DeltaLoRA,
    InWeights,
    Keep,
    Phases,
    PrivateSteps,
    RestartReport,
    Restarts,
    SharpnessAware,
    TaskDirections,
    ZerothOrder,
    chain_of_lora,
    forget,
    jagged,
    periodic_lora,
    relora,
    xgblora,
)
from .summary import SiteSummary, Summary, summary
from .trainer import optimizer_factory, without_gradient
from .training.options import FinetuneOptions
from .truncation import TruncationReport

# After everything else: the function has the name of the module with the ways of combining.
from .combination import combine  # isort: skip

__all__ = [
    "RECIPES",
    "Adapted",
    "Adapter",
    "Additive",
    "Beside",
    "Budget",
    "Cheaper",
    "Combine",
    "Companion",
    "Default",
    "DeltaLoRA",
    "FinetuneOptions",
    "FinetuneResult",
    "Formed",
    "Growing",
    "HardConcreteGates",
    "Heads",
    "Importance",
    "InWeights",
    "InputDropout",
    "Keep",
    "LoftQReport",
    "LowRankOptimizer",
    "MagnitudeDirection",
    "MergeReport",
    "ModuleDropout",
    "NestedRanks",
    "Noise",
    "NormShare",
    "NormalFloat",
    "OneSided",
    "Phases",
    "Placed",
    "Principal",
    "PrivateSteps",
    "Pruning",
    "Quantizer",
    "RankDropout",
    "RankPolicy",
    "Recipe",
    "RestartReport",
    "Restarts",
    "SelectionWeights",
    "Sensitivity",
    "SharpnessAware",
    "Site",
    "SiteSummary",
    "Start",
    "StartSite",
    "Summary",
    "TaskDirections",
    "TimesBase",
    "TruncationReport",
    "Uniform",
    "Waves",
    "ZerothOrder",
    "activate",
    "adalora",
    "adapt",
    "adapted",
    "balancing",
    "by_block",
    "by_shape",
    "by_type",
    "chain_of_lora",
    "close_paths",
    "collect",
    "combine",
    "describe",
    "disable",
    "drop",
    "dynamic_components",
    "everywhere",
    "export_lora",
    "find_sites",
    "finetune",
    "forget",
    "importance",
    "jagged",
    "load",
    "load_peft",
    "loftq",
    "merge",
    "most_important",
    "open_paths",
    "optimizer",
    "optimizer_factory",
    "over_rank",
    "over_root_rank",
    "per_head",
    "periodic_lora",
    "ranks_by_importance",
    "ranks_by_variance",
    "recipe",
    "recipes",
    "register",
    "relora",
    "route",
    "save",
    "save_peft",
    "setups",
    "starts",
    "summary",
    "unload",
    "unmerge",
    "unscaled",
    "with_leading_ranks",
    "without_gradient",
    "xgblora",
]
