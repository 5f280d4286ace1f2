"""The published variants, each as its difference from another one."""

from . import basic, forms, rules, starts
from .forms import Heads, per_head

__all__ = ["Heads", "basic", "forms", "per_head", "rules", "starts"]
