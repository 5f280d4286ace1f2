"""Variants made for quantized weights: what their updates look like; the quantizers are those of the base model."""

from __future__ import annotations

from lowrank_sp.parameterizations import Elastic, GroupedInputs

from ..recipe import register
from ..starts import ByArray, Constant, Fan
from .basic import LORA

GROUP = 32  # columns that share a zero point, as in the published experiments


def _grouped(shape: tuple[int, int], rank: int) -> type[GroupedInputs]:
    """The form with the largest groups up to 32 that divide the inputs into as many groups as ranks."""
    sizes = range(min(GROUP, shape[1] // rank), 0, -1)
    return GroupedInputs.of(next(g for g in sizes if shape[1] % g == 0))


QA_LORA = register(
    LORA.but(
        "qa-lora",
        cite="xu2024qalora",
        covers=("P113",),
        form=_grouped,
        note="Reconstructed. Groups of 32 inputs, or the largest number below that divides them; "
        "form=GroupedInputs.of(g) are those of a quantizer, into whose zero points the update then goes. To write "
        "the zero points is up to the format.",
    )
)
IR_QLORA = register(
    LORA.but(
        "ir-qlora",
        cite="qin2024irqlora",
        covers=("P114",),
        form=Elastic,
        init=ByArray(
            (("left", Constant(0.0)), ("right", Fan(-2)), ("outputs", Constant(0.0)), ("inputs", Constant(0.0)))
        ),
        note="Reconstructed: the elastic connection. The quantizer of the same method is not part of the adapter.",
    )
)
