"""Methods with structure beyond thin factors: LoKr, VeRA, GraLoRA, SHiRA, FourierFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_sp.parameterizations import BlockGrid, Fourier, Kronecker, Sparse
from lowrank_sp.parameterizations import LoKr as LoKrForm
from lowrank_sp.parameterizations import VeRA as VeRAForm
from lowrank_sp.parameterizations.kronecker import largest_divisor

from ..adapter import Adapter
from ..combines import Combine, Formed, Placed, Waves
from ..layers import CONV, EMBEDDING
from ..recipe import RECIPES, Recipe, everywhere, unscaled
from ..sites import Site
from ..sizes import values_of_lora
from .base import Method, Piece, Tensors, input_dropout, named_recipe, sites_of, taken, transposed
from .config import patterned
from .lowrank import lycoris_config, lycoris_scale

__all__ = ["FourierFT", "GraLoRA", "LoKr", "SHiRA", "VeRA"]


def plain(adapter: Adapter, form: type) -> bool:
    """Whether an adapter adds a point of a form, with any settings, and nothing else."""
    return adapter.combine.additive and not adapter.shifted and issubclass(adapter.form, form)


def variant(name: str, cite: str, form: Any, combine: Combine | None = None, **more: Any) -> Recipe:
    """The registered recipe of that name, or plain LoRA with another form."""
    return named_recipe(name, RECIPES["lora"].but(name, cite=cite, form=form, combine=combine or Formed(), **more))


def only_linear(site: Site, method: str) -> None:
    """Raise where a method is not defined for a layer."""
    if site.kind in (CONV, EMBEDDING):
        raise ValueError(f"{method} of PEFT is read and written for linear layers only, and {site.name} is none")


# Kronecker products ------------------------------------------------------------------------------------------


def first_factor(side: int, factor: int) -> int:
    """The side of the first factor: the given one if it divides, else the largest divisor up to it and the root."""
    if factor > 0 and side % factor == 0:
        return factor
    return largest_divisor(side, factor if factor > 0 else side)


@dataclass(frozen=True)
class _Halved:
    """The form with two full factors whose sizes follow from ``decompose_factor``."""

    factor: int

    def __call__(self, shape: tuple[int, int], rank: int) -> type[Kronecker]:
        return Kronecker.of(*(first_factor(side, self.factor) for side in shape))


class LoKr(Method):
    """W + s C (x) X Y, or with two full factors. Files that mix both are read with full factors in all layers."""

    peft_type = "LOKR"
    keys = ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")
    settings = (
        *("r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "rank_dropout_scale"),
        *("decompose_both", "decompose_factor"),
    )

    def prepared(self, pieces):
        if all("lokr_w2_a" in tensors and "lokr_w1" in tensors for tensors in pieces.values()):
            return pieces
        return {path: self._full(tensors) for path, tensors in pieces.items()}

    def _full(self, tensors: Tensors) -> dict[str, Tensor]:
        pairs = ((key, f"{key}_a", f"{key}_b") for key in ("lokr_w1", "lokr_w2"))
        return {key: tensors[key] if key in tensors else tensors[a] @ tensors[b] for key, a, b in pairs}

    def recipe(self, config, pieces):
        factor = config.get("decompose_factor", -1)
        if any("lokr_w2" in tensors for tensors in pieces.values()):
            return variant("lokr", "yeh2024lycoris", _Halved(factor))
        return variant("lokr", "yeh2024lycoris", LoKrForm if factor < 1 else LoKrForm.of(factor))

    def read(self, site, tensors, shared, config):
        only_linear(site, "LoKr")
        first, scale = taken(tensors, "lokr_w1", site), lycoris_scale(site, config)
        if "lokr_w2" in tensors:
            return Piece(1, scale, {"left": first[None], "right": tensors["lokr_w2"][None]})
        left, right = (taken(tensors, key, site) for key in ("lokr_w2_a", "lokr_w2_b"))
        return Piece(left.shape[1], scale, {"full": first, "left": left, "right": right.mT})

    def accepts(self, adapter):
        single = plain(adapter, Kronecker) and len(adapter.point().left) == 1
        return single or plain(adapter, LoKrForm)

    def write(self, entries, made):
        for site, _ in entries:
            only_linear(site, "LoKr")
        points = {site.name: adapter.point() for site, adapter in entries}
        firsts = {p: tuple(x.left.shape[1:] if isinstance(x, Kronecker) else x.full.shape) for p, x in points.items()}
        factor = self._factor([(site.shape, firsts[site.name]) for site, _ in entries])
        tensors, ranks = {}, {}
        for path, point in points.items():
            tensors[path], ranks[path] = self._tensors(point)
        settings = {"decompose_factor": factor, "decompose_both": False, "rank_dropout_scale": False}
        return tensors, {}, lycoris_config(entries, ranks) | settings

    def _tensors(self, point: Any) -> tuple[dict[str, Tensor], int]:
        """Tensors, and the r at which PEFT makes them: it has a full factor from half of its longer side on."""
        if isinstance(point, Kronecker):
            return {"lokr_w1": point.left[0], "lokr_w2": point.right[0]}, max(point.right.shape)
        rank, longer = point.left.shape[1], max(len(point.left), len(point.right))
        if 2 * rank >= longer:
            return {"lokr_w1": point.full, "lokr_w2": point.left @ point.right.mT}, longer
        return {"lokr_w1": point.full, "lokr_w2_a": point.left, "lokr_w2_b": point.right.mT}, rank

    def _factor(self, sizes: list[tuple[tuple[int, int], tuple[int, ...]]]) -> int:
        """The setting that gives the first factors of all layers their sizes."""
        candidates = [-1, *sorted({side for _, first in sizes for side in first})]
        for factor in candidates:
            if all(tuple(first_factor(k, factor) for k in shape) == first for shape, first in sizes):
                return factor
        raise ValueError(
            f"no decompose_factor of PEFT gives the factors of all layers their sizes {sorted({s for _, s in sizes})}; "
            "export_lora writes them as plain LoRA"
        )


# one pair of matrices for all layers -------------------------------------------------------------------------


class VeRA(Method):
    """W + diag(b) B diag(d) A with A and B shared by all layers, of which smaller ones use the leading part."""

    peft_type = "VERA"
    keys = ("vera_lambda_b", "vera_lambda_d")
    shared = ("vera_A", "vera_B")
    settings = ("r", "vera_dropout", "d_initial", "projection_prng_key", "save_projection")
    dropout = "vera_dropout"

    def recipe(self, config, pieces):
        shares = (("left", everywhere), ("right", everywhere))
        fallback = RECIPES["lora"].but("vera", cite="kopiczko2024vera", form=VeRAForm, shares=shares)
        return named_recipe("vera", fallback)

    def read(self, site, tensors, shared, config):
        only_linear(site, "VeRA")
        if not set(self.shared) <= shared.keys():
            raise ValueError(
                "the file lacks vera_A and vera_B, which PEFT draws again from a seed; save with save_projection=True"
            )
        b, d = (taken(tensors, key, site) for key in self.keys)
        m, n = site.shape
        left, right = shared["vera_B"][:m], shared["vera_A"][:, :n].mT
        return Piece(len(d), 1.0, {"scales": b, "left": left, "values": d, "right": right})

    def accepts(self, adapter):
        return plain(adapter, VeRAForm)

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        whole = {name: max((getattr(p, name) for p in points.values()), key=len) for name in ("left", "right")}
        for path, point in points.items():
            for name, array in whole.items():
                own = getattr(point, name)
                if own.shape[1] != array.shape[1] or not torch.equal(own, array[: len(own)]):
                    raise ValueError(f"the layers do not share their fixed matrices, which VeRA of PEFT needs: {path}")
        tensors = {
            s.name: {"vera_lambda_b": a.scale * points[s.name].scales, "vera_lambda_d": points[s.name].values}
            for s, a in entries
        }
        settings = {
            "r": whole["left"].shape[1],
            "vera_dropout": input_dropout(entries),
            "save_projection": True,
            "fan_in_fan_out": transposed(sites_of(entries)),
        }
        return tensors, {"vera_A": whole["right"].mT, "vera_B": whole["left"]}, settings


# blocks ------------------------------------------------------------------------------------------------------


class GraLoRA(Method):
    """A k x k grid of blocks of rank r / k. Its tensors interleave the blocks of a row and of a column."""

    peft_type = "GRALORA"
    keys = ("gralora_A", "gralora_B")
    settings = ("r", "alpha", "gralora_k", "gralora_dropout")
    dropout = "gralora_dropout"

    def recipe(self, config, pieces):
        k = config.get("gralora_k", 2)
        return variant("gralora", "jung2025gralora", BlockGrid.of(k, k))

    def read(self, site, tensors, shared, config):
        only_linear(site, "GraLoRA")
        a, b = (taken(tensors, key, site) for key in self.keys)  # (k, n / k, r), (k, r, m / k)
        k, rank = len(a), config.get("r", 32)
        right = a.unflatten(2, (k, -1)).permute(2, 0, 1, 3)
        left = b.unflatten(1, (k, -1)).permute(0, 1, 3, 2)
        return Piece(left.shape[-1], config.get("alpha", 64) / rank, {"left": left, "right": right})

    def accepts(self, adapter):
        return plain(adapter, BlockGrid) and adapter.point().left.shape[0] == adapter.point().left.shape[1]

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        sizes = {tuple(p.left.shape[i] for i in (0, 3)) for p in points.values()}
        if len(sizes) > 1:
            raise ValueError(f"GraLoRA of PEFT has one grid and one rank for all layers, got {sorted(sizes)}")
        k, size = sizes.pop()
        tensors = {
            site.name: {
                "gralora_A": points[site.name].right.permute(1, 2, 0, 3).flatten(2),
                "gralora_B": (adapter.scale * points[site.name].left).permute(0, 1, 3, 2).flatten(1, 2),
            }
            for site, adapter in entries
        }
        settings = {"r": k * size, "alpha": k * size, "gralora_k": k, "hybrid_r": 0}
        settings |= {"gralora_dropout": input_dropout(entries)}
        return tensors, {}, settings | {"fan_in_fan_out": transposed(sites_of(entries))}


# places and modes --------------------------------------------------------------------------------------------


class SHiRA(Method):
    """Free values at fixed places, ``r (m + n)`` of them in a layer."""

    peft_type = "SHIRA"
    keys = ("shira_weight", "shira_indices")
    settings = ("r", "mask_type", "random_seed")

    def recipe(self, config, pieces):
        return variant("shira", "bhardwaj2024shira", Sparse, Placed(), size=values_of_lora)

    def read(self, site, tensors, shared, config):
        only_linear(site, "SHiRA")
        values, indices = (taken(tensors, key, site) for key in self.keys)
        places, order = (indices[0].long() * site.shape[1] + indices[1].long()).sort()
        return Piece(config.get("r", 32), 1.0, {"values": values[order], "places": places})

    def accepts(self, adapter):
        return plain(adapter, Sparse)

    def write(self, entries, made):
        counts = {s.name: divmod(len(a.point().values), sum(s.shape)) for s, a in entries}
        ranks = {rank for rank, _ in counts.values()}
        if len(ranks) > 1 or any(rest for _, rest in counts.values()):
            raise ValueError("SHiRA of PEFT has r (out + in) values in every layer, with one r for all layers")
        tensors = {site.name: self._tensors(site, adapter) for site, adapter in entries}
        return tensors, {}, {"r": ranks.pop(), "mask_type": "random", "init_weights": True}

    def _tensors(self, site: Site, adapter: Adapter) -> dict[str, Tensor]:
        point = adapter.point()
        rows, cols = point.places // site.shape[1], point.places % site.shape[1]
        return {"shira_weight": adapter.scale * point.values, "shira_indices": torch.stack((rows, cols)).int()}


class FourierFT(Method):
    """Coefficients of Fourier modes that PEFT draws from a seed, so that others cannot be written."""

    peft_type = "FOURIERFT"
    keys = ("fourierft_spectrum",)
    settings = ("n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed")

    def recipe(self, config, pieces):
        # The size is that of the file.
        return variant("fourierft-peft", "gao2024fourierft", Fourier, Waves(), scale=unscaled)

    def read(self, site, tensors, shared, config):
        only_linear(site, "FourierFT")
        values = taken(tensors, self.keys[0], site)
        size = site.shape[0] * site.shape[1]
        modes = _drawn(size, config.get("random_loc_seed", 777))[: len(values)]
        return Piece(len(values), config.get("scaling", 150.0) / size**0.5, {"modes": modes, "values": values})

    def accepts(self, adapter):
        return plain(adapter, Fourier)

    def write(self, entries, made):
        counts = {}
        for site, adapter in entries:
            size, point = site.shape[0] * site.shape[1], adapter.point()
            if not torch.equal(point.modes.cpu(), _drawn(size, 777)[: len(point.modes)]):
                raise ValueError(
                    f"FourierFT of PEFT draws its modes, and those of {site.name} are others; "
                    "export_lora writes them as plain LoRA"
                )
            counts[site.name] = len(point.modes)
        count, pattern = patterned(counts)
        tensors = {
            s.name: {self.keys[0]: a.scale * (s.shape[0] * s.shape[1]) ** 0.5 * a.point().values} for s, a in entries
        }
        settings = {"n_frequency": count, "n_frequency_pattern": pattern, "scaling": 1.0, "random_loc_seed": 777}
        return tensors, {}, settings | {"fan_in_fan_out": transposed(sites_of(entries))}


def _drawn(size: int, seed: int) -> Tensor:
    """The order in which PEFT draws the modes of a layer."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
