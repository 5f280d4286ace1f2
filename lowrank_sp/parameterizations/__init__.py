"""All parameterizations, and the registry over which their contract tests run."""

from ..factors import Factors
from .block import BlockDiagonal, BlockGrid
from .bm import BurerMonteiro, SymmetricBurerMonteiro
from .core import Core, DiagonalCore
from .fixed_rank import FixedRank, orthographic
from .hadamard import Hadamard
from .kronecker import Kronecker
from .sparse import LowRankPlusSparse
from .svd import SVD, PoLAR

__all__ = [
    "FORMS",
    "SVD",
    "BlockDiagonal",
    "BlockGrid",
    "BurerMonteiro",
    "Core",
    "DiagonalCore",
    "FixedRank",
    "Hadamard",
    "Kronecker",
    "LowRankPlusSparse",
    "PoLAR",
    "SymmetricBurerMonteiro",
    "orthographic",
]

FORMS: dict[str, type[Factors]] = {
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
    )
}
