"""Mixtures of experts: updates whose router chooses for every input."""

from __future__ import annotations

from ..experts import (
    AveragedPairs,
    ByDepth,
    BySample,
    ByTask,
    Contrastive,
    ExpertDropout,
    GenericExperts,
    Hard,
    KroneckerExperts,
    Limited,
    LowRankExperts,
    RandomPair,
    ScaledPairs,
    SharedInputExperts,
    Supervised,
    TaskExperts,
    ThresholdExperts,
    Top,
    TopShare,
    Typed,
)
from ..multimodal import CrossModal, Modal
from ..multiplicative import one
from ..recipe import register
from ..starts import ByArray, Constant, Fan, Segments
from ..starts.structured import Draw
from .basic import LORA
from .structured import single

GAIN = 3**-0.5  # of the layers of torch, from which LoRA has its start, too


def _zeros(axis: int = -2, **more: Draw) -> ByArray:
    """Experts that vanish, with the axis over which their inputs are multiplied, and how other arrays start."""
    return ByArray((("left", Constant(0.0)), ("right", Fan(axis, GAIN)), *more.items()))


ROUTER = Fan(-2, GAIN)


MOE_LORA = register(
    LORA.but(
        "moe-lora",
        cite="he2026unified",
        covers=("E00",),
        form=LowRankExperts,
        init=_zeros(router=ROUTER),
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
        "hydralora",
        cite="tian2024hydralora",
        covers=("E07",),
        form=SharedInputExperts,
        note="Three experts, all of which act.",
    )
)
MOKA = register(
    MOE_LORA.but(
        "moka",
        cite="sadeghi2025moka",
        covers=("P58", "E16"),
        form=KroneckerExperts,
        init=_zeros(-1, router=ROUTER),
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
        init=_zeros(),
        combine=CrossModal(),
        note="As its published code: text and one other modality; Modal.of(count) has more. Inside of "
        "modalities(model, kinds) tokens go through the factor of their kind, outside they are text.",
    )
)

MOELORA = register(
    MOE_LORA.but(
        "moelora",
        cite="luo2024moelora",
        covers=("E01",),
        form=LowRankExperts.of(8, Top(2), Contrastive()),
        note="What balancing collects is the contrast of outputs; its temperature, 0.1, is chosen here.",
    )
)
LORAMOE = register(
    MOE_LORA.but(
        "loramoe",
        cite="dou2024loramoe",
        covers=("E02",),
        form=LowRankExperts.of(8, Top(2), Typed()),
        note="Two of eight act, as in the unified study. The loss of types has the sign that moves weights to experts "
        "of the type of the sample, and needs labelled(model, types); delta, 0.1, is chosen here.",
    )
)
MOA = register(
    MOE_LORA.but(
        "moa",
        cite="feng2024mixture",
        covers=("E03",),
        form=LowRankExperts.of(4, Hard(), Supervised()),
        combine=BySample(),
        note="Reconstructed: one expert a domain for all tokens of a sample, chosen in every layer by the mean input "
        "or by labelled(model, domains), with the cross entropy of domains beside the loss.",
    )
)
ADAMOLE = register(
    MOE_LORA.but(
        "adamole",
        cite="liu2024adamole",
        covers=("E04",),
        form=ThresholdExperts,
        init=_zeros(router=ROUTER, threshold=Constant(0.0), offset=Constant(0.0)),
        note="As its published code: weights by how far probabilities are above the threshold, so that this has a "
        "gradient; the survey's equation gives it none.",
    )
)
MOLA = register(
    MOE_LORA.but(
        "mola",
        cite="gao2024mola",
        covers=("E05",),
        form=ByDepth(),
        size=ByDepth().size,
        note="The rank of a layer is its number of experts, of rank 8 each; a pattern along the depth is "
        "rank_pattern=experts_by_depth(model, counts).",
    )
)
MULTILORA = register(
    LORA.but(
        "multilora",
        cite="wang2023multilora",
        covers=("E09",),
        form=ScaledPairs,
        init=ByArray((("left", Fan(-1, GAIN)), ("right", Fan(-2, GAIN)), ("scales", Constant(0.0)))),
        note="Reconstructed: four parallel LoRAs that start at random, with one scale each that starts at zero.",
    )
)
SIRA = register(
    MOE_LORA.but(
        "sira",
        cite="zhu2023sira",
        covers=("E10",),
        combine=Limited(),
        noise=ExpertDropout,
        note="Reconstructed: two of eight act, an expert takes at most 1.25 times its share of tokens in training, and "
        "dropout= is that of the router's scores.",
    )
)
MTLORA = register(
    LORA.but(
        "mtlora",
        cite="agiza2024mtlora",
        covers=("E11",),
        form=TaskExperts,
        init=_zeros(),
        combine=ByTask(),
        note="Reconstructed: a common pair for all samples, and one for the task that labelled(model, tasks) names. "
        "TaskExperts.of(count) has more tasks.",
    )
)
MLORE = register(
    MOE_LORA.but(
        "mlore",
        cite="yang2024mlore",
        covers=("E12",),
        form=GenericExperts,
        note="Reconstructed: a common path beside four experts, of which two act; in the source a convolution with "
        "experts of several ranks and a router for every task.",
    )
)
LLAVA_MOLE = register(
    MOE_LORA.but(
        "llava-mole",
        cite="chen2024llavamole",
        covers=("E13",),
        form=LowRankExperts.of(4, Top(1)),
        note="Reconstructed: one of four experts acts on a token, weighted by its probability, from which the router "
        "learns. Made for the layers between attentions: targets=['gate_proj', 'up_proj', 'down_proj'].",
    )
)
ADAMIX = register(
    LORA.but(
        "adamix",
        cite="wang2022adamix",
        covers=("E19",),
        form=AveragedPairs,
        init=_zeros(),
        combine=RandomPair(),
        note="Reconstructed: in training one of four A and one of four B at random, otherwise, and where it is merged, "
        "their means. consistency(logits, logits) of two passes belongs beside the loss.",
    )
)
