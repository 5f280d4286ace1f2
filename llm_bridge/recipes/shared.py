"""Updates with arrays that layers share: trained ones, and fixed random ones."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from lowrank_sp.parameterizations import BSLoRA, Core, NoLA, RandLoRA, RaSA, TiedLoRA, VeRA

from ..bank import VectorBank
from ..combines import Composed, OneSided
from ..multiplicative import one
from ..recipe import Recipe, by_block, by_shape, by_type, everywhere, register
from ..sites import Site, find_sites, layer_index
from ..starts import ByArray, Constant, Fan, Normal, SubtractedByArray, VanishingZeros
from .basic import LORA

__all__ = ["bslora_of", "by_bank", "by_block_and_shape", "by_inputs", "by_outputs", "by_shorter_side", "rasa_of"]


def by_inputs(site: Site) -> Hashable:
    """Shared by layers with as many inputs."""
    return site.shape[1]


def by_outputs(site: Site) -> Hashable:
    """Shared by layers with as many outputs."""
    return site.shape[0]


def by_shorter_side(site: Site) -> Hashable:
    """Shared by layers whose shorter sides are equal."""
    return min(site.shape)


def by_block_and_shape(site: Site) -> Hashable:
    """Shared by the layers of one block that have the same shape."""
    return by_block(site), site.shape


def by_bank(site: Site) -> Hashable:
    """Shared by layers whose pieces of vectors have one length."""
    return VectorBank.for_shape(site.shape).settings


# trained -----------------------------------------------------------------------------------------------------
SHARELORA = register(
    LORA.but(
        "sharelora",
        cite="song2024sharelora",
        covers=("P60",),
        shares=(("right", by_inputs),),
        note="One A for all layers with as many inputs; the source cuts one A to every number of inputs.",
    )
)
SHARELORA_B = register(
    SHARELORA.but("sharelora-b", shares=(("left", by_outputs),), note="One B for all layers with as many outputs.")
)
SHARELORA_BOTH = register(
    SHARELORA.but(
        "sharelora-both",
        covers=("P60",),
        shares=(("left", by_shape), ("right", by_shape)),
        note="One update for all layers of a shape.",
    )
)
DENSELORA = register(
    LORA.but(
        "denselora",
        cite="mu2025denselora",
        covers=("P28",),
        form=Core,
        init=ByArray((("left", Fan(-1)), ("core", Constant(0.0)), ("right", Fan(-2)))),
        shares=(("left", by_type), ("right", by_type)),
        note="Outer factors for all layers of a type, a core for each. Meant for large ranks.",
    )
)
TIED_LORA = register(
    LORA.but(
        "tied-lora",
        cite="renduchintala2024tied",
        covers=("P62",),
        form=TiedLoRA,
        init=ByArray((("scales", Constant(0.0)), ("left", Fan(-1)), ("values", Constant(1.0)), ("right", Fan(-2)))),
        shares=(("left", by_type), ("right", by_type)),
        note="All four arrays train; the configurations with fixed ones are trains=(...).",
    )
)
RASA = register(
    LORA.but(
        "rasa",
        cite="he2025rasa",
        covers=("P63",),
        form=RaSA.of(1, 32),
        combine=Composed(),
        init=VanishingZeros(),
        shares=(("left_pool", by_type), ("right_pool", by_type)),
        note="A pool of 32 columns for the layers of a type, one rank of each of 32 layers; rasa_of(model) counts the "
        "blocks of a model. The diagonal starts at zero.",
    )
)
BSLORA = register(
    LORA.but(
        "bslora",
        cite="zhou2025bslora",
        covers=("P64",),
        form=BSLoRA,
        combine=Composed(),
        init=VanishingZeros(),
        shares=(
            ("left_layer", by_block_and_shape),
            ("right_layer", by_block_and_shape),
            ("left_model", by_shape),
            ("right_model", by_shape),
        ),
        note="Shared among layers of one shape; bslora_of(model) has one pair for all shapes, cut to size. The other "
        "published transforms are 'bslora-gate' and 'bslora-kronecker'. The published factor 2 is alpha = 2 rank.",
    )
)
VB_LORA = register(
    LORA.but(
        "vb-lora",
        cite="li2024vblora",
        covers=("P65",),
        form=VectorBank,
        init=SubtractedByArray((("left_logits", Normal(0.1)), ("right_logits", Normal(0.1)), ("bank", Normal(0.02)))),
        shares=(("bank", by_bank),),
        scale=one,
        note="Reconstructed. The source does not start at the pretrained model; here the start is subtracted. Layers "
        "whose pieces differ in length have banks of their own.",
    )
)


def _blocks(model: Any) -> int:
    """How many blocks the layers of a model lie in."""
    return max(1, len({layer_index(model, site.name) for site in find_sites(model)} - {None}))


def rasa_of(model: Any, pooled: int = 1) -> Recipe:
    """The recipe ``"rasa"`` with ``pooled`` ranks of every block of a model in the pool."""
    blocks = _blocks(model)
    form = RaSA.of(pooled, blocks)
    return RASA.but(f"rasa-{pooled}-of-{blocks}", covers=RASA.covers, form=form, note=RASA.note)


def bslora_of(model: Any) -> Recipe:
    """The recipe ``"bslora"`` with shared factors of the largest sides in a model, cut to the size of every layer."""
    rows, cols = (max(site.shape[k] for site in find_sites(model)) for k in (0, 1))
    shares = tuple(
        (f"{side}_{scope}", key)
        for scope, key in (("layer", by_block), ("model", everywhere))
        for side in ("left", "right")
    )
    return BSLORA.but(
        f"bslora-{rows}-{cols}", covers=BSLORA.covers, form=BSLoRA.of(rows, cols), shares=shares, note=BSLORA.note
    )


# fixed -------------------------------------------------------------------------------------------------------
VERA = register(
    LORA.but(
        "vera",
        cite="kopiczko2024vera",
        covers=("P61", "I27"),
        form=VeRA,
        combine=OneSided(),
        init=ByArray(
            (
                ("scales", Constant(0.0)),
                ("left", Fan(-1, 2**0.5)),
                ("values", Constant(0.1)),
                ("right", Fan(-2, 2**0.5)),
            )
        ),
        shares=(("left", everywhere), ("right", everywhere)),
        note="Meant for large ranks, such as 256.",
    )
)
RANDLORA = register(
    LORA.but(
        "randlora",
        cite="albert2025randlora",
        covers=("P53", "I26"),
        form=RandLoRA,
        combine=OneSided(),
        init=ByArray((("scales", Fan(-1)), ("values", Constant(0.0)), ("shared", Normal()), ("bases", Fan(-2, 2.0)))),
        shares=(("shared", by_shorter_side), ("bases", by_shorter_side)),
        note="Bases for the whole of the shorter side; form=RandLoRA.of(1024) bounds them as the survey does. The "
        "factor 2 / sqrt(number of bases) is in the bases.",
    )
)


def _nola(shape: tuple[int, int], rank: int) -> type[NoLA]:
    """The form with matrices of the rank."""
    return NoLA.of(rank)


def _bases(shape: tuple[int, int], rank: int) -> int:
    """The number of bases of NoLA."""
    return 64


NOLA = register(
    LORA.but(
        "nola",
        cite="koohpayegani2024nola",
        covers=("P68",),
        form=_nola,
        size=_bases,
        init=ByArray(
            (
                ("left", Constant(0.0)),
                ("left_bases", Fan(-3)),
                ("right", Normal()),
                ("right_bases", Fan(-2)),
            )
        ),
        shares=(("left_bases", everywhere), ("right_bases", everywhere)),
        note="64 bases of every factor, chosen here; size= is another number.",
    )
)
