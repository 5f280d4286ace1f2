"""LoRA of a network that is linear in its update: which ranks leave no bad local minima."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize

import lowrank_sp as lr

__all__ = ["in_encoder", "minima"]

Cell = Mapping[str, Any]
TOLERANCE = 1e-3  # relative, of the certificate and of losses


def minima(cell: Cell) -> dict[str, Any]:
    """Ends of descent from random starts, on squares of N data with weight decay on the factors.

    ``f(W) = v^T tanh((W_0 + W) x) / sqrt(h)`` is replaced by its linear part in W, as in the regime of the neural
    tangent kernel, with ``W = X Y^T``. Such an end is the best of all matrices, whatever their rank, if no singular
    value of the gradient in W exceeds the decay: the condition of the convex problem with the nuclear norm.
    """
    rng = np.random.default_rng([cell["seed"], cell["data"]])
    return _ends(_linearized(cell["data"], cell["width"], cell["inputs"], rng), cell, rng)


def in_encoder(cell: Cell) -> dict[str, Any]:
    """The same for one layer of a pretrained encoder, whose outputs are the similarities of N pairs of texts.

    They are to become one and zero in turn; their gradients in the weight of the layer are the features.
    """
    from studies.lora_dynamics.encoder import similarities

    features, values = similarities(cell["layer"], "numpy", cell["data"])
    targets = 1.0 - np.arange(len(values)) % 2
    problem = lr.MatrixSensing(features, targets - values, features.shape[1:])
    return _ends(problem, cell, np.random.default_rng([cell["seed"], cell["data"]]))


def _ends(problem: lr.MatrixSensing, cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    decay = cell["decay"] * np.linalg.norm(problem.backproject(problem.data), 2)
    ends = [_end(problem, cell["rank"], decay, rng) for _ in range(cell["starts"])]
    losses, excess = (np.array(values) for values in zip(*ends, strict=True))
    return {
        "certified": float((excess < TOLERANCE).mean()),
        "apart": float((losses > losses.min() * (1 + TOLERANCE)).mean()),
        "spread": float(losses.max() / losses.min() - 1),
        "loss": float(losses.min()),
        "sufficient": bool(cell["rank"] * (cell["rank"] + 1) / 2 > cell["data"]),
    }


def _linearized(data: int, width: int, inputs: int, rng: np.random.Generator) -> lr.MatrixSensing:
    """Gradients in the first layer at every input, and targets from the network with another first layer."""
    first, other = (rng.standard_normal((width, inputs)) / inputs**0.5 for _ in range(2))
    last, x = rng.standard_normal(width), rng.standard_normal((data, inputs))
    slopes = last * (1 - np.tanh(x @ first.T) ** 2) / width**0.5
    change = (np.tanh(x @ (first + other).T) - np.tanh(x @ first.T)) @ last / width**0.5
    return lr.MatrixSensing(slopes[:, :, None] * x[:, None, :], change, (width, inputs))


def _end(problem: Any, rank: int, decay: float, rng: np.random.Generator) -> tuple[float, float]:
    """Loss at the end of one descent, and by how much the gradient exceeds the decay there, relatively."""
    start = lr.BurerMonteiro.random(problem.shape, rank, rng)
    sizes = [a.size for a in start.arrays()]

    def point(flat: np.ndarray) -> Any:
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return lr.BurerMonteiro(*[p.reshape(a.shape) for p, a in zip(parts, start.arrays(), strict=True)])

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        here = point(flat)
        residual = np.asarray(problem.measure((here,))[0]) - problem.data
        grad = here.pullback(problem.backproject(residual))
        slope = np.concatenate([g.ravel() for g in grad.arrays()]) + decay * flat
        return 0.5 * float(residual @ residual + decay * flat @ flat), slope

    size = (np.linalg.norm(problem.data) / np.linalg.norm(problem.measure((start,))[0])) ** 0.5
    flat = size * np.concatenate([a.ravel() for a in start.arrays()])
    found = minimize(value, flat, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "gtol": 1e-9, "ftol": 1e-15})
    residual = np.asarray(problem.measure((point(found.x),))[0]) - problem.data
    return float(found.fun), float(np.linalg.norm(problem.backproject(residual), 2) / decay - 1)
