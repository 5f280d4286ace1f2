"""All parameterizations, and the registry over which their contract tests run."""

from ..factors import Factors
from .bm import BurerMonteiro, SymmetricBurerMonteiro
from .fixed_rank import FixedRank, orthographic
from .svd import SVD, PoLAR

__all__ = ["FORMS", "SVD", "BurerMonteiro", "FixedRank", "PoLAR", "SymmetricBurerMonteiro", "orthographic"]

FORMS: dict[str, type[Factors]] = {
    form.__name__: form for form in (BurerMonteiro, SymmetricBurerMonteiro, SVD, PoLAR, FixedRank)
}
