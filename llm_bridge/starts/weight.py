"""Starts from the pretrained weight alone: singular vectors, triangular factors, sketches and sub-blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowrank_sp.coverage import covers

from .base import Start
from .spectrum import dominant_svd, minor_svd

__all__ = ["LeadingColumns", "Minor", "Principal", "Sketch", "SubBlocks", "Triplets"]


@covers("I04")
@dataclass(frozen=True)
class Principal(Start):
    """The best rank-r approximation of the weight: PiSSA.

    ``s F`` is the top of the singular value decomposition of W, by a randomized range finder.
    Source: :cite:`meng2024pissa`; equations (90)-(92) of :cite:`he2026unified`.
    """

    moves = True

    def __call__(self, site):
        u, s, v = dominant_svd(site.weight(), site.rank, site.rng)
        root = (s / site.scale).sqrt()
        return site.form.from_product(u * root, v * root, site.rank)


@covers("I05")
@dataclass(frozen=True)
class Minor(Start):
    """The bottom of the singular value decomposition of W: MiLoRA.

    Where those singular values vanish both factors start at zero, and stay there.

    Notes
    -----
    The source's slice of V takes columns where it means the last rows of ``V^T``.
    Source: :cite:`wang2025milora`; equations (93)-(94) of :cite:`he2026unified`.
    """

    moves = True

    def __call__(self, site):
        u, s, v = minor_svd(site.weight(), site.rank, site.rng)
        root = (s / site.scale).sqrt()
        return site.form.from_product(u * root, v * root, site.rank)


@covers("I06")
@dataclass(frozen=True)
class LeadingColumns(Start):
    """``W = Q R`` cut to the first r columns of Q and rows of R: OLoRA.

    They are the orthonormalized first r columns of W and ``Q^T W``, so the rest is never computed.
    Source: :cite:`buyukakyuz2024olora`; equation (95) of :cite:`he2026unified`, whose W is ``W^T`` here; the
    published code factors W (out, in), as this does.
    """

    moves = True

    def __call__(self, site):
        weight = site.weight()
        q = torch.linalg.qr(weight[:, : site.rank]).Q
        return site.form.from_product(q, weight.mT @ q, site.rank)


@covers("I07")
@dataclass(frozen=True)
class Triplets(Start):
    """Leading singular vectors and values as three arrays, ``s F = U_r diag(S_r) V_r^T``: SORSA.

    Notes
    -----
    Its slice of S and the weight that it is taken from are misprinted in equations (96)-(97) of
    :cite:`he2026unified`. Source: :cite:`cao2024sorsa`.
    """

    moves = True

    def __call__(self, site):
        site.require("left", "values", "right")
        u, s, v = dominant_svd(site.weight(), site.rank, site.rng)
        return site.form(u, s / site.scale, v)


@covers("I13")
@dataclass(frozen=True)
class Sketch(Start):
    """A sketch of the row space of W on the side of the input, the other factor zero: NoRA (Nystrom).

    ``A^T = W^T Phi`` with Phi (out, r) of entries N(0, 1 / out), and ``B = 0``: a stand-in for the unknown target
    of fine-tuning.

    Notes
    -----
    The source prints Phi as r x r. Its X is the factor of the input, LoRA's A. The size of Phi is not given there.
    Source: :cite:`li2024nystrom`; equation (14) of :cite:`survey2026sp`.
    """

    def __call__(self, site):
        m, _ = site.shape
        right = site.weight().mT @ site.normal(m, site.rank) / m**0.5
        return site.form.from_product(right.new_zeros(m, site.rank), right, site.rank)


@covers("I12")
@dataclass(frozen=True)
class SubBlocks(Start):
    """The Nystrom approximation ``W[:, :r] W[:r, :r]^+ W[:r, :]`` from sub-blocks of W: NLoRA.

    Exact for a weight of rank r with a leading block of that rank and a moderate condition number.

    Parameters
    ----------
    tolerance : float
        Singular values of the leading block below this share of the largest count as zero: in the pseudo-inverse they
        would weigh most, and multiply what W is not of rank r.

    Notes
    -----
    The three factors share the scale so that the core has the norm of the identity. As it stands in the formula, the
    core is larger than the weights by the inverse square of their size, and a step of one learning rate for all
    factors moves the update by a multiple of itself.

    Public code of a survey puts the leading block itself in the middle, which approximates nothing; the formula
    of the published method is used. Source: :cite:`guo2025nlora`; named in :cite:`he2026unified`.
    """

    tolerance: float = 1e-1
    moves = True

    def __call__(self, site):
        site.require("left", "core", "right")
        r, weight = site.rank, site.weight()
        core = torch.linalg.pinv(weight[:r, :r], rtol=self.tolerance)
        size = core.norm() / r**0.5
        root = torch.where(size > 0, size, 1.0).sqrt()
        return site.form(weight[:, :r] * root, core / (root**2 * site.scale), weight[:r, :].mT * root)
