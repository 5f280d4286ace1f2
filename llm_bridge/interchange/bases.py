"""Methods over fixed matrices: RandLoRA with random bases, MiSS with sums over groups of inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowrank_sp.parameterizations import FrozenRight
from lowrank_sp.parameterizations import RandLoRA as RandLoRAForm

from ..miss import shards
from ..recipe import RECIPES
from ..sites import Site
from .base import Method, Piece, Tensors, input_dropout, sites_of, taken, transposed
from .structured import only_linear, plain

__all__ = ["MiSS", "RandLoRA"]


class RandLoRA(Method):
    """Sums of scaled random bases. PEFT flattens the two bases in opposite orders, which is undone here.

    So its bases are in common only to layers with as many terms, and files are written for models whose layers have
    one shorter side.
    """

    peft_type = "RANDLORA"
    shared = ("randlora_A", "randlora_B")
    keys = ("randlora_lambda", "randlora_gamma", *shared)
    settings = ("r", "randlora_alpha", "randlora_dropout", "projection_prng_key", "save_projection")
    dropout = "randlora_dropout"

    def recipe(self, config, pieces):
        return RECIPES["randlora"]

    def read(self, site, tensors, shared, config):
        only_linear(site, "RandLoRA")
        values, scales = (taken(tensors, key, site) for key in self.keys[:2])
        a, b = (tensors.get(key, shared.get(key)) for key in self.shared)
        if a is None or b is None:
            raise ValueError(
                "the file lacks randlora_A and randlora_B, which PEFT draws again from a seed; "
                "save with save_projection=True"
            )
        rank, count = values.shape
        short, long = sorted(site.shape)
        bases = b[:long, :count].flatten(1).reshape(long, rank, count).mT
        arrays = {"scales": scales, "values": values.mT, "shared": a[:, 0, :short].mT, "bases": bases}
        return Piece(rank, config.get("randlora_alpha", 640) / rank, arrays)

    def accepts(self, adapter):
        return plain(adapter, RandLoRAForm)

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        whole = {
            name: max((getattr(p, name) for p in points.values()), key=Tensor.numel) for name in ("shared", "bases")
        }
        for path, p in points.items():
            self._check_common(path, p, whole)
        long, count, rank = whole["bases"].shape
        tensors = {
            site.name: {
                "randlora_lambda": points[site.name].values.mT,
                "randlora_gamma": adapter.scale * points[site.name].scales,
            }
            for site, adapter in entries
        }
        # As large as PEFT makes them for the largest sides of all layers; what is beyond its own it does not read.
        sides = sorted(max(site.shape[k] for site in sites_of(entries)) for k in (0, 1))
        short = len(whole["shared"])
        flat = whole["bases"].mT.flatten(1).reshape(long, count, rank)
        fixed = {
            "randlora_A": pad(whole["shared"].mT[:, None], (0, sides[0] - short)),
            "randlora_B": pad(flat, (0, 0, 0, -(-sides[0] // rank) - count, 0, sides[1] - long)),
        }
        settings = {"r": rank, "randlora_alpha": rank, "save_projection": True, "sparse": False, "very_sparse": False}
        settings |= {"randlora_dropout": input_dropout(entries), "fan_in_fan_out": transposed(sites_of(entries))}
        return {path: own | fixed for path, own in tensors.items()}, fixed, settings  # PEFT asks for them in all layers

    def _check_common(self, path: str, point: Any, whole: Tensors) -> None:
        long = len(point.bases)
        sizes = whole["bases"].shape[1:], whole["shared"].shape
        same = sizes == (point.bases.shape[1:], point.shared.shape)
        if not same or not torch.equal(point.bases, whole["bases"][:long]):
            raise ValueError(
                "RandLoRA of PEFT has one pair of random bases, which fits layers with one shorter side only, and "
                f"{path} has others; export_lora writes plain LoRA"
            )


class MiSS(Method):
    """A trained matrix after sums over groups of inputs; the variants that multiply the weight are refused."""

    peft_type = "MISS"
    keys = ("miss_block",)
    settings = ("r", "mini_r", "miss_dropout")
    dropout = "miss_dropout"

    def recipe(self, config, pieces):
        return RECIPES["miss"]

    def read(self, site, tensors, shared, config):
        only_linear(site, "MiSS")
        if config.get("init_weights") in ("bat", "mini"):
            raise ValueError(f"the variant {config['init_weights']!r} of MiSS is not supported")
        block = taken(tensors, self.keys[0], site)
        return Piece(len(block), 1.0, {"left": block.mT, "right": shards(site.shape[1], len(block), block)})

    def accepts(self, adapter):
        if not plain(adapter, FrozenRight):
            return False
        right = adapter.point().right
        return torch.equal(right, shards(*right.shape, right))

    def write(self, entries, made):
        ranks = {adapter.point().right.shape[1] for _, adapter in entries}
        if len(ranks) > 1:
            raise ValueError(f"MiSS of PEFT has one size for all layers, got {sorted(ranks)}")
        tensors = {site.name: {"miss_block": self._block(site, adapter)} for site, adapter in entries}
        settings = {"r": ranks.pop(), "miss_dropout": input_dropout(entries), "init_weights": True}
        return tensors, {}, settings

    def _block(self, site: Site, adapter: Any) -> Tensor:
        return adapter.scale * adapter.point().left.mT
