"""Recovery problems: each knows the matrix, never how it is parameterized."""

from . import synthetic
from .base import LeastSquares
from .completion import MatrixCompletion
from .distances import DistanceEnsemble
from .ensembles import DenseEnsemble, Ensemble, QuadraticEnsemble, RankOneEnsemble, SubsampledOrthogonal
from .factorization import MatrixFactorization
from .hankel import HankelCompletion
from .lifting import lifted, lowered
from .robust import RobustPCA, RobustSensing
from .robust_entries import RobustCompletion
from .sensing import MatrixSensing
from .tensor import TensorCompletion, TensorFactorization, TensorSensing
from .tensor_robust import RobustTensorPCA
from .tomography import PauliEnsemble

__all__ = [
    "DenseEnsemble",
    "DistanceEnsemble",
    "Ensemble",
    "HankelCompletion",
    "LeastSquares",
    "MatrixCompletion",
    "MatrixFactorization",
    "MatrixSensing",
    "PauliEnsemble",
    "QuadraticEnsemble",
    "RankOneEnsemble",
    "RobustCompletion",
    "RobustPCA",
    "RobustSensing",
    "RobustTensorPCA",
    "SubsampledOrthogonal",
    "TensorCompletion",
    "TensorFactorization",
    "TensorSensing",
    "lifted",
    "lowered",
    "synthetic",
]
