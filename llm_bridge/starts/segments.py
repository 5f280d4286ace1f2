"""Experts that start from different parts of the spectrum of the weight: GOAT."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_sp.coverage import covers

from .base import Start

__all__ = ["Segments"]


@covers("I09")
@dataclass(frozen=True)
class Segments(Start):
    """``B_e = U_e sqrt(S_e / (s rho))``, ``A_e = sqrt(S_e / (s rho)) V_e^T`` with segments of the singular values.

    The segment of expert e of E begins at ``e floor(min(m, n) / E)`` and has as many values as the experts have
    ranks; where the layer is too small for that, segments overlap. s is the scale of the update.

    Parameters
    ----------
    shrink : float
        rho, 10 in the published code.

    Raises
    ------
    TypeError
        For a form that is not like `llm_bridge.experts.LowRankExperts`.

    Notes
    -----
    The source subtracts the sum of all experts from the weight, which the router does not add back: its model does
    not start at the pretrained one. Here the start is subtracted at the output, with its routing.
    Source: :cite:`fan2025goat`; equation (132) of :cite:`he2026unified`.
    """

    shrink: float = 10.0
    moves = True

    def __call__(self, site):
        if site.form.ndims != (3, 3, 2):
            raise TypeError(f"{site.form.__name__} has no pair of factors for every expert; take LowRankExperts")
        u, s, vh = torch.linalg.svd(site.weight(), full_matrices=False)
        count, width = site.form.count, min(site.rank, len(s))
        firsts = [min(e * (len(s) // count), len(s) - width) for e in range(count)]
        parts = [slice(first, first + width) for first in firsts]
        root = (s / (abs(site.scale) * self.shrink)).sqrt()
        left, right = (torch.stack([(side * root)[:, part] for part in parts]) for side in (u, vh.mT))
        return site.form(left, right, site.normal(site.shape[1], count) / (3 * site.shape[1]) ** 0.5)
