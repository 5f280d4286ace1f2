"""What acts around the steps of an optimizer: restarts, moving weights, other gradients; saved and resumed with it."""

from .companion import Companion
from .compressed import CompressedAdamW, LeadingVectors, Projection, RandomVectors, galore, random_compression
from .delta import DeltaLoRA
from .directions import TaskDirections
from .fixed_rank import FixedRankSteps
from .forget import forget
from .keep import Beside, InWeights, Keep
from .private import PrivateSteps
from .restarts import Phases, RestartReport, Restarts, chain_of_lora, jagged, periodic_lora, relora, xgblora
from .scaling import ColumnScaling, best_scales
from .sharpness import SharpnessAware
from .zeroth import ZerothOrder

__all__ = [
    "Beside",
    "ColumnScaling",
    "Companion",
    "CompressedAdamW",
    "DeltaLoRA",
    "FixedRankSteps",
    "InWeights",
    "Keep",
    "LeadingVectors",
    "Phases",
    "PrivateSteps",
    "Projection",
    "RandomVectors",
    "RestartReport",
    "Restarts",
    "SharpnessAware",
    "TaskDirections",
    "ZerothOrder",
    "best_scales",
    "chain_of_lora",
    "forget",
    "galore",
    "jagged",
    "periodic_lora",
    "random_compression",
    "relora",
    "xgblora",
]
