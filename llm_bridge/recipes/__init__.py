"""The published variants, each as its difference from another one."""

from . import (
    basic,
    bishared,
    convolutions,
    divided,
    experts,
    forms,
    multiplied,
    nonlinear,
    quantized,
    rules,
    shared,
    starts,
    structured,
    tensors,
)
from .bishared import bslora_gate_of, bslora_kronecker_of
from .convolutions import flora_conv_of
from .divided import Divided, ralora_of
from .forms import Heads, per_head
from .shared import bslora_of, rasa_of

__all__ = [
    "Divided",
    "Heads",
    "basic",
    "bishared",
    "bslora_gate_of",
    "bslora_kronecker_of",
    "bslora_of",
    "convolutions",
    "divided",
    "experts",
    "flora_conv_of",
    "forms",
    "multiplied",
    "nonlinear",
    "per_head",
    "ralora_of",
    "quantized",
    "rasa_of",
    "rules",
    "shared",
    "starts",
    "structured",
    "tensors",
]
