"""Rank identities, reach of structured products, and counterexamples: linear algebra of the surveys, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import lowrank_sp as lr
from lowrank_sp import metrics
from studies.algebra import plots
from studies.cards.geometry import dimensions

Cell = Mapping[str, Any]
Row = Mapping[str, Any]


def run(cell: Cell) -> Row:
    """One instance of one part."""
    return PARTS[cell["part"]](cell, np.random.default_rng(cell["seed"]))


def _rank(a: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(a))


def _low(rng: np.random.Generator, m: int, n: int, rank: int) -> np.ndarray:
    return rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))


def _gap(a: Any, b: Any) -> float:
    """Largest difference, relative to the largest entry."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


# parts --------------------------------------------------------------------------------------------------------


def _compositions(cell: Cell, rng: np.random.Generator) -> Row:
    """Rank of each composition of two random matrices less the bound of the source (equality where it says so)."""
    m, (p, q) = cell["size"], cell["ranks"]
    a, b = _low(rng, m, m, p), _low(rng, m, m, q)
    block = np.block([[a, np.zeros_like(a)], [np.zeros_like(b), b]])
    joined = _rank(np.hstack((a, b)))
    return {
        "sum": _rank(a + b) - (p + q),
        "entrywise": _rank(a * b) - p * q,
        "product": _rank(a @ b) - min(p, q),
        "joined_above": joined - (p + q),
        "joined_below": max(p, q) - joined,
        "kronecker": abs(_rank(np.kron(a[:12, :12], b[:12, :12])) - p * q),
        "blocks": abs(_rank(block) - (p + q)),
    }


def _hadamard(cell: Cell, rng: np.random.Generator) -> Row:
    """Dimension of the image of ``(X1 Y1^T) o (X2 Y2^T)`` against that of the matrices of rank r^2."""
    (m, n), r = cell["shape"], cell["size"]
    reached = dimensions(lr.Hadamard, (m, n), r, seed=cell["seed"])
    low = _low(rng, m, n, r)
    one = [np.hstack((np.ones((k, 1)), np.zeros((k, r - 1)))) for k in (m, n)]
    u, s, vh = np.linalg.svd(low)
    point = lr.Hadamard(u[:, :r] * s[:r], vh[:r].T, one[0], one[1])
    return {
        "image": reached["image dimension"],
        "rank": reached["rank reached"],
        "all_of_rank_r": _gap(point.dense(), low),
        "of_rank_r2": r * r * (m + n - r * r),
        "printed_bound": 2 * r * (m + n - r),
        "corrected_bound": 2 * r * (m + n - r) - (m + n - 1),
    }


def _hira(cell: Cell, rng: np.random.Generator) -> Row:
    """Rank of ``W o X Y^T`` against ``min(rank(W) r, m, n)``, and what an identity W leaves."""
    m, p, r = cell["size"], *cell["ranks"]
    w, low = _low(rng, m, m, p), _low(rng, m, m, r)
    kept = np.eye(m) * low
    return {
        "excess": _rank(w * low) - min(p * r, m),
        "off_diagonal": float(np.abs(kept - np.diag(np.diag(kept))).max()),
    }


def _corners(cell: Cell, rng: np.random.Generator) -> Row:
    """The 4 x 4 matrix with ones at two corners: a rank-2 matrix that is no Kronecker product of 2 x 2 factors."""
    target = np.zeros((4, 4))
    target[0, 0] = target[3, 3] = 1.0
    rearranged = target.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    values = np.linalg.svd(rearranged, compute_uv=False)
    return {
        "rank": _rank(target),
        "terms": _rank(rearranged),
        "nearest": float(np.sqrt((values[1:] ** 2).sum()) / np.linalg.norm(target)),
    }


def _bernoulli(cell: Cell, rng: np.random.Generator) -> Row:
    """Share of 0/1 matrices of full rank at density ``c log(n) / n``."""
    n, trials = cell["size"], cell["trials"]
    density = cell["factor"] * np.log(n) / n
    full = [_rank((rng.random((n, n)) < density).astype(float)) == n for _ in range(trials)]
    return {"full": float(np.mean(full))}


def _sparse(cell: Cell, rng: np.random.Generator) -> Row:
    """Rank of ``X Y^T + S`` with a permuted diagonal of k entries: r + k, up to full rank."""
    n, r, k = cell["size"], cell["rank"], cell["entries"]
    s = np.zeros((n, n))
    s[np.arange(k), rng.permutation(n)[:k]] = rng.standard_normal(k)
    return {"missing": min(r + k, n) - _rank(_low(rng, n, n, r) + s)}


def _identities(cell: Cell, rng: np.random.Generator) -> Row:
    """Gaps of the identities that hold exactly."""
    m, n, r = 14, 11, 3
    x1, y1, x2, y2 = (rng.standard_normal((k, r)) for k in (m, n, m, n))
    rows = [(a[:, :, None] * b[:, None, :]).reshape(len(a), -1) for a, b in ((x1, x2), (y1, y2))]
    w, z, u, v = rng.standard_normal((m, n)), *(rng.standard_normal(k) for k in (m, m, n))
    ka, kb, a, b = (rng.standard_normal(k) for k in ((4, 2), (2, 3), (5, r), (r, 6)))
    gates = np.outer(z, rng.standard_normal(m)), np.outer(rng.standard_normal(n), v)
    gate = gates[0] @ (x1 @ y1.T) @ gates[1]
    floor = 1e-13 * np.prod([np.linalg.norm(a) for a in (*gates, x1 @ y1.T)])  # the three may nearly cancel
    return {
        "khatri_rao": _gap(rows[0] @ rows[1].T, (x1 @ y1.T) * (x2 @ y2.T)),
        "fast_lora": _gap(z @ (w * np.outer(u, v)), ((z * u) @ w) * v),
        "gate_rank": int(np.linalg.matrix_rank(gate, tol=floor)),
        "kronecker_transform": _gap(np.kron(ka, a) @ np.kron(kb, b), np.kron(ka @ kb, a @ b)),
        **_norms(rng, x1, y1),
    }


def _norms(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> Row:
    """The nuclear norm as the least mean square of the factors, and two measures of rank."""
    matrix = x @ y.T
    nuclear = np.linalg.norm(matrix, "nuc")
    balanced = lr.BurerMonteiro(x, y).balanced()
    gauges = [np.eye(x.shape[1]) + 0.5 * rng.standard_normal((x.shape[1],) * 2) for _ in range(20)]
    moved = [(np.linalg.norm(x @ q) ** 2 + np.linalg.norm(y @ np.linalg.inv(q).T) ** 2) / 2 for q in gauges]
    p, q = (a @ a.T for a in (rng.standard_normal((3, 3)) for _ in range(2)))
    flat = np.linalg.qr(rng.standard_normal((9, 5)))[0]
    return {
        "nuclear_balanced": abs(float(balanced.inner(balanced)) / 2 / nuclear - 1),
        "nuclear_least": float(min(moved) / nuclear),
        "psd_product": float(np.linalg.eigvalsh(p @ q + q @ p)[0]),
        "stable_rank": float(metrics.stable_rank(matrix)),
        "stable_rank_flat": float(metrics.stable_rank(flat)),
        "inverted_stable_rank": float(1 / metrics.stable_rank(matrix)),
        "effective_rank_flat": float(metrics.effective_rank(flat)),
        "effective_rank_one": float(metrics.effective_rank(np.outer(x[:, 0], y[:, 0]))),
    }


def _blocks(cell: Cell, rng: np.random.Generator) -> Row:
    """Ranks of block forms at matched budgets of 2 d r / N numbers, and of LoRA with the same number."""
    d, r, k = cell["size"], cell["rank"], cell["blocks"]
    count = k * k
    diagonal, grid = r // count, r // (count * k)
    forms = {
        "diagonal": (lr.BlockDiagonal.of(count), diagonal),
        "grid": (lr.BlockGrid.of(k, k), grid),
    }
    row = {"budget": 2 * d * r // count, "lora": r // count}
    for name, (form, size) in forms.items():
        row |= {
            f"{name}_rank": _rank(form.random((d, d), size, rng).dense()),
            f"{name}_count": form.parameter_count((d, d), size),
            f"{name}_bound": min(d, count * size),
        }
    return row


def _accuracy(cell: Cell, rng: np.random.Generator) -> Row:
    """Relative errors of the nearest matrices of three forms with 224 numbers each, 28 x 28."""
    target = {"rank 4": _low(rng, 28, 28, 4), "blocks of rank 2": _grid(rng), "Gaussian": rng.standard_normal((28, 28))}
    forms = {"lora": (lr.BurerMonteiro, 4), "grid": (lr.BlockGrid.of(2, 2), 2), "diagonal": (lr.BlockDiagonal.of(4), 4)}
    matrix = target[cell["target"]]
    row = {}
    for name, (form, size) in forms.items():
        u, s, vh = np.linalg.svd(matrix)
        near = form.from_product(u * s, vh.T, size)
        row[name] = float(np.linalg.norm(near.dense() - matrix) / np.linalg.norm(matrix))
        row[f"{name}_count"] = form.parameter_count((28, 28), size)
    return row


def _grid(rng: np.random.Generator) -> np.ndarray:
    return np.block([[_low(rng, 14, 14, 2) for _ in range(2)] for _ in range(2)])


PARTS = {
    "compositions": _compositions,
    "hadamard": _hadamard,
    "hira": _hira,
    "corners": _corners,
    "bernoulli": _bernoulli,
    "sparse": _sparse,
    "identities": _identities,
    "blocks": _blocks,
    "accuracy": _accuracy,
}


# what the claims compare ----------------------------------------------------------------------------------------


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Numbers by name: one value an instance."""
    by = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    identities = by["identities"]
    found: dict[str, Any] = {
        "rank_excess": [row[k] for row in by["compositions"] for k in ("sum", "entrywise", "product", "joined_above")],
        "rank_deficit": [row["joined_below"] for row in by["compositions"]],
        "rank_equalities": [row[k] for row in by["compositions"] for k in ("kronecker", "blocks")],
        "hira_excess": [row["excess"] for row in by["hira"]],
        "hira_off_diagonal": [row["off_diagonal"] for row in by["hira"]],
        "corner_terms": [row["terms"] for row in by["corners"]],
        "corner_nearest": [row["nearest"] for row in by["corners"]],
        "sparse_missing": [row["missing"] for row in by["sparse"]],
        "identity_gaps": [row[k] for row in identities for k in ("khatri_rao", "fast_lora", "kronecker_transform")],
        "gate_rank": [row["gate_rank"] for row in identities],
        "nuclear_balanced": [row["nuclear_balanced"] for row in identities],
        "nuclear_least": [row["nuclear_least"] for row in identities],
        "psd_product": [min((row["psd_product"] for row in identities), default=0.0)],
        "stable_rank_share": [row["stable_rank"] / 3 for row in identities],
        "stable_rank_least": [row["stable_rank"] for row in identities],
        "inverted_stable_rank": [row["inverted_stable_rank"] for row in identities],
        "flat_ranks": [abs(row[k] - 5) for row in identities for k in ("stable_rank_flat", "effective_rank_flat")],
        "effective_rank_one": [row["effective_rank_one"] for row in identities],
    }
    return found | _reach(by["hadamard"]) | _chances(by["bernoulli"]) | _grids(by["blocks"], by["accuracy"])


def _reach(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hadamard_all_of_rank_r": [row["all_of_rank_r"] for row in rows],
        "hadamard_share": [row["image"] / row["of_rank_r2"] for row in rows],
        "hadamard_rank": [row["rank"] for row in rows],
    }
    for r in sorted({row["size"] for row in rows}):
        here = [row for row in rows if row["size"] == r]
        found[f"hadamard_printed_{r}"] = [row["of_rank_r2"] - row["printed_bound"] for row in here]
        found[f"hadamard_corrected_{r}"] = [row["of_rank_r2"] - row["corrected_bound"] for row in here]
        found[f"hadamard_dimension_{r}"] = [row["image"] - row["corrected_bound"] for row in here]
    return found


def _chances(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        f"full_rank_{c:g}": [row["full"] for row in rows if row["factor"] == c] for c in {r["factor"] for r in rows}
    }


def _grids(blocks: Sequence[Row], accuracy: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "diagonal_rank": [row["diagonal_rank"] - row["diagonal_bound"] for row in blocks],
        "grid_rank": [row["grid_rank"] - row["grid_bound"] for row in blocks],
        "budgets": [abs(row[f"{k}_count"] - row["budget"]) for row in blocks for k in ("diagonal", "grid")],
        "diagonal_over_lora": [row["diagonal_rank"] - row["lora"] for row in blocks],
    }
    for target, key in (("rank 4", "low"), ("blocks of rank 2", "block"), ("Gaussian", "gaussian")):
        here = [row for row in accuracy if row["target"] == target]
        found[f"{key}_grid_over_lora"] = [row["grid"] - row["lora"] for row in here]
        found[f"{key}_diagonal_over_lora"] = [row["diagonal"] - row["lora"] for row in here]
    return found


def tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Dimensions of Hadamard images, and errors of block forms."""
    return plots.tables(rows)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Full rank of 0/1 matrices against density; block forms against LoRA."""
    return plots.figures(rows)
