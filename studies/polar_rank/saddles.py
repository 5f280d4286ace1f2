"""Critical points of the diagonal and of the full core, and the eigenvalues of the Hessian there."""

from __future__ import annotations

from typing import Any

import numpy as np

import lowrank_sp as lr

__all__ = ["hessian", "inspect", "mispaired_eigenvalue"]


def inspect(cell: dict[str, Any]) -> dict[str, Any]:
    """Smallest Hessian eigenvalue and gradient at a named point, and the error after one core step.

    ``mispaired``: the singular vectors of a rank-two target with the right ones exchanged, and a zero core.
    ``missed``: the leading pair of singular vectors, and one pair orthogonal to the target.
    """
    m, n = cell["small"]
    problem = lr.synthetic.factorization(m, n, 2, cell["kappa"], seed=0)
    u, s, vt = np.linalg.svd(problem.data)
    if cell["point"] == "mispaired":
        left, values, right = u[:, :2], np.zeros(2), vt[[1, 0]].T
    else:
        left, values, right = u[:, [0, 2]], np.array([s[0], 0.0]), vt[[0, 2]].T
    full = cell["core"] == "full"
    point = lr.PoLAR(left, np.diag(values), right) if full else lr.SVD(left, values, right)
    gradient = point.project(point.pullback(problem.residual(point)))
    moved = lr.solve(problem, point, lr.RiemannianGD(1e-9, 1.0), max_iter=1, tol=0)
    eigenvalues = np.linalg.eigvalsh(hessian(problem, point))
    return {
        "smallest": float(eigenvalues[0]),
        "zeros": int((np.abs(eigenvalues) < 1e-5).sum()),
        "gradient": float(gradient.norm()),
        "error_after_core_step": float(moved.history["error"][-1]),
        "predicted": mispaired_eigenvalue(s[0], s[1]),
    }


def mispaired_eigenvalue(s1: float, s2: float) -> float:
    """Closed form at the mispaired point with a diagonal core: ``(1 - sqrt(1 + 2 (s_1 + s_2)^2)) / 2``."""
    return (1 - (1 + 2 * (s1 + s2) ** 2) ** 0.5) / 2


def hessian(problem: Any, point: Any, size: float = 1e-4) -> np.ndarray:
    """Riemannian Hessian of the loss at a critical point, in an orthonormal basis of the tangent space.

    Central differences of the projected gradient along retractions.
    """
    basis = _tangent_basis(point)

    def gradient(vector: np.ndarray) -> np.ndarray:
        new = point.retract(_unpack(point, basis @ vector), -size)
        return basis.T @ _pack(new.project(new.pullback(problem.residual(new))))

    columns = [(gradient(e) - gradient(-e)) / (2 * size) for e in np.eye(basis.shape[1])]
    matrix = np.array(columns)
    return (matrix + matrix.T) / 2


def _tangent_basis(point: Any) -> np.ndarray:
    """Orthonormal columns that span the tangent space, from the projection of the coordinate vectors."""
    total = _pack(point).size
    projection = np.array([_pack(point.project(_unpack(point, e))) for e in np.eye(total)])
    values, vectors = np.linalg.eigh((projection + projection.T) / 2)
    return vectors[:, values > 0.5]


def _pack(point: Any) -> np.ndarray:
    return np.concatenate([array.ravel() for array in point.arrays()])


def _unpack(point: Any, vector: np.ndarray) -> Any:
    cuts = np.cumsum([array.size for array in point.arrays()])[:-1]
    parts = zip(np.split(vector, cuts), point.arrays())
    return type(point)(*[part.reshape(array.shape) for part, array in parts])
