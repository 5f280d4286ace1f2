"""Methods made of thin factors: LoRA with DoRA and starts, HiRA, AdaLoRA, LoHa."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import pad

from lowrank_sp.parameterizations import BurerMonteiro, DiagonalCore, Hadamard
from lowrank_sp.parameterizations.core import WithValues
from lowrank_sp.parameterizations.frozen import FrozenRight

from ..adapter import Adapter
from ..combines import Formed, MagnitudeDirection, TimesBase
from ..layers import CONV, EMBEDDING
from ..recipe import RECIPES, over_root_rank
from ..sites import Site
from .base import (
    Config,
    Entries,
    Method,
    Piece,
    Tensors,
    input_dropout,
    low_rank_config,
    named_recipe,
    sites_of,
    taken,
    transposed,
)
from .config import patterned, value_at

__all__ = ["AdaLoRA", "HiRA", "LoHa", "LoRA", "lora_tensors", "lycoris_config", "lycoris_scale"]


@dataclass(frozen=True)
class _Pair:
    """Names of A (r, in) and B (out, r), and their layouts in convolutions and embeddings."""

    prefix: str
    suffix: str

    @property
    def keys(self) -> tuple[str, ...]:
        dense = [f"{self.prefix}_{side}{self.suffix}" for side in "AB"]
        return (*dense, *[f"{self.prefix}_embedding_{side}" for side in "AB"])

    def names(self, site: Site) -> tuple[str, str]:
        return self.keys[2:] if site.kind is EMBEDDING else self.keys[:2]

    def factors(self, site: Site, tensors: Tensors) -> dict[str, Tensor]:
        """``left`` (out, r) and ``right`` (in, r)."""
        a, b = (taken(tensors, key, site) for key in self.names(site))
        return {"left": b.flatten(1), "right": a.flatten(1).mT}

    def tensors(self, site: Site, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = right.mT, left
        if site.kind is CONV:
            kernel = site.layer.weight.shape[1:]
            a, b = a.reshape(-1, *kernel), b.reshape(*b.shape, *(1,) * (len(kernel) - 1))
        return dict(zip(self.names(site), (a, b), strict=True))


def is_pair(adapter: Adapter) -> bool:
    """Whether F is a product of two thin factors as it stands (a start that is subtracted may come beside)."""
    return adapter.form in (BurerMonteiro, FrozenRight)


class LoRA(Method):
    """W + s B A, with a magnitude for DoRA. A start that is subtracted makes the rank twice as large."""

    peft_type = "LORA"
    pair: ClassVar = _Pair("lora", ".weight")
    magnitude: ClassVar = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
    keys = (*pair.keys, *magnitude)
    settings = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout")
    dropout = "lora_dropout"
    # Starts that change the weight of the layer: without the change, the factors mean something else.
    residual = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa")

    def recipe(self, config, pieces):
        if config.get("use_dora"):
            return RECIPES["dora"]
        return RECIPES["rslora" if config.get("use_rslora") else "lora"]

    def read(self, site, tensors, shared, config):
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(self.residual):
            raise ValueError(
                f"the adapter was saved with init_lora_weights={start!r}, relative to a changed base weight that the "
                "file does not hold; save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA"
            )
        factors = self.pair.factors(site, tensors)
        rank = factors["left"].shape[1]
        stated = value_at(config, "rank_pattern", site.name, config.get("r", 8))
        if stated != rank:
            raise ValueError(f"the settings give {site.name} the rank {stated}, and its tensors have {rank}")
        alpha = value_at(config, "alpha_pattern", site.name, config.get("lora_alpha", 8))
        found = [tensors[key] for key in self.magnitude if key in tensors]
        if bool(found) != bool(config.get("use_dora")):
            raise ValueError(f"use_dora={config.get('use_dora')} and the tensors of {site.name} do not go together")
        extras = {"magnitude": found[0].reshape(-1)} if found else {}
        return Piece(rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank), factors | extras)

    def accepts(self, adapter):
        return is_pair(adapter) and (adapter.combine.additive or isinstance(adapter.combine, MagnitudeDirection))

    def write(self, entries, made):
        tensors = {site.name: self._tensors(site, adapter) for site, adapter in entries}
        ranks = {site.name: adapter.product()[0].shape[1] for site, adapter in entries}
        root = made.scale is over_root_rank
        settings = {
            **low_rank_config(entries, ranks, root),
            "use_dora": isinstance(made.combine, MagnitudeDirection),
            "use_rslora": root,
            "lora_dropout": input_dropout(entries),
            "bias": "none",
            "init_lora_weights": True,
            "fan_in_fan_out": transposed(sites_of(entries)),
        }
        return tensors, {}, settings

    def _tensors(self, site: Site, adapter: Adapter) -> dict[str, Tensor]:
        tensors = self.pair.tensors(site, *adapter.product())
        if isinstance(adapter.combine, MagnitudeDirection):
            ones = (1,) * (site.layer.weight.ndim - 2) if site.kind is CONV else ()
            magnitude = adapter.magnitude
            tensors[self.magnitude[0]] = magnitude.reshape(1, -1, *ones) if ones else magnitude
        return tensors


class HiRA(Method):
    """W o (1 + s B A); PEFT has no s, so it goes into B."""

    peft_type = "HIRA"
    pair: ClassVar = _Pair("hira", "")
    keys = pair.keys
    settings = ("r", "rank_pattern", "hira_dropout")
    dropout = "hira_dropout"

    def recipe(self, config, pieces):
        return RECIPES["hira"]

    def read(self, site, tensors, shared, config):
        factors = self.pair.factors(site, tensors)
        return Piece(factors["left"].shape[1], 1.0, factors)

    def accepts(self, adapter):
        return is_pair(adapter) and isinstance(adapter.combine, TimesBase)

    def write(self, entries, made):
        products = {site.name: adapter.product() for site, adapter in entries}
        tensors = {s.name: self.pair.tensors(s, a.scale * products[s.name][0], products[s.name][1]) for s, a in entries}
        rank, pattern = patterned({path: left.shape[1] for path, (left, _) in products.items()})
        settings = {"r": rank, "rank_pattern": pattern, "hira_dropout": input_dropout(entries), "init_weights": True}
        return tensors, {}, settings | {"fan_in_fan_out": transposed(sites_of(entries))}


class AdaLoRA(Method):
    """W + s B diag(E) A. Layers to which a budget left no rank have no adapter; zeros fill unequal ranks up."""

    peft_type = "ADALORA"
    keys = ("lora_A", "lora_B", "lora_E")
    settings = (
        "r", "lora_alpha", "lora_dropout", "rank_pattern", "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1",
        "beta2", "orth_reg_weight", "total_step",
    )  # fmt: skip
    dropout = "lora_dropout"
    guard = 1e-5  # what PEFT adds to the rank that it divides by

    def recipe(self, config, pieces):
        return named_recipe("adalora", RECIPES["lora"].but("adalora", cite="zhang2023adalora", form=DiagonalCore))

    def read(self, site, tensors, shared, config):
        a, b, e = (taken(tensors, key, site) for key in self.keys)
        rank = config.get("init_r", 12)
        alpha = config.get("lora_alpha", 8)
        scale = (alpha if alpha > 0 else rank) / (rank + self.guard)
        arrays = {"left": b.flatten(1), "values": e.reshape(-1), "right": a.flatten(1).mT}
        return Piece(e.shape[0], scale, arrays)

    def accepts(self, adapter):
        return adapter.combine.additive and not adapter.shifted and issubclass(adapter.form, WithValues)

    def write(self, entries, made):
        if any(site.kind is EMBEDDING for site, _ in entries):
            raise ValueError("AdaLoRA of PEFT has no embeddings; export_lora writes them as plain LoRA")
        points = {site.name: adapter.point() for site, adapter in entries}
        rank = max(len(point.values) for point in points.values())
        tensors = {
            s.name: self._tensors(points[s.name], rank, a.scale * (rank + self.guard) / rank) for s, a in entries
        }
        settings = {"init_r": rank, "target_r": rank, "lora_alpha": rank, "total_step": 1, "tinit": 0, "tfinal": 0}
        settings |= {
            "lora_dropout": input_dropout(entries),
            "fan_in_fan_out": transposed(sites_of(entries)),
        }
        return tensors, {}, settings

    def _tensors(self, point: Any, rank: int, factor: float) -> dict[str, Tensor]:
        missing = rank - len(point.values)
        a, b = (pad(side, (0, missing)) for side in (point.right, point.left))
        e = pad(factor * point.values, (0, missing))
        return dict(zip(self.keys, (a.mT, b, e[:, None]), strict=True))


class LoHa(Method):
    """W + s (B1 A1) o (B2 A2)."""

    peft_type = "LOHA"
    keys = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    settings = ("r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout")

    def recipe(self, config, pieces):
        return named_recipe(
            "loha", RECIPES["lora"].but("loha", cite="hyeonwoo2022fedpara", form=Hadamard, combine=Formed())
        )

    def read(self, site, tensors, shared, config):
        left, right, left2, right2 = (taken(tensors, key, site) for key in self.keys)
        arrays = {"left": left, "right": right.mT, "left2": left2, "right2": right2.mT}
        return Piece(left.shape[1], lycoris_scale(site, config), arrays)

    def accepts(self, adapter):
        if adapter.form is not Hadamard or not adapter.combine.additive or adapter.shifted:
            return False
        return adapter.point().left.shape == adapter.point().left2.shape

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        tensors = {
            path: dict(zip(self.keys, (p.left, p.right.mT, p.left2, p.right2.mT), strict=True))
            for path, p in points.items()
        }
        ranks = {path: p.left.shape[1] for path, p in points.items()}
        return tensors, {}, lycoris_config(entries, ranks)


def lycoris_scale(site: Site, config: Config) -> float:
    """``alpha / r`` of a layer."""
    rank = value_at(config, "rank_pattern", site.name, config.get("r", 8))
    return value_at(config, "alpha_pattern", site.name, config.get("alpha", 8)) / rank


def lycoris_config(entries: Entries, ranks: Mapping[str, int]) -> dict[str, Any]:
    """As `low_rank_config`, with the names of that family."""
    named = low_rank_config(entries, ranks)
    named["alpha"] = named.pop("lora_alpha")
    return named | {"init_weights": True, "rank_dropout": 0.0, "module_dropout": 0.0}


def lora_tensors(site: Site, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Thin factors (out, r) and (in, r) of a layer as LoRA has them, by key."""
    return LoRA.pair.tensors(site, left, right)
