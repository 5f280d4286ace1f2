"""What several parts measure with."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["cosine", "gap"]


def gap(a: Any, b: Any) -> float:
    """``||a - b|| / ||b||`` in the Frobenius norm."""
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b))


def cosine(a: Any, b: Any) -> float:
    """``<a, b> / (||a|| ||b||)``."""
    return float((np.asarray(a) * np.asarray(b)).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
