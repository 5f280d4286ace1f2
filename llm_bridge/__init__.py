"""llm_bridge: fine-tune transformers with the parameterizations and update rules of lowrank_sp."""

from . import recipes as _registered  # noqa: F401
from . import starts
from .adapter import Adapted, Adapter
from .calibrate import collect, importance, most_important
from .checkpoint import describe, load, save
from .combine import Additive, Combine, Formed, MagnitudeDirection, TimesBase
from .export import export_lora
from .finetune import FinetuneResult, finetune
from .inject import adapt, adapted, drop, setups, unload
from .interchange import load_peft, save_peft
from .life import MergeReport, activate, disable, merge, route, unmerge
from .noise import InputDropout, ModuleDropout, Noise, RankDropout
from .optimizer import LowRankOptimizer, optimizer
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
    "Combine",
    "Formed",
    "Default",
    "FinetuneOptions",
    "FinetuneResult",
    "Heads",
    "InputDropout",
    "LowRankOptimizer",
    "MagnitudeDirection",
    "MergeReport",
    "ModuleDropout",
    "Noise",
    "Principal",
    "RankDropout",
    "Recipe",
    "Site",
    "SiteSummary",
    "Start",
    "StartSite",
    "Summary",
    "TruncationReport",
    "TimesBase",
    "activate",
    "adapt",
    "adapted",
    "by_block",
    "by_shape",
    "by_type",
    "collect",
    "combine",
    "describe",
    "disable",
    "drop",
    "export_lora",
    "everywhere",
    "find_sites",
    "finetune",
    "importance",
    "load",
    "load_peft",
    "merge",
    "most_important",
    "optimizer",
    "optimizer_factory",
    "over_rank",
    "over_root_rank",
    "per_head",
    "recipe",
    "recipes",
    "register",
    "route",
    "save",
    "save_peft",
    "setups",
    "starts",
    "summary",
    "unload",
    "unmerge",
    "unscaled",
    "without_gradient",
]
