"""Sums over batches of what a layer gives off, exact or in memory of rank size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_sp.parameterizations import BurerMonteiro

__all__ = ["Gradient", "GradientSketch", "Moments", "MomentsSketch"]


class Gradient:
    """The mean of gradients (m, n), as a matrix."""

    def __init__(self):
        self.count = 0
        self.total: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """One more; the first one is kept as it is."""
        self.count += 1
        self.total = gradient.clone() if self.total is None else self.total.add_(gradient)

    def finished(self) -> Any:
        """A matrix (m, n)."""
        assert self.total is not None
        return self.total / self.count


class GradientSketch:
    """The mean of gradients (m, n) from products with random matrices, which add up as the gradients do.

    With ``Y = G Omega`` and ``Z = G^T Psi``, and Q an orthonormal basis of Y, ``G ~ Q (Psi^T Q)^+ Z^T``: exact for
    a mean of rank up to ``width``. Source: :cite:`tropp2017practical`.

    Parameters
    ----------
    shape : tuple of int
    rank : int
        Ranks up to twice this one will be asked for.
    tests : dict
        Random matrices by size, which all layers share; filled as they are needed.
    """

    def __init__(self, shape: tuple[int, int], rank: int, tests: dict[Any, Tensor]):
        m, n = shape
        self.count = 0
        self.tests = tests
        self.width = min(4 * rank + 16, m, n)
        self.height = min(2 * self.width + 1, m)
        self.size = m * self.width + n * self.height  # numbers kept
        self.sums: list[Tensor] = []

    def _test(self, rows: int, cols: int, side: int, like: Tensor) -> Tensor:
        key = (rows, cols, side, like.device)
        if key not in self.tests:
            generator = torch.Generator().manual_seed(2 * rows + side)
            self.tests[key] = torch.randn(rows, cols, generator=generator, dtype=like.dtype).to(like.device)
        return self.tests[key]

    def add(self, gradient: Tensor) -> None:
        """One more."""
        self.count += 1
        m, n = gradient.shape
        parts = gradient @ self._test(n, self.width, 0, gradient), gradient.mT @ self._test(m, self.height, 1, gradient)
        self.sums = [a + b for a, b in zip(self.sums, parts)] if self.sums else list(parts)

    def finished(self) -> Any:
        """A product of rank ``width``."""
        y, z = (a / self.count for a in self.sums)
        q = torch.linalg.qr(y).Q
        psi = self._test(len(y), self.height, 1, y)
        return BurerMonteiro(q, torch.linalg.lstsq(psi.mT @ q, z.mT).solution.mT)


class Moments:
    """The mean of ``x x^T`` over rows of n numbers, as a matrix."""

    def __init__(self, size: int):
        self.count = 0
        self.size = size
        self.total: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Some more rows (k, n)."""
        self.count += len(rows)
        self.total = rows.mT @ rows if self.total is None else self.total.addmm_(rows.mT, rows)

    def finished(self) -> Any:
        """A matrix (n, n)."""
        assert self.total is not None
        return self.total / self.count

    def shares(self) -> Tensor:
        """Shares of the trace by direction (n,), the largest first."""
        values = torch.linalg.eigvalsh(self.finished()).flip(0).clamp_min(0)
        return values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)


class MomentsSketch:
    """The mean of ``x x^T`` over rows of n numbers by its leading directions: an incremental decomposition.

    The rows seen so far are represented by ``kept`` rows with nearly the same second moments; each block of new
    ones joins them and the least directions are dropped.
    """

    def __init__(self, size: int, kept: int):
        self.count = 0
        self.kept = min(kept, size)
        self.rows: Tensor | None = None
        self.energy: Any = 0.0

    def add(self, rows: Tensor) -> None:
        """Some more rows (k, n)."""
        self.count += len(rows)
        self.energy = self.energy + rows.square().sum()
        for block in rows.split(self.kept):
            stacked = block if self.rows is None else torch.cat((self.rows, block))
            _, s, vh = torch.linalg.svd(stacked, full_matrices=False)
            self.rows = (s[:, None] * vh)[: self.kept]

    def finished(self) -> Any:
        """A product of rank ``kept`` at most."""
        assert self.rows is not None
        right = self.rows.mT / self.count**0.5
        return BurerMonteiro(right, right)

    def shares(self) -> Tensor:
        """Shares of the trace by direction (kept,), the largest first; what was dropped counts in the trace."""
        assert self.rows is not None
        return self.rows.square().sum(1) / self.energy.clamp_min(torch.finfo(self.rows.dtype).tiny)
