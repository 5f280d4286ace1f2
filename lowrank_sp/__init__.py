"""lowrank_sp: low-rank factorization, sensing and completion, with the optimizers of LoRA."""

from . import inits, metrics, spaces
from .parameterizations import FORMS, SVD, BurerMonteiro, FixedRank, PoLAR, SymmetricBurerMonteiro
from .problems import (
    DenseEnsemble,
    MatrixCompletion,
    MatrixFactorization,
    MatrixSensing,
    RankOneEnsemble,
    SubsampledOrthogonal,
    synthetic,
)
from .recover import complete, factorize, sense
from .result import Result, Status
from .rules import RULES
from .rules.step import Backtracking, BarzilaiBorwein, Constant, ExactLineSearch, Polyak
from .solve import solve
from .solvers import (
    ALS,
    GD,
    SOLVERS,
    AltGD,
    AltScaledGD,
    LandingGD,
    LoRAPro,
    PrecGD,
    RefLoRA,
    RefLoRAScalar,
    RiemannianCG,
    RiemannianGD,
    ScaledCG,
    ScaledGD,
)

__version__ = "0.1.0"

__all__ = [
    "ALS",
    "FORMS",
    "GD",
    "RULES",
    "SOLVERS",
    "SVD",
    "AltGD",
    "AltScaledGD",
    "Backtracking",
    "BarzilaiBorwein",
    "BurerMonteiro",
    "Constant",
    "DenseEnsemble",
    "ExactLineSearch",
    "FixedRank",
    "LandingGD",
    "LoRAPro",
    "MatrixCompletion",
    "MatrixFactorization",
    "MatrixSensing",
    "PoLAR",
    "Polyak",
    "PrecGD",
    "RankOneEnsemble",
    "RefLoRA",
    "RefLoRAScalar",
    "Result",
    "RiemannianCG",
    "RiemannianGD",
    "ScaledCG",
    "ScaledGD",
    "Status",
    "SubsampledOrthogonal",
    "SymmetricBurerMonteiro",
    "complete",
    "factorize",
    "inits",
    "metrics",
    "sense",
    "solve",
    "spaces",
    "synthetic",
]
