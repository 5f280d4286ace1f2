"""Tensor decompositions of others behind our interface: CP-ALS, HOOI and TT-SVD of tensorly."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from ..coverage import covers
from ..descent import Solver, State
from ..parameterizations import CP, TensorFactors, TensorTrain, Tucker
from ..problems import TensorCompletion, TensorFactorization

__all__ = ["CPALS", "HOOI", "TTSVD", "ThroughTensorly"]


class ThroughTensorly(Solver):
    """One call of tensorly per iteration, from the point of the last one; NumPy data only.

    Unknown entries of a `TensorCompletion` are imputed from the last point before every call (the EM method): the
    dense tensor is formed.
    """

    form: ClassVar[None] = None
    kind: ClassVar[type[TensorFactors]]

    @abstractmethod
    def advance(self, tensor: np.ndarray, point: Any) -> Any:
        """The next point."""

    def start(self, problem, point):
        if not isinstance(problem, (TensorFactorization, TensorCompletion)):
            raise TypeError(f"{self.name} needs a tensor to factorize or complete, not {type(problem).__name__}")
        if not isinstance(point, self.kind):
            raise TypeError(f"{self.name} needs a {self.kind.__name__} start, got {type(point).__name__}")
        if point.batch_shape or not isinstance(problem.data, np.ndarray):
            raise TypeError(f"{self.name} takes one problem of NumPy data, not a batch or torch tensors")
        tensor, unknown = problem.data, None
        if isinstance(problem, TensorCompletion):
            tensor = problem.backproject(problem.data).dense()
            unknown = 1 - problem.backproject(np.ones_like(problem.data)).dense()
        residual = problem.residual(point)
        return State(point, residual, problem.loss(residual), None, (tensor, unknown))

    def step(self, problem, state):
        tensorly: Any = import_module("tensorly")  # its backend functions are made at run time
        tensor, unknown = state.memory
        if unknown is not None:
            tensor = tensor + unknown * state.point.dense()
        with tensorly.backend_context("numpy", local_threadsafe=True):
            point = self.advance(tensor, state.point)
        residual = problem.residual(point)
        norm = point.pullback(problem.backproject(residual)).norm()
        return State(point, residual, problem.loss(residual), norm, state.memory)


@covers("O03", "S13")
@dataclass(frozen=True)
class CPALS(ThroughTensorly):
    """Alternating least squares for `CP`, by ``tensorly.decomposition.parafac``.

    Source: :cite:`kossaifi2019tensorly`, :cite:`kolda2009tensor`.
    """

    name: str = "CPALS"
    kind = CP

    def advance(self, tensor, point):
        from tensorly.decomposition import parafac

        options = {"n_iter_max": 1, "init": point.to_tensorly(), "tol": 0}
        return type(point).from_tensorly(parafac(tensor, point.rank, **options))


@covers("S13")
@dataclass(frozen=True)
class HOOI(ThroughTensorly):
    """Higher-order orthogonal iteration for `Tucker`, by ``tensorly.decomposition.tucker``.

    Source: :cite:`kossaifi2019tensorly`, :cite:`kolda2009tensor`.
    """

    name: str = "HOOI"
    kind = Tucker

    def advance(self, tensor, point):
        from tensorly.decomposition import tucker

        options = {"n_iter_max": 1, "init": tuple(point.balanced().to_tensorly()), "tol": 0}
        return type(point).from_tensorly(tucker(tensor, point.rank, **options))


@covers("S13")
@dataclass(frozen=True)
class TTSVD(ThroughTensorly):
    """TT-SVD for `TensorTrain`, by ``tensorly.decomposition.tensor_train``: one step is all there is.

    For a completion every step imputes and decomposes. Source: :cite:`kossaifi2019tensorly`, :cite:`oseledets2011tt`.
    """

    name: str = "TTSVD"
    kind = TensorTrain

    def advance(self, tensor, point):
        from tensorly.decomposition import tensor_train

        return type(point).from_tensorly(tensor_train(tensor, [1, *point.rank, 1]))
