"""What acts around the steps of an optimizer: restarts, moving weights, other gradients; saved and resumed with it."""

from .companion import Companion
from .delta import DeltaLoRA
from .directions import TaskDirections
from .forget import forget
from .keep import Beside, InWeights, Keep
from .private import PrivateSteps
from .restarts import Phases, RestartReport, Restarts, chain_of_lora, jagged, periodic_lora, relora, xgblora
from .sharpness import SharpnessAware
from .zeroth import ZerothOrder

__all__ = [
    "Beside",
    "Companion",
    "DeltaLoRA",
    "InWeights",
    "Keep",
    "Phases",
    "PrivateSteps",
    "RestartReport",
    "Restarts",
    "SharpnessAware",
    "TaskDirections",
    "ZerothOrder",
    "chain_of_lora",
    "forget",
    "jagged",
    "periodic_lora",
    "relora",
    "xgblora",
]
