"""The kernel of a convolution as a Tucker tensor over outputs, inputs, rows and columns."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Configured, Multilinear, factorization
from .sided import Thin, Unconvertible
from .tucker import Tucker

__all__ = ["ConvTucker"]

Array = Any

# made once: a class that is looked up in a forward pass is one the compiler cannot see through
_ALL = Tucker.of(4)
_ALL_BUT_OUTPUTS = Tucker.of(4, (1, 2, 3))


@covers("P30")
@factorization
class ConvTucker(Thin, Multilinear, Unconvertible, Configured):
    """``W[o, (i, y, x)] = sum G[a, b, c, d] A_oa B_ib C_yc D_xd``, the core space of FLoRA for kernels.

    Parameters
    ----------
    core : array (..., r, r, s, t)
        G.
    left : array (..., m, r)
        A, of the outputs.
    inputs : array (..., n, r)
        B, of the input channels.
    rows : array (..., h, s)
        C, of the rows of the kernel; s is r or h, whichever is less.
    cols : array (..., w, t)
        D, of its columns, in the same way.

    Notes
    -----
    ``ConvTucker.of(h, w)`` is the form for kernels of that size, whose matrix is (m, n h w); `ConvTucker` itself
    takes kernels of size one, where it is a `Core`. Parameters: ``(m + n) r + h s + w t + r^2 s t``. The outputs are
    applied last and the others as one kernel with r outputs. Source: :cite:`si2024flora`; section II-C of
    :cite:`he2026unified`.

    Examples
    --------
    >>> ConvTucker.of(3, 3).parameter_count((6, 45), 2)
    50
    """

    core: Array
    left: Array
    inputs: Array
    rows: Array
    cols: Array

    ndims = (4, 2, 2, 2, 2)
    zeros = ("core",)

    @classmethod
    def of(cls, height: int, width: int) -> type[ConvTucker]:
        """The form for kernels of a size."""
        for name, k in (("height", height), ("width", width)):
            if isinstance(k, bool) or int(k) != k or k < 1:
                raise ValueError(f"{name} must be a positive integer, got {k!r}")
        return cls.configured(f"ConvTucker{int(height)}x{int(width)}", int(height), int(width))

    @property
    def shape(self):
        return self.left.shape[-2], prod(a.shape[-2] for a in (self.inputs, self.rows, self.cols))

    @property
    def rank(self):
        r, *others = self.core.shape[-4:]
        return min(r, prod(others), *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        height, width = cls.settings or (1, 1)
        channels, rest = divmod(shape[1], height * width)
        if rest:
            raise ValueError(f"a matrix with {shape[1]} columns holds no kernels of {height} x {width}")
        s, t = min(rank, height), min(rank, width)
        return (rank, rank, s, t), (shape[0], rank), (channels, rank), (height, s), (width, t)

    def _kernels(self) -> Tucker:
        """The kernels with r outputs, which only the outputs' factor is missing."""
        return _ALL_BUT_OUTPUTS(self.core, self.inputs, self.rows, self.cols)

    def product(self):
        kernels = self._kernels().dense()
        return self.left, xp.adjoint(kernels.reshape(*kernels.shape[:-3], -1))

    def _reduced(self, g: Any) -> Array:
        """A gradient as one of the kernels with r outputs, ``A^H G``."""
        small = xp.adjoint(xp.adjoint(g) @ self.left)
        return small.reshape(*small.shape[:-1], *(a.shape[-2] for a in (self.inputs, self.rows, self.cols)))

    def partial(self, index, g):
        if index == 1:
            return g @ self.product()[1]
        return self._kernels().partial(max(index - 1, 0), self._reduced(g))

    def pullback(self, g):
        core, *factors = self._kernels().pullback(self._reduced(g)).arrays()
        return type(self)(core, g @ self.product()[1], *factors)

    def whiten(self, grad, damping=0.0):
        point, direction = (_ALL(*x.arrays()) for x in (self, grad))
        return type(self)(*point.whiten(direction, damping).arrays())
