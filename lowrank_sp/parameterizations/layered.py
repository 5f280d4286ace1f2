"""One layer's matrix of a tensor over layers, whose shared arrays stand beside those of the layer."""

from __future__ import annotations

from typing import Any

from .. import xp
from ..coverage import covers
from ..factors import Multilinear, factorization
from .core import whiten_core
from .kronecker import largest_divisor
from .outer import Outer
from .sided import Sided, Unconvertible

__all__ = ["CoreChain", "HeadCP", "MixedCore", "Mixture", "TrainSlice", "along_weights", "mixed", "remainder"]

Array = Any


def mixed(weights: Array, terms: Array) -> Array:
    """``sum_k w_k T_k`` for weights (..., K) and terms (..., K, a, b)."""
    flat = weights[..., None, :] @ terms.reshape(*terms.shape[:-2], -1)
    return flat.reshape(*weights.shape[:-1], *terms.shape[-2:])


def along_weights(g: Array, weights: Array) -> tuple[Array, Array, Array]:
    """What a gradient (..., K, a, b) is along the weights, what remains, and ``|w|^2`` with two axes of length 1.

    Only the first changes the mixture: the normal matrix of the terms is of rank one over k.
    """
    square = (abs(weights) ** 2).sum(-1)[..., None, None]
    tiny = float(xp.namespace(abs(weights)).finfo(abs(weights).dtype).tiny) ** 0.5
    along = mixed(weights, g) / (square + tiny)
    return along, g - weights.conj()[..., :, None, None] * along[..., None, :, :], square


def remainder(rest: Array, damping: Any) -> Array:
    """The remainder over the damping, which alone weighs it; nothing where there is none."""
    amount = xp.expand(damping, 3)
    return rest * (amount > 0) / (amount + (amount == 0))


class Mixture(Sided, Unconvertible):
    """A form with terms that only matter through one mixture: multilinear, but their normal matrix is singular."""

    expansion = Multilinear.expansion
    _substitute = Multilinear._substitute

    @staticmethod
    def _white_terms(weights: Array, g: Array, p: Array, q: Array, damping: Any) -> Array:
        """Whitened terms (..., K, a, b) of a mixed core between factors with the Gram matrices p and q."""
        along, rest, square = along_weights(g, weights)
        white = whiten_core(p * square, q, along, damping)
        return weights.conj()[..., :, None, None] * white[..., None, :, :] + remainder(rest, damping)


@covers("P73")
@factorization
class MixedCore(Mixture, Outer):
    """W = X (sum_k w_k G_k) Y^H: one layer of a Tucker tensor with cores in all three modes, FacT-TK.

    Parameters
    ----------
    left : array (..., m, r)
        X, which the layers share.
    cores : array (..., r, r, r)
        G, which they share too; its first axis is that of the layers.
    weights : array (..., r)
        w, the row of the third factor that belongs to the layer.
    right : array (..., n, r)
        Y, which the layers share.

    Notes
    -----
    To share is up to whoever holds the arrays; L layers then have ``m r + n r + L r + r^3`` parameters.
    Source: :cite:`jie2023fact`; equation (9) of :cite:`survey2026sp`.

    Examples
    --------
    >>> MixedCore.parameter_count((6, 5), 2)
    32
    """

    left: Array
    cores: Array
    weights: Array
    right: Array

    ndims = (2, 3, 1, 2)
    sides = (0, 0, 0, 1)
    zeros = ("weights",)

    @property
    def rank(self):
        return min(self.left.shape[-1], self.right.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, rank, rank), (rank,), (shape[1], rank)

    def core(self) -> Array:
        """``sum_k w_k G_k``, the core of the layer."""
        return mixed(self.weights, self.cores)

    def product(self):
        return self.left @ self.core(), self.right

    def _chained(self, index, cotangent):
        if index == 3:
            return cotangent
        if index == 0:
            return cotangent @ xp.adjoint(self.core())
        inner = (xp.adjoint(self.left) @ cotangent)[..., None, :, :]
        if index == 1:
            return self.weights.conj()[..., :, None, None] * inner
        return (self.cores.conj() * inner).sum((-2, -1))

    def _white(self, index, g, damping):
        core, p, q = self.core(), xp.gram(self.left), xp.gram(self.right)
        if index == 0:
            return xp.divide_psd(g, core @ q @ xp.adjoint(core), damping)
        if index == 3:
            return xp.divide_psd(g, xp.adjoint(core) @ p @ core, damping)
        if index == 2:
            flat = [
                a.reshape(*a.shape[:-2], -1) for a in (self.cores, p[..., None, :, :] @ self.cores @ q[..., None, :, :])
            ]
            return xp.solve_psd(flat[0].conj() @ flat[1].mT, g[..., None], damping)[..., 0]
        return self._white_terms(self.weights, g, p, q, damping)


@covers("P75")
@factorization
class TrainSlice(Mixture):
    """W = X (sum_k w_k M_k)^H: one layer of a tensor train whose last mode is the layer.

    Parameters
    ----------
    left : array (..., m, r)
        X, the first core, which the layers share.
    middle : array (..., r, n, r)
        M, the second core, which they share too; its first axis is the bond to the layers.
    weights : array (..., r)
        w, what belongs to the layer in the last core.

    Notes
    -----
    To share is up to whoever holds the arrays; L layers then have ``m r + n r^2 + L r`` parameters, which depends on
    the order of the modes. Source: section IV-C of :cite:`survey2026sp`, which calls it FacT-TT; :cite:`jie2023fact`
    puts the layers between the two other modes, which is a `Core` for every layer.

    Examples
    --------
    >>> TrainSlice.parameter_count((6, 5), 2)
    34
    """

    left: Array
    middle: Array
    weights: Array

    ndims = (2, 3, 1)
    sides = (0, 1, 1)
    zeros = ("weights",)

    @property
    def shape(self):
        return self.left.shape[-2], self.middle.shape[-2]

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, shape[1], rank), (rank,)

    def product(self):
        return self.left, mixed(self.weights, self.middle)

    def _chained(self, index, cotangent):
        if index == 0:
            return cotangent
        if index == 1:
            return self.weights.conj()[..., :, None, None] * cotangent[..., None, :, :]
        return (self.middle.conj() * cotangent[..., None, :, :]).sum((-2, -1))

    def _white(self, index, g, damping):
        left, right = self.product()
        if index == 0:
            return xp.divide_psd(g, xp.gram(right), damping)
        gram = xp.gram(left)
        if index == 2:
            flat = [a.reshape(*a.shape[:-2], -1) for a in (self.middle, self.middle @ gram[..., None, :, :])]
            return xp.solve_psd(flat[0].conj() @ flat[1].mT, g[..., None], damping)[..., 0]
        along, rest, square = along_weights(g, self.weights)
        white = xp.divide_psd(along, gram * square, damping)
        return self.weights.conj()[..., :, None, None] * white[..., None, :, :] + remainder(rest, damping)


@covers("P78")
@factorization
class CoreChain(Sided, Multilinear, Unconvertible, Outer):
    """W = X C D Y^H: one matrix of a tensor train over outputs, layers, types of modules and inputs, MetaTT.

    Parameters
    ----------
    left : array (..., m, r)
        X, which all layers of m outputs share.
    layer : array (..., r, r)
        C, of the layer.
    module : array (..., r, r)
        D, of the type of module.
    right : array (..., n, r)
        Y, which all layers of n inputs share.

    Notes
    -----
    To share is up to whoever holds the arrays; L layers with T modules of one shape then have
    ``(m + n) r + (L + T) r^2`` parameters. The survey only names the method; this is its four-mode train.
    Source: :cite:`lopez2025metatt`; section IV-C of :cite:`survey2026sp`.

    Examples
    --------
    >>> CoreChain.parameter_count((6, 5), 2)
    30
    """

    left: Array
    layer: Array
    module: Array
    right: Array

    sides = (0, 0, 0, 1)
    zeros = ("left",)

    @property
    def rank(self):
        return min(self.left.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        return (shape[0], rank), (rank, rank), (rank, rank), (shape[1], rank)

    def product(self):
        return self.left @ (self.layer @ self.module), self.right

    def _chained(self, index, cotangent):
        if index == 3:
            return cotangent
        if index == 0:
            return cotangent @ xp.adjoint(self.layer @ self.module)
        inner = xp.adjoint(self.left) @ cotangent
        return inner @ xp.adjoint(self.module) if index == 1 else xp.adjoint(self.layer) @ inner

    def _white(self, index, g, damping):
        core, p, q = self.layer @ self.module, xp.gram(self.left), xp.gram(self.right)
        if index == 0:
            return xp.divide_psd(g, core @ q @ xp.adjoint(core), damping)
        if index == 3:
            return xp.divide_psd(g, xp.adjoint(core) @ p @ core, damping)
        if index == 1:
            return whiten_core(p, self.module @ q @ xp.adjoint(self.module), g, damping)
        return whiten_core(xp.adjoint(self.layer) @ p @ self.layer, q, g, damping)


@covers("P71", "P72")
@factorization
class HeadCP(Sided, Multilinear, Unconvertible):
    """W_(h p) j = sum_a H_ha X_pa l_a t_a conj(Y_ja): one matrix of a CP tensor over heads, layers and modules.

    Parameters
    ----------
    heads : array (..., h, r)
        H: every head has m / h rows.
    left : array (..., m / h, r)
        X, along the rows of a head.
    layer : array (..., r)
        l, of the layer.
    module : array (..., r)
        t, of the type of module.
    right : array (..., n, r)
        Y.

    Notes
    -----
    The number of heads is the largest divisor of m up to its root when the form is asked for a size. To share is up
    to whoever holds the arrays: with all of them shared that do not belong to one layer or type, it is the five-way
    tensor of LoRTA, and that of CaRA with its modes named otherwise.
    Source: :cite:`hounie2024lorta`, :cite:`veeramacheneni2025cara`; section IV-C of :cite:`survey2026sp`.

    Examples
    --------
    >>> HeadCP.parameter_count((6, 5), 2)
    24
    """

    heads: Array
    left: Array
    layer: Array
    module: Array
    right: Array

    ndims = (2, 2, 1, 1, 2)
    sides = (0, 0, 0, 0, 1)
    zeros = ("layer",)

    @property
    def shape(self):
        return self.heads.shape[-2] * self.left.shape[-2], self.right.shape[-2]

    @property
    def rank(self):
        return min(self.layer.shape[-1], *self.shape)

    @classmethod
    def shapes(cls, shape, rank):
        heads = largest_divisor(shape[0], shape[0])
        return (heads, rank), (shape[0] // heads, rank), (rank,), (rank,), (shape[1], rank)

    def _tall(self) -> Array:
        """H and X side by side, row by row: (..., m, r)."""
        tall = self.heads[..., :, None, :] * self.left[..., None, :, :]
        return tall.reshape(*tall.shape[:-3], -1, tall.shape[-1])

    def product(self):
        return self._tall() * (self.layer * self.module)[..., None, :], self.right

    def _chained(self, index, cotangent):
        if index == 4:
            return cotangent
        both = self.layer * self.module
        if index in (2, 3):
            other = self.module if index == 2 else self.layer
            return other.conj() * (self._tall().conj() * cotangent).sum(-2)
        shaped = (cotangent * both.conj()[..., None, :]).reshape(
            *cotangent.shape[:-2], self.heads.shape[-2], self.left.shape[-2], -1
        )
        if index == 0:
            return (shaped * self.left.conj()[..., None, :, :]).sum(-2)
        return (shaped * self.heads.conj()[..., :, None, :]).sum(-3)

    def _white(self, index, g, damping):
        rows = {0: self.left, 1: self.heads, 2: self._tall(), 3: self._tall()}
        vectors = {0: self.layer * self.module, 1: self.layer * self.module, 2: self.module, 3: self.layer}
        if index == 4:
            return xp.divide_psd(g, xp.gram(self.product()[0]), damping)
        normal = xp.gram(rows[index] * vectors[index][..., None, :]) * xp.gram(self.right).mT
        if index < 2:
            return xp.solve_psd(normal, g.mT, damping).mT
        return xp.solve_psd(normal, g[..., None], damping)[..., 0]
