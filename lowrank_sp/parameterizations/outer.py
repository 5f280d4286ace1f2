"""Forms with a factor for the rows of the matrix and one for its columns."""

from __future__ import annotations

from typing import Any

from ..factors import MatrixFactors

__all__ = ["Outer"]


class Outer(MatrixFactors):
    """A form whose ``left`` has the rows of the matrix and whose ``right`` its columns."""

    left: Any
    right: Any

    @property
    def shape(self):
        return self.left.shape[-2], self.right.shape[-2]
