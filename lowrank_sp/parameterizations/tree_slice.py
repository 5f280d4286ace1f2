"""One layer's matrix of a hierarchical Tucker tensor over blocks, types of layers, outputs and inputs."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import factorization
from .layered import Mixture, along_weights, mixed, remainder
from .outer import Outer

__all__ = ["TreeSlice"]

Array = Any


def _summed(tensor: Array, first: Array, second: Array) -> Array:
    """``sum_ab T[c, a, b] u_a v_b``: (..., c)."""
    return ((tensor @ second[..., None, :, None])[..., 0] @ first[..., :, None])[..., 0]


@covers("P79")
@factorization
class TreeSlice(Mixture, Outer):
    """W = X (sum_d w_d G_d) Y^H with w = R^T s and s_c = u^T B_c v: a layer of a tree over four modes.

    The tree joins blocks and types of layers at one node, outputs and inputs at another, and both at the root.

    Parameters
    ----------
    left : array (..., m, r)
        X, which all layers of m outputs share.
    right : array (..., n, r)
        Y, which all layers of n inputs share.
    cores : array (..., r, r, r)
        G, the node of outputs and inputs; its first axis is the bond to the root.
    root : array (..., r, r)
        R, from the node of the layers to that of the matrices.
    joint : array (..., r, r, r)
        B, the node of blocks and types; its first axis is the bond to the root.
    block : array (..., r)
        u, of the block.
    module : array (..., r)
        v, of the type of layer.

    Notes
    -----
    It is the slice of `HierarchicalTucker` with the modes block, type, output and input. To share is up to whoever
    holds the arrays: L blocks with T types of one shape then have ``(m + n + L + T) r + 2 r^3 + r^2`` parameters.
    Source: :cite:`hackbusch2009ht`; an outlook of section VII-A of :cite:`survey2026sp`.

    Examples
    --------
    >>> TreeSlice.parameter_count((6, 5), 2)
    46
    """

    left: Array
    right: Array
    cores: Array
    root: Array
    joint: Array
    block: Array
    module: Array

    ndims = (2, 2, 3, 2, 3, 1, 1)
    sides = (0, 1, 0, 0, 0, 0, 0)
    zeros = ("block",)

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        cube = (rank, rank, rank)
        return (shape[0], rank), (shape[1], rank), cube, (rank, rank), cube, (rank,), (rank,)

    def _layer(self) -> tuple[Array, Array]:
        """s and w, what the node of the layers and the root hand on."""
        s = _summed(self.joint, self.block, self.module)
        return s, (s[..., None, :] @ self.root)[..., 0, :]

    def core(self) -> Array:
        """``sum_d w_d G_d``, the core of the layer."""
        return mixed(self._layer()[1], self.cores)

    def product(self):
        return self.left @ self.core(), self.right

    def _halves(self) -> tuple[Array, Array]:
        """The node of the layers with v, and with u, applied: (..., a, c) and (..., b, c)."""
        by_block = (self.joint @ self.module[..., None, :, None])[..., 0].mT
        by_module = (self.block[..., None, None, :] @ self.joint)[..., 0, :].mT
        return by_block, by_module

    def _chained(self, index, cotangent):
        if index == 1:
            return cotangent
        if index == 0:
            return cotangent @ xp.adjoint(self.core())
        seen, (s, w) = (xp.adjoint(self.left) @ cotangent)[..., None, :, :], self._layer()
        if index == 2:
            return w.conj()[..., :, None, None] * seen
        along_w = (self.cores.conj() * seen).sum((-2, -1))
        if index == 3:
            return s.conj()[..., :, None] * along_w[..., None, :]
        along_s = (self.root.conj() @ along_w[..., None])[..., 0]
        if index == 4:
            both = self.block.conj()[..., :, None] * self.module.conj()[..., None, :]
            return along_s[..., :, None, None] * both[..., None, :, :]
        return (self._halves()[index - 5].conj() @ along_s[..., None])[..., 0]

    def _white(self, index, g, damping):
        p, q = xp.gram(self.left), xp.gram(self.right)
        if index < 3:
            return self._white_matrices(index, g, p, q, damping)
        s, _ = self._layer()
        weighted = p[..., None, :, :] @ self.cores @ q[..., None, :, :]
        flat = [a.reshape(*a.shape[:-2], -1) for a in (self.cores, weighted)]
        normal = flat[0].conj() @ flat[1].mT  # of w
        if index == 3:
            return _along(s, g[..., None], normal, damping)[..., 0]
        normal = self.root.conj() @ normal @ self.root.mT  # of s
        if index == 4:
            both = (self.block[..., :, None] * self.module[..., None, :]).reshape(*self.block.shape[:-1], -1)
            terms = g.reshape(*g.shape[:-2], -1).mT[..., None]
            return _along(both, terms, normal, damping)[..., 0].mT.reshape(g.shape)
        half = self._halves()[index - 5]
        return xp.solve_psd(half.conj() @ normal @ half.mT, g[..., None], damping)[..., 0]

    def _white_matrices(self, index: int, g: Array, p: Array, q: Array, damping: Any) -> Array:
        """For the two outer factors and the node between them."""
        core = self.core()
        if index == 0:
            return xp.divide_psd(g, core @ q @ xp.adjoint(core), damping)
        if index == 1:
            return xp.divide_psd(g, xp.adjoint(core) @ p @ core, damping)
        return self._white_terms(self._layer()[1], g, p, q, damping)


def _along(weights: Array, g: Array, normal: Array, damping: Any) -> Array:
    """Whitened terms (..., K, c, 1) of a mixture whose image has the normal matrix (..., c, c)."""
    along, rest, square = along_weights(g, weights)
    white = xp.solve_psd(normal * square, along, damping)
    return weights.conj()[..., :, None, None] * white[..., None, :, :] + remainder(rest, damping)
