"""What counts as a linear operator, and the dot test of the ones that users bring."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import xp
from ..operators import is_sparse, sparse_entries
from .checks import check_finite

__all__ = ["as_linear_map", "warn_unlike_adjoint"]

# How far the two sides of the dot test may differ, relative to their size: adjoints of some operators, such as ray
# transforms, are approximations on purpose.
DIFFERENCE = 0.05


def as_linear_map(operator: Any) -> Any:
    """A scipy sparse matrix as a linear operator; anything else as it is.

    Raises
    ------
    TypeError
        For a function, which does not say its shape and its adjoint.
    """
    if is_sparse(operator) and not xp.is_torch(operator):
        from scipy.sparse.linalg import aslinearoperator

        check_finite(sparse_entries(operator)[2], "operator")
        return aslinearoperator(operator)
    if callable(operator) and not hasattr(operator, "shape"):
        raise TypeError(
            "operator must be an array (N, m, n), a sparse matrix (N, m n) or a LinearOperator, got "
            f"{type(operator).__name__}; scipy.sparse.linalg.LinearOperator makes one of matvec and rmatvec"
        )
    return operator


def warn_unlike_adjoint(operator: Any) -> None:
    """Warn when ``<A w, y>`` and ``<w, A^H y>`` differ for random w and y: what is solved then is another problem.

    Real parts are compared, so that operators may be linear over the real numbers only.

    Raises
    ------
    TypeError
        When the operator has no adjoint.
    """
    rng, kind = np.random.default_rng(0), np.result_type(operator.dtype or np.float64, np.float32)
    y, w = (rng.standard_normal(k) + 1j * rng.standard_normal(k) for k in operator.shape)
    y, w = (v.astype(kind) if kind.kind == "c" else v.real.astype(kind) for v in (y, w))
    try:
        image, back = np.asarray(operator.matvec(w)), np.asarray(operator.rmatvec(y))
    except NotImplementedError as error:
        raise TypeError("operator has no adjoint; give its LinearOperator an rmatvec") from error
    forward, backward = np.vdot(y, image).real, np.vdot(back, w).real
    if abs(forward - backward) > DIFFERENCE * np.linalg.norm(image) * np.linalg.norm(y) / y.size**0.5:
        warnings.warn(
            f"operator and its adjoint do not fit: <A w, y> = {forward:.3g}, but <w, A^H y> = {backward:.3g} for "
            "random w and y; check its rmatvec, for instance by pylops.utils.dottest",
            stacklevel=2,
        )
