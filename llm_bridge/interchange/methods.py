"""The table of methods that PEFT and the bridge both have."""

from __future__ import annotations

from .base import Method
from .lowrank import AdaLoRA, HiRA, LoHa, LoRA
from .structured import FourierFT, GraLoRA, LoKr, SHiRA, VeRA

__all__ = ["METHODS"]

METHODS: dict[str, Method] = {
    method.peft_type: method
    for method in (LoRA(), HiRA(), AdaLoRA(), LoHa(), LoKr(), VeRA(), GraLoRA(), SHiRA(), FourierFT())
}
