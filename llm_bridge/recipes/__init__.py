"""The published variants, each as its difference from another one."""

from . import basic, forms, multiplied, nonlinear, rules, shared, starts, structured, tensors
from .forms import Heads, per_head
from .shared import bslora_of, rasa_of

__all__ = [
    "Heads",
    "basic",
    "bslora_of",
    "forms",
    "multiplied",
    "nonlinear",
    "per_head",
    "rasa_of",
    "rules",
    "shared",
    "starts",
    "structured",
    "tensors",
]
