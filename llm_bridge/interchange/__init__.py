"""Adapters in PEFT's file format, which the ecosystem reads: in both directions, one table entry for each method."""

from .base import Method
from .methods import METHODS
from .peft_format import load_peft, save_peft

__all__ = ["METHODS", "Method", "load_peft", "save_peft"]
