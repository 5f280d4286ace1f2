"""Least squares in a matrix that is only touched through linear measurements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from .. import xp
from ..factors import MatrixFactors
from ..parameterizations.tensor import TensorFactors

__all__ = ["LeastSquares", "block_cgls"]

Array = Any


class LeastSquares(ABC):
    """``f(W) = 1/2 || A(W) - y ||^2`` for a linear map A, evaluated on factors, and its robust relatives.

    A relative changes `residual` or `loss` and says so: with ``quadratic = False`` the residual is not affine
    in W (robust PCA trims it), so the exact minimiser along a line is only that of a model and ``"auto"``
    steps backtrack from it; with ``smooth = False`` the loss has kinks (sums of absolute values), `slope` is
    its subgradient in the residual, and ``"auto"`` steps are Polyak's.

    Attributes
    ----------
    shape : (m, n)
        Shape of W; one number per mode where W is a tensor.
    data : array (..., measurement axes)
        y; leading axes are batch.
    truth : Factors, array or None
        The matrix behind synthetic data, for error curves.
    data_ndim : int
        Number of measurement axes of ``data``.
    refresh : int
        Most iterations for which a residual may be updated instead of recomputed.
    quadratic, smooth : bool
        As above.
    nonexpansive : bool
        Whether ``||A(W)|| <= ||W||_F`` always holds.
    """

    shape: tuple[int, ...]
    data: Any
    truth: Any
    scale: float
    data_ndim: int
    refresh: int = 20
    quadratic: ClassVar[bool] = True
    smooth: ClassVar[bool] = True
    nonexpansive: bool = False

    @abstractmethod
    def measure(self, *sums: Sequence[Any]) -> list[Any]:
        """``A(F(x_1) + F(x_2) + ...)`` for every group of points, without forming W where A allows it."""

    @abstractmethod
    def backproject(self, residual: Any) -> Any:
        """``A^* residual``: for a slope the gradient in W, as anything that multiplies thin matrices."""

    @abstractmethod
    def surrogate(self) -> Any:
        """A first guess of W as anything that multiplies thin matrices: ``A^* y``, scaled to the size of W."""

    @abstractmethod
    def like(self) -> Array:
        """An array whose library, device and floating type new factors should have."""

    def inner(self, a: Any, b: Any) -> Any:
        """Real inner product of two measurement vectors."""
        return xp.inner(a, b, self.data_ndim)

    def residual(self, point: Any) -> Any:
        """``A(F(x)) - y``."""
        return self.measure((point,))[0] - self.data

    def loss(self, residual: Any) -> Any:
        """``1/2 || residual ||^2``."""
        return 0.5 * self.inner(residual, residual)

    def slope(self, residual: Any) -> Any:
        """The (sub)gradient of `loss` in the residual: the residual itself for squares."""
        return residual

    def gradient(self, point: Any) -> Any:
        """Gradient in the factors at ``point``."""
        return point.pullback(self.backproject(self.slope(self.residual(point))))

    def gap(self, residual: Any, loss: Any) -> Any:
        """The loss less an estimate of its least value, which is zero for squares."""
        return loss

    def rounding(self, precision: float) -> float:
        """A gap that is rounding alone, in arithmetic with this machine epsilon."""
        return 0.5 * self.scale * (4 * precision) ** 2

    def amplitude(self, image: Any) -> Any:
        """The number c, at least zero, for which ``c image`` fits the data best."""
        size, overlap = self.inner(image, image), self.inner(image, self.data)
        return overlap * (overlap > 0) / (size + (size == 0))

    @abstractmethod
    def error(self, point: Any, residual: Any = None) -> Any:
        """``|| F(x) - truth ||_F / || truth ||_F``; None without a truth. ``residual`` may save work."""

    @abstractmethod
    def solve_block(self, point: Any, gradient: Array, index: int, ridge: float) -> Array:
        """The change of array ``index`` that minimises f plus a ridge with the others fixed.

        ``gradient`` is that of the array at ``point``; ``ridge`` weighs half its squared norm, relative to the
        mean diagonal of the Gram matrix of the block.
        """

    def sweep_block(self, point: Any, index: int, ridge: float, residual: Any = None) -> tuple[Array, Any]:
        """``(change, square)``: what `solve_block` gives, and the squared norm of the gradient before.

        ``residual`` is that of ``point``, if it is known. Override where one pass over the data yields both.
        """
        if residual is None:
            residual = self.residual(point)
        gradient = point.partial(index, self.backproject(residual))
        return self.solve_block(point, gradient, index, ridge), xp.inner(gradient, gradient, point.ndims[index])


def relative_error(point: Any, truth: Any) -> Any:
    """Relative Frobenius error against a matrix or tensor in factors or dense form.

    For factors of matrices, the difference ``[X, U][Y, -V]^H`` is measured through two QR factorizations: exact to
    rounding, where Gram matrices would lose half of the digits.
    """
    if not isinstance(truth, (MatrixFactors, TensorFactors)):
        gap, ndim = point.dense() - truth, len(point.shape)
        return (xp.inner(gap, gap, ndim) / xp.inner(truth, truth, ndim)) ** 0.5
    if isinstance(truth, TensorFactors):
        return truth.distance(point) / truth.frobenius()
    x, y = point.product()
    u, v = truth.product()
    return _product_norm(x, y, u, v) / _product_norm(u, v)


def _product_norm(x: Array, y: Array, u: Any = None, v: Any = None) -> Any:
    """Frobenius norm of ``x y^H - u v^H``."""
    backend = xp.namespace(x, y)
    if u is not None:
        batch = x.shape[:-2]
        u, v = (backend.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (u, v))
        x, y = backend.concatenate((x, u), -1), backend.concatenate((y, -v), -1)
    core = backend.linalg.qr(x)[1] @ xp.adjoint(backend.linalg.qr(y)[1])
    return xp.inner(core, core) ** 0.5


def block_cgls(problem: LeastSquares, point: Any, gradient: Array, index: int, ridge: float) -> Array:
    """Minimise ``f`` plus a ridge over one array by conjugate gradients on the normal equations.

    Preconditioned with the Gram matrix of the form (its `whiten`): for a fully observed matrix one step is
    exact, for isometric measurements a handful. Stops at a tenth of the starting gradient in the metric of
    the preconditioner: the outer sweeps need no more.
    """
    ndim = point.ndims[index]
    zeros = point.map(lambda a: a * 0)
    ridge = ridge * _block_size(point, index)

    def precondition(g):
        return point.whiten(zeros.with_array(index, g), ridge).arrays()[index]

    g = -(gradient + ridge * point.arrays()[index])
    z = precondition(g)
    p, rho = z, xp.inner(g, z, ndim)
    change, target = 0 * g, 1e-2 * rho
    for _ in range(50):
        if bool((rho <= target).all()):
            break
        image = problem.measure(point.expansion(zeros.with_array(index, p), (index,))[0])[0]
        curvature = problem.inner(image, image) + ridge * xp.inner(p, p, ndim)
        alpha = xp.expand(rho / (curvature + (curvature == 0)), ndim)
        change = change + alpha * p
        back = point.partial(index, problem.backproject(image))
        g = g - alpha * (back + ridge * p)
        z = precondition(g)
        rho_new = xp.inner(g, z, ndim)
        p, rho = z + xp.expand(rho_new / (rho + (rho == 0)), ndim) * p, rho_new
    return change


def _block_size(point: Any, index: int) -> float:
    """Mean of ``||D_i F||^2`` over the columns of block ``index``: the unit of a relative ridge."""
    total = 1.0
    for i, array in enumerate(point.arrays()):
        if i != index:
            core = array.shape[array.ndim - point.ndims[i] :]
            columns = prod(core[:-2]) * core[-1]
            total = total * float(xp.to_numpy(xp.inner(array, array, point.ndims[i])).mean()) / columns
    return total
