"""Recovery problems: each knows the matrix, never how it is parameterized."""

from . import synthetic
from .base import LeastSquares
from .completion import MatrixCompletion
from .ensembles import DenseEnsemble, Ensemble, RankOneEnsemble, SubsampledOrthogonal
from .factorization import MatrixFactorization
from .sensing import MatrixSensing

__all__ = [
    "DenseEnsemble",
    "Ensemble",
    "LeastSquares",
    "MatrixCompletion",
    "MatrixFactorization",
    "MatrixSensing",
    "RankOneEnsemble",
    "SubsampledOrthogonal",
    "synthetic",
]
