"""Updates with the structure of products, blocks, supports and fixed bases, layer by layer."""

from __future__ import annotations

from lowrank_sp.parameterizations import (
    SVD,
    BlockDiagonal,
    BlockGrid,
    Core,
    DeLoRA,
    DiagonalCore,
    Fourier,
    FrozenCore,
    FrozenRight,
    FrozenValues,
    GroupedSquare,
    Hadamard,
    Kronecker,
    LoKr,
    LoKrSmall,
    LowRankPlusColumns,
    LowRankPlusPlaced,
    MatrixTrain,
    Nested,
    ProLoRA,
    RaggedGrid,
    RotatedSquare,
    Sine,
    Sinter,
    Sparse,
)
from lowrank_sp.rules import Shrinkage

from ..combines import Cheaper, Directed, Entrywise, Formed, OneSided, Placed, Waves
from ..miss import Shards
from ..recipe import register
from ..sizes import Fitting, Times, half, shorter_side, single, square, values_of_lora
from ..starts import (
    ByArray,
    ColumnsOfWeight,
    Constant,
    GradientPlaces,
    LargestPlaces,
    Normal,
    NormedDirections,
    SingularFrame,
    TriangularFrame,
    VanishingZeros,
    WeightCore,
    ZeroLeft,
)
from .basic import LORA

# three factors -----------------------------------------------------------------------------------------------
FLORA = register(
    LORA.but(
        "flora-core",
        cite="si2024flora",
        covers=("P30",),
        form=Core,
        init=ByArray((("left", Normal(0.02)), ("core", Constant(0.0)), ("right", Normal(0.02)))),
        note="A core space of equal ranks, for matrices; its four-way form for convolutions is 'flora-conv'. The core "
        "starts at zero. Not the compressor of gradients of the same name.",
    )
)
DYNAMIC = register(
    LORA.but(
        "dynamic-rank",
        cite="shunfoundation",
        covers=("P08", "R23"),
        form=DiagonalCore,
        init=ZeroLeft(),
        move=Shrinkage(0.01),
        note="The l1 penalty on the gates is a proximal step, so that gates become exactly zero; its weight, 0.01, is "
        "chosen here.",
    )
)
SVD_FORM = register(
    LORA.but(
        "svd",
        cite="survey2026sp",
        covers=("P26",),
        form=SVD,
        note="Outer factors that stay orthonormal by retraction, and a diagonal core that starts at zero.",
    )
)
LORA_XS = register(
    LORA.but(
        "lora-xs",
        cite="balazy2024loraxs",
        form=FrozenCore,
        init=SingularFrame(power=1.0),
        note="The core starts at zero, not at tiny random numbers.",
    )
)
SVFIT = register(
    LORA.but(
        "svfit",
        cite="sun2024svfit",
        covers=("P31", "I11"),
        form=FrozenValues,
        init=SingularFrame(),
        note="Reconstructed from the published method. What trains is the change of the singular values.",
    )
)
SVFT = register(
    SVFIT.but(
        "svft",
        cite="lingam2024svft",
        combine=OneSided(),
        size=shorter_side,
        note="All singular values, whatever the rank; bands beside the diagonal are not built. Keeps both singular "
        "bases, which together are larger than the layer.",
    )
)
LOLDU = register(
    LORA.but(
        "loldu",
        cite="shi2024loldu",
        covers=("P32", "I11"),
        form=FrozenValues,
        init=TriangularFrame(),
        note="Reconstructed from the published method, less a scalar that can be absorbed.",
    )
)
LAMDA = register(
    LORA.but(
        "lamda",
        cite="azizi2024lamda",
        covers=("P33", "I11"),
        form=Core,
        init=WeightCore(),
        trains=("left", "core"),
        note="Reconstructed: the early phase, with a fixed projection of the input; 'lamda-late' is the one after the "
        "other projection has been frozen. The gradual freezing between them is not built.",
    )
)
LAMDA_LATE = register(LAMDA.but("lamda-late", covers=("P33",), trains=("core",), note="Reconstructed, see 'lamda'."))
NESTED_NORA = register(
    LORA.but(
        "nested-nora",
        cite="lin2024nora",
        covers=("P35", "I10"),
        form=Nested,
        init=SingularFrame(),
        note="Reconstructed: fixed singular vectors outside, an inner product of half the rank that trains. "
        "The published inner factors start at roots of singular values; here the update starts at zero.",
    )
)

# products ----------------------------------------------------------------------------------------------------
LOHA = register(
    LORA.but(
        "loha",
        cite="hyeonwoo2022fedpara",
        covers=("P46",),
        form=Hadamard,
        combine=Cheaper(),
        init=ByArray((("left", Normal(0.1)), ("right", Normal()), ("left2", Constant(0.0)), ("right2", Normal()))),
        note="Twice the parameters of LoRA at equal rank. Starts as the published code does.",
    )
)
KRONA = register(
    LORA.but(
        "krona",
        cite="edalati2022krona",
        covers=("P48",),
        form=Kronecker,
        size=single,
        note="One Kronecker product, whose factors are as square as the sides of the layer allow; the rank only "
        "enters the scale.",
    )
)
KRON_SUM = register(
    KRONA.but(
        "kron-sum",
        cite="survey2026sp",
        covers=("P50",),
        size=Fitting(Kronecker),
        combine=Formed(),  # forming r terms costs less than taking every token through them
        note="As many terms as ranks; their weights are absorbed.",
    )
)
LOKR = register(
    LORA.but(
        "lokr",
        cite="yeh2024lycoris",
        covers=("P49",),
        form=LoKr.of(32),
        size=Fitting(LoKr.of(32)),
        note="The low rank on the large factor, as in the published code; first factors of at most 32 x 32.",
    )
)
LOKR_SMALL = register(
    LOKR.but(
        "lokr-small",
        cite="he2026unified",
        covers=("P49",),
        form=LoKrSmall.of(32),
        size=Fitting(LoKrSmall.of(32)),
        note="The low rank on the small factor, as the survey has it; its size bounds the rank.",
    )
)
LORETTA = register(
    LORA.but(
        "loretta",
        cite="yang2024loretta",
        covers=("P77", "P80"),
        form=MatrixTrain,
        combine=Formed(),  # as for the sum of Kronecker products
        note="Reconstructed: a train of three matrices for every layer, also called a matrix product operator. Bonds "
        "are cut to what the matrices can hold.",
    )
)

# blocks ------------------------------------------------------------------------------------------------------
MELORA = register(
    LORA.but(
        "melora",
        cite="ren2024melora",
        covers=("P44",),
        form=BlockDiagonal.of(2),
        note="Two blocks of the full rank each, the setting of the survey: twice the rank of LoRA at its cost.",
    )
)
LOCALIZED = register(
    LORA.but(
        "localized",
        cite="barazandeh2025localized",
        covers=("P45",),
        form=BlockGrid.of(2, 2),
        size=half,
        note="A 2 x 2 grid with blocks of half the rank, which has the parameters of LoRA.",
    )
)
LOCALIZED_RANKS = register(
    LOCALIZED.but(
        "localized-ranks",
        covers=("P45",),
        form=RaggedGrid.of([[1, 0], [1, 1]]),
        note="Blocks with ranks of their own; these, lower triangular, are an example: form=RaggedGrid.of(ranks).",
    )
)
GRALORA = register(
    LOCALIZED.but(
        "gralora",
        cite="jung2025gralora",
        note="The grid of Localized LoRA with k = 2, under the name that it has in PEFT, whose rank is that of all k "
        "blocks of a row.",
    )
)

# one square matrix -------------------------------------------------------------------------------------------
MORA = register(
    LORA.but(
        "mora",
        cite="jiang2024mora",
        covers=("P54",),
        form=GroupedSquare,
        size=square,
        note="Rows and columns in groups. The square matrix has as many parameters as LoRA, but never more sides than "
        "the layer.",
    )
)
MORA_ROTATED = register(
    MORA.but("mora-rotated", covers=("P54",), form=RotatedSquare, note="With rotations between the groups.")
)

MISS = register(
    LORA.but(
        "miss",
        cite="kang2024miss",
        form=FrozenRight,
        init=Shards(),
        note="A trained matrix after sums over groups of inputs: half the parameters of LoRA. Not in the surveys.",
    )
)

# supports ----------------------------------------------------------------------------------------------------
SHIRA = register(
    LORA.but(
        "shira",
        cite="bhardwaj2024shira",
        covers=("P52",),
        form=Sparse,
        size=values_of_lora,
        combine=Placed(),
        note="As many values as LoRA has, at random places. The values are trained, not multiplied with the weight.",
    )
)
SHIRA_LARGEST = register(
    SHIRA.but(
        "shira-magnitude", covers=("P52",), init=LargestPlaces(), note="At the places of the largest entries of W."
    )
)
ROSA = register(
    LORA.but(
        "rosa",
        cite="nikdan2024rosa",
        covers=("P51",),
        form=LowRankPlusPlaced,
        combine=Placed(),
        init=GradientPlaces(),
        note="As many sparse values as the factors have numbers, where the gradient is largest.",
    )
)
SLTRAIN = register(
    ROSA.but(
        "sltrain",
        cite="han2024sltrain",
        covers=("P115",),
        init=VanishingZeros(),
        note="Random places. The source trains a whole layer of this form from scratch; here it is an update.",
    )
)
LOST = register(
    LORA.but(
        "lost",
        cite="li2025lost",
        covers=("P105", "P115"),
        form=LowRankPlusColumns,
        init=ColumnsOfWeight(),
        note="Reconstructed, as an update, and without the activation between the factors, so that it can be merged. "
        "As many free columns as ranks.",
    )
)

# elsewhere ---------------------------------------------------------------------------------------------------
PROLORA = register(
    LORA.but(
        "prolora",
        cite="wang2024prolora",
        covers=("P66",),
        form=ProLoRA,
        init=VanishingZeros(),
        size=half,
        note="Two rotated copies of a chunk, and one rank that is not shared.",
    )
)
FOURIERFT = register(
    LORA.but(
        "fourierft",
        cite="gao2024fourierft",
        covers=("P69",),
        form=Fourier,
        size=Times(125),
        combine=Waves(),
        note="125 cosine modes for every rank, so that rank 8 has the 1000 of the source. The basis is orthonormal: "
        "the scale 150 or 300 of the source is alpha / rank = 150 / sqrt(out in) here.",
    )
)
DELORA = register(
    LORA.but(
        "delora",
        cite="bini2025delora",
        covers=("P92", "I24"),
        form=DeLoRA,
        combine=Directed(),
        init=NormedDirections(),
        note="The norms of W are those of its columns, as in the published code; the survey takes one norm. The first "
        "update is subtracted.",
    )
)
SINE = register(
    LORA.but(
        "sine",
        cite="ji2024sine",
        covers=("P103",),
        form=Sine.of(200.0, 20.0),
        combine=Entrywise(),
        note="Reconstructed: the sine of the product, entry by entry, with frequency 200 and divisor 20, which are "
        "chosen here. Public code of a survey bends the output instead.",
    )
)
LORAN = register(
    SINE.but(
        "loran",
        cite="li2024loran",
        covers=("P104",),
        form=Sinter.of(0.5, 100.0),
        note="Reconstructed: z + a z sin(w z) of the product, with a = 0.5 and w = 100, which are chosen here.",
    )
)
