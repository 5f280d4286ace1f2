"""Variants whose factors know the size of the kernel of a convolution."""

from __future__ import annotations

from lowrank_sp.parameterizations import ConvTucker

from ..recipe import Recipe, register
from ..starts import ByArray, Constant, Fan
from .basic import LORA

__all__ = ["flora_conv_of"]

FLORA_CONV = register(
    LORA.but(
        "flora-conv",
        cite="si2024flora",
        covers=("P30",),
        form=ConvTucker,
        init=ByArray(
            (
                ("core", Constant(0.0)),
                ("left", Fan(-1)),
                ("inputs", Fan(-2)),
                ("rows", Fan(-1)),
                ("cols", Fan(-1)),
            )
        ),
        note="A core space of kernels, as it stands for those of size one, such as matrices; flora_conv_of(h, w) is "
        "for others. The core starts at zero.",
    )
)


def flora_conv_of(height: int, width: int) -> Recipe:
    """The recipe ``"flora-conv"`` for convolutions with kernels of a size; ``height`` is 1 for ``nn.Conv1d``."""
    form = ConvTucker.of(height, width)
    return FLORA_CONV.but(f"flora-conv-{height}x{width}", covers=FLORA_CONV.covers, form=form, note=FLORA_CONV.note)
