"""Updates of several experts, of which a router, labels or chance choose."""

from .balance import Balance, BalancedLoss, balanced_loss, balancing
from .dispatch import BySample, ByTask, Dispatch, ExpertDropout, Limited, TaskExperts, labelled
from .forms import GenericExperts, KroneckerExperts, LowRankExperts, SharedInputExperts, ThresholdExperts
from .fusion import OutputExperts, fuse, gated_fusion, mole
from .gates import Gate, Hard, Soft, Top, TopShare
from .layerwise import ByDepth, experts_by_depth
from .losses import Auxiliary, Contrastive, Even, Shares, Supervised, Typed
from .parallel import AveragedPairs, RandomPair, ScaledPairs, consistency
from .routed import Gated, Routed

__all__ = [
    "Auxiliary",
    "AveragedPairs",
    "Balance",
    "BalancedLoss",
    "ByDepth",
    "BySample",
    "ByTask",
    "Contrastive",
    "Dispatch",
    "Even",
    "ExpertDropout",
    "Gate",
    "Gated",
    "GenericExperts",
    "Hard",
    "KroneckerExperts",
    "Limited",
    "LowRankExperts",
    "OutputExperts",
    "RandomPair",
    "Routed",
    "ScaledPairs",
    "SharedInputExperts",
    "Shares",
    "Soft",
    "Supervised",
    "TaskExperts",
    "ThresholdExperts",
    "Top",
    "TopShare",
    "Typed",
    "balanced_loss",
    "balancing",
    "consistency",
    "experts_by_depth",
    "fuse",
    "gated_fusion",
    "labelled",
    "mole",
]
