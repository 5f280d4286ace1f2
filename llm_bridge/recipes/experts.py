"""Mixtures of experts: updates whose router chooses for every input."""

from __future__ import annotations

from ..experts import KroneckerExperts, LowRankExperts, SharedInputExperts, TopShare
from ..multimodal import CrossModal, Modal
from ..multiplicative import one
from ..recipe import register
from ..starts import ByArray, Constant, Fan, Segments
from .basic import LORA
from .structured import single

GAIN = 3**-0.5  # of the layers of torch, from which LoRA has its start, too


def _zeros(axis: int) -> ByArray:
    """Experts that vanish, with the axis over which their inputs are multiplied."""
    return ByArray((("left", Constant(0.0)), ("right", Fan(axis, GAIN)), ("router", Fan(-2, GAIN))))


MOE_LORA = register(
    LORA.but(
        "moe-lora",
        cite="he2026unified",
        form=LowRankExperts,
        init=_zeros(-2),
        note="Eight experts of the rank each, of which two act; form=LowRankExperts.of(count, Top(k)) are others, and "
        "`balancing` gives the balance loss.",
    )
)
GOAT = register(
    MOE_LORA.but(
        "goat",
        cite="fan2025goat",
        covers=("I09", "E06"),
        form=LowRankExperts.of(8, TopShare(2)),
        init=Segments(),
        note="As its published code, with weights of two experts that add up to one; the start is subtracted with its "
        "routing. The derived scale is alpha = sqrt(3 eta n r) for layers with n inputs.",
    )
)
HYDRALORA = register(
    MOE_LORA.but(
        "hydralora", cite="tian2024hydralora", form=SharedInputExperts, note="Three experts, all of which act."
    )
)
MOKA = register(
    MOE_LORA.but(
        "moka",
        cite="sadeghi2025moka",
        covers=("P58",),
        form=KroneckerExperts,
        init=_zeros(-1),
        size=single,
        scale=one,
        note="Reconstructed, since the sources only name it: four Kronecker products with the sides of 'krona', "
        "weighted by a softmax of the input. Not the multimodal method of the same name.",
    )
)
MOKA_MULTIMODAL = register(
    LORA.but(
        "moka-multimodal",
        cite="wei2025moka",
        covers=("P110", "E14"),
        form=Modal,
        init=ByArray((("left", Constant(0.0)), ("right", Fan(-2, GAIN)))),
        combine=CrossModal(),
        note="As its published code: text and one other modality; Modal.of(count) has more. Inside of "
        "modalities(model, kinds) tokens go through the factor of their kind, outside they are text.",
    )
)
