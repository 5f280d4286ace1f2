"""Methods that rotate the input of a layer (OFT, BOFT, HRA), and those with normalized or shared vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowrank_sp.parameterizations import BlockRotation, Butterfly, Householder
from lowrank_sp.parameterizations import DeLoRA as DeLoRAForm

from ..adapter import Adapter
from ..bank import VectorBank
from ..multiplicative import Multiplied, MultipliedScaled
from ..recipe import RECIPES, everywhere, own_rank
from .base import Method, Piece, input_dropout, sites_of, taken, transposed
from .structured import only_linear, plain

__all__ = ["BOFT", "HRA", "OFT", "DeLoRA", "VBLoRA"]


def _side(point: Any) -> int:
    """The side of the blocks of a rotation."""
    return point.shape[0] // point.angles.shape[-2]


def _one_size(sizes: set[int], method: str) -> int:
    """The size that all layers have in common."""
    if len(sizes) > 1:
        raise ValueError(f"{method} of PEFT has one size for all layers, got {sorted(sizes)}")
    return sizes.pop()


class OFT(Method):
    """``W P`` with Cayley rotations of neighbouring inputs; PEFT's truncated series, not orthogonal, is refused."""

    peft_type = "OFT"
    keys = ("oft_R.weight",)
    settings = ("r", "oft_block_size", "num_cayley_neumann_terms", "eps")

    def recipe(self, config, pieces):
        return RECIPES["oft"].but("oft-peft", form=BlockRotation, size=own_rank)  # whose sides are those of the file

    def read(self, site, tensors, shared, config):
        only_linear(site, "OFT")
        angles = taken(tensors, self.keys[0], site)
        return Piece(site.shape[1] // len(angles), 1.0, {"angles": angles[None]})

    def accepts(self, adapter):
        return type(adapter.combine) is Multiplied and issubclass(adapter.form, BlockRotation)

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        side = _one_size({_side(p) for p in points.values()}, "OFT")
        tensors = {path: {self.keys[0]: p.angles[0]} for path, p in points.items()}
        settings = {"r": 0, "oft_block_size": side, "use_cayley_neumann": False, "coft": False, "block_share": False}
        return tensors, {}, settings | {"fan_in_fan_out": transposed(sites_of(entries))}


class BOFT(Method):
    """``diag(s) W P`` with butterflies of rotations."""

    peft_type = "BOFT"
    keys = ("boft_R", "boft_s")
    settings = ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor")

    def recipe(self, config, pieces):
        factors = len(next(iter(pieces.values()))["boft_R"])
        return RECIPES["boft-scaled"].but("boft-peft", form=Butterfly.of(factors), size=own_rank)

    def read(self, site, tensors, shared, config):
        only_linear(site, "BOFT")
        blocks, outputs = (taken(tensors, key, site) for key in self.keys)
        side = blocks.shape[-1]
        rows, cols = torch.triu_indices(side, side, 1)
        skew = (blocks - blocks.mT) / 2
        return Piece(side, 1.0, {"angles": skew[..., rows, cols], "outputs": outputs[:, 0]})

    def accepts(self, adapter):
        return isinstance(adapter.combine, Multiplied) and issubclass(adapter.form, Butterfly)

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        side = _one_size({_side(p) for p in points.values()}, "BOFT")
        factors = _one_size({p.angles.shape[0] for p in points.values()}, "BOFT")
        tensors = {
            site.name: {"boft_R": _skew(points[site.name].angles, side), "boft_s": self._outputs(site, adapter)}
            for site, adapter in entries
        }
        settings = {"boft_block_size": side, "boft_block_num": 0, "boft_n_butterfly_factor": factors}
        return tensors, {}, settings | {"fan_in_fan_out": transposed(sites_of(entries))}

    def _outputs(self, site: Any, adapter: Adapter) -> Tensor:
        if isinstance(adapter.combine, MultipliedScaled):
            return adapter.outputs[:, None]
        return adapter.point().angles.new_ones(site.shape[0], 1)


def _skew(angles: Tensor, side: int) -> Tensor:
    """Skew matrices with these entries above their diagonals."""
    rows, cols = torch.triu_indices(side, side, 1)
    upper = angles.new_zeros(*angles.shape[:-1], side, side)
    upper[..., rows, cols] = angles
    return upper - upper.mT


class HRA(Method):
    """``W H_1 ... H_r`` with Householder reflections."""

    peft_type = "HRA"
    keys = ("hra_u",)
    settings = ("r",)

    def recipe(self, config, pieces):
        hra = RECIPES["hra"]
        return hra.but("hra-peft", size=own_rank) if config.get("r", 8) % 2 else hra

    def read(self, site, tensors, shared, config):
        only_linear(site, "HRA")
        vectors = taken(tensors, self.keys[0], site)
        return Piece(vectors.shape[1], 1.0, {"vectors": vectors[None]})

    def accepts(self, adapter):
        reflects = isinstance(adapter.combine, Multiplied) and issubclass(adapter.form, Householder)
        return reflects and len(adapter.point().vectors) == 1

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        rank = _one_size({p.vectors.shape[-1] for p in points.values()}, "HRA")
        return {path: {"hra_u": p.vectors[0]} for path, p in points.items()}, {}, {"r": rank, "apply_GS": False}


class DeLoRA(Method):
    """``(l / r) sum_i b_i a_i^T diag(w) / (|b_i| |a_i|)``; what is subtracted at the start cannot be written."""

    peft_type = "DELORA"
    keys = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    settings = ("r", "delora_lambda", "rank_pattern", "lambda_pattern")

    def recipe(self, config, pieces):
        return RECIPES["delora"]

    def read(self, site, tensors, shared, config):
        only_linear(site, "DeLoRA")
        right, left, strength, norms = (taken(tensors, key, site) for key in self.keys)
        return Piece(len(right), 1.0, {"left": left, "right": right.mT, "strength": strength, "norms": norms})

    def accepts(self, adapter):
        return plain(adapter, DeLoRAForm)

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        rank = _one_size({p.left.shape[1] for p in points.values()}, "DeLoRA")
        tensors = {}
        for site, adapter in entries:
            p = points[site.name]
            arrays = (p.right.mT, p.left, adapter.scale * p.strength, p.norms)
            tensors[site.name] = dict(zip(self.keys, arrays, strict=True))
        return tensors, {}, {"r": rank, "rank_pattern": {}, "lambda_pattern": {}}


class VBLoRA(Method):
    """Thin factors whose pieces are mixtures of the vectors of one bank."""

    peft_type = "VBLORA"
    keys = ("vblora_logits_A", "vblora_logits_B")
    shared = ("vblora_vector_bank",)
    settings = (
        "r",
        "num_vectors",
        "vector_length",
        "topk",
        "vblora_dropout",
        "init_vector_bank_bound",
        "init_logits_std",
    )
    dropout = "vblora_dropout"

    def recipe(self, config, pieces):
        form = VectorBank.of(config.get("num_vectors", 256), config.get("vector_length", 256), config.get("topk", 2))
        return RECIPES["vb-lora"].but("vb-lora-peft", form=form, shares=(("bank", everywhere),))

    def read(self, site, tensors, shared, config):
        only_linear(site, "VB-LoRA")
        right, left = (taken(tensors, key, site) for key in self.keys)
        bank = taken(shared, self.shared[0], site)
        return Piece(len(right), 1.0, {"left_logits": left, "right_logits": right.transpose(0, 1), "bank": bank})

    def accepts(self, adapter):
        return plain(adapter, VectorBank) and adapter.scale == 1.0

    def write(self, entries, made):
        points = {site.name: adapter.point() for site, adapter in entries}
        first = next(iter(points.values()))
        if any(p.bank.shape != first.bank.shape or not torch.equal(p.bank, first.bank) for p in points.values()):
            raise ValueError("the layers have several banks, VB-LoRA of PEFT has one; export_lora writes plain LoRA")
        rank = _one_size({p.left_logits.shape[1] for p in points.values()}, "VB-LoRA")
        tensors = {
            path: dict(zip(self.keys, (p.right_logits.transpose(0, 1), p.left_logits), strict=True))
            for path, p in points.items()
        }
        count, length, mixed = type(first).settings
        settings = {"r": rank, "num_vectors": count, "vector_length": length, "topk": mixed}
        settings |= {"vblora_dropout": input_dropout(entries), "fan_in_fan_out": transposed(sites_of(entries))}
        return tensors, {self.shared[0]: first.bank}, settings
