"""The table of methods that PEFT and the bridge both have."""

from __future__ import annotations

from .base import Method
from .bases import MiSS, RandLoRA
from .lowrank import AdaLoRA, HiRA, LoHa, LoRA
from .multiplied import BOFT, HRA, OFT, DeLoRA, VBLoRA
from .structured import FourierFT, GraLoRA, LoKr, SHiRA, VeRA

__all__ = ["METHODS"]

METHODS: dict[str, Method] = {
    method.peft_type: method
    for method in (
        LoRA(),
        HiRA(),
        AdaLoRA(),
        LoHa(),
        LoKr(),
        VeRA(),
        GraLoRA(),
        SHiRA(),
        FourierFT(),
        OFT(),
        BOFT(),
        HRA(),
        DeLoRA(),
        VBLoRA(),
        RandLoRA(),
        MiSS(),
    )
}
