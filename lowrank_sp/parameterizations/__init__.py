"""All parameterizations, and the registry over which their contract tests run."""

from ..factors import MatrixFactors
from .bishared import BSLoRAGate, BSLoRAKronecker
from .block import BlockDiagonal, BlockGrid
from .bm import BurerMonteiro, SymmetricBurerMonteiro
from .conv_tucker import ConvTucker
from .core import Core, DiagonalCore
from .cp import CP
from .dictionary import NoLA, RandLoRA
from .elementwise import Sine, Sinter
from .fixed_rank import FixedRank, orthographic
from .fourier import Fourier
from .frozen import FrozenCore, FrozenRight, FrozenValues
from .grouped import Elastic, GroupedInputs
from .hadamard import Hadamard
from .hierarchical import HierarchicalTucker
from .kronecker import Kronecker
from .layered import CoreChain, HeadCP, MixedCore, TrainSlice
from .lokr import LoKr, LoKrSmall
from .nested import MatrixTrain, Nested
from .normalized import DeLoRA
from .pooled import BSLoRA, RaSA
from .prolora import ProLoRA
from .ragged import RaggedGrid
from .reflection import EtherPlus, Householder
from .rotation import BlockRotation, Butterfly, Multiplicative
from .scaled import TiedLoRA, VeRA
from .sparse import LowRankPlusSparse
from .square import GroupedSquare, RotatedSquare, square_size
from .support import Sparse, column_support, largest_support, uniform_support
from .supported import LowRankPlusColumns, LowRankPlusPlaced
from .svd import SVD, PoLAR
from .tensor import TensorFactors
from .tree_slice import TreeSlice
from .tt import TensorTrain
from .tt_manifold import FixedRankTrain
from .tucker import Tucker
from .tucker_manifold import FixedRankTucker

__all__ = [
    "CP",
    "FORMS",
    "ROTATIONS",
    "SVD",
    "TENSOR_FORMS",
    "BSLoRA",
    "BSLoRAGate",
    "BSLoRAKronecker",
    "BlockDiagonal",
    "BlockGrid",
    "BlockRotation",
    "BurerMonteiro",
    "Butterfly",
    "ConvTucker",
    "Core",
    "CoreChain",
    "DeLoRA",
    "DiagonalCore",
    "Elastic",
    "EtherPlus",
    "FixedRank",
    "FixedRankTrain",
    "FixedRankTucker",
    "Fourier",
    "FrozenCore",
    "FrozenRight",
    "FrozenValues",
    "GroupedInputs",
    "GroupedSquare",
    "Hadamard",
    "HeadCP",
    "HierarchicalTucker",
    "Householder",
    "Kronecker",
    "LoKr",
    "LoKrSmall",
    "LowRankPlusColumns",
    "LowRankPlusPlaced",
    "LowRankPlusSparse",
    "MatrixTrain",
    "MixedCore",
    "Multiplicative",
    "Nested",
    "NoLA",
    "PoLAR",
    "ProLoRA",
    "RaSA",
    "RaggedGrid",
    "RandLoRA",
    "RotatedSquare",
    "Sine",
    "Sinter",
    "Sparse",
    "SymmetricBurerMonteiro",
    "TensorFactors",
    "TensorTrain",
    "TiedLoRA",
    "TrainSlice",
    "TreeSlice",
    "Tucker",
    "VeRA",
    "column_support",
    "largest_support",
    "orthographic",
    "square_size",
    "uniform_support",
]

FORMS: dict[str, type[MatrixFactors]] = {
    form.__name__: form
    for form in (
        BurerMonteiro,
        SymmetricBurerMonteiro,
        SVD,
        PoLAR,
        FixedRank,
        Core,
        DiagonalCore,
        Hadamard,
        Kronecker,
        BlockGrid,
        BlockDiagonal,
        LowRankPlusSparse,
        FrozenRight,
        FrozenCore,
        FrozenValues,
        VeRA,
        TiedLoRA,
        NoLA,
        RandLoRA,
        LoKr,
        LoKrSmall,
        RaggedGrid,
        GroupedSquare,
        RotatedSquare,
        Fourier,
        Sparse,
        ProLoRA,
        RaSA,
        BSLoRA,
        Sine,
        Sinter,
        MixedCore,
        TrainSlice,
        CoreChain,
        HeadCP,
        Nested,
        MatrixTrain,
        DeLoRA,
        LowRankPlusPlaced,
        LowRankPlusColumns,
        TreeSlice,
        GroupedInputs,
        Elastic,
        BSLoRAGate,
        BSLoRAKronecker,
        ConvTucker,
    )
}

ROTATIONS: dict[str, type[Multiplicative]] = {
    form.__name__: form for form in (BlockRotation, Butterfly, Householder, EtherPlus)
}

TENSOR_FORMS: dict[str, type[TensorFactors]] = {
    form.__name__: form for form in (CP, Tucker, TensorTrain, FixedRankTrain, FixedRankTucker, HierarchicalTucker)
}
