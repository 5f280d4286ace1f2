"""The published variants, each as its difference from another one."""

from . import (
    basic,
    bishared,
    convolutions,
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
from .forms import Heads, per_head
from .shared import bslora_of, rasa_of

__all__ = [
    "Heads",
    "basic",
    "bishared",
    "bslora_gate_of",
    "bslora_kronecker_of",
    "bslora_of",
    "convolutions",
    "experts",
    "flora_conv_of",
    "forms",
    "multiplied",
    "nonlinear",
    "per_head",
    "quantized",
    "rasa_of",
    "rules",
    "shared",
    "starts",
    "structured",
    "tensors",
]
