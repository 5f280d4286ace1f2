"""RaLoRA: blocks on the diagonal that reach the effective rank of gradients at the cost of LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp.parameterizations import BlockDiagonal


class Wide(nn.Module):
    """Layers whose gradients have about 3, 7 and 13 directions: as many as their inputs have."""

    def __init__(self):
        super().__init__()
        self.lines = nn.ModuleList(nn.Linear(16, 24, bias=False) for _ in range(3))

    def forward(self, x):
        return sum(line(x[..., i, :]).square().sum() for i, line in enumerate(self.lines))


@pytest.fixture
def wide():
    torch.manual_seed(0)
    return Wide().double()


def batch() -> torch.Tensor:
    x = torch.randn(200, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i, directions in enumerate((3, 7, 13)):
        x[:, i, directions:] *= 1e-3
    return x


def erank(matrix: np.ndarray) -> float:
    s = np.linalg.svd(matrix, compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-sum(q * np.log(q) for q in p if q > 0)))


@pytest.mark.covers("R18")
def test_blocks_reach_the_effective_rank_of_the_gradient(wide):
    ranks = lb.ranks_by_effective_rank(wide, [batch()], rank=2, progress=False)
    wide(batch()).backward()
    found = {}
    for path in ranks:
        g = wide.get_submodule(path).weight.grad.numpy()
        power = max(int(np.floor(np.log2(erank(g)) - np.log2(2))), 0)
        found[path] = 2 * min(2**power, 8)  # blocks of 24 x 16
    assert ranks == found
    assert len(set(ranks.values())) > 1
    wide.zero_grad()
    lb.adapt(wide, lb.ralora_of(2), targets=list(ranks), rank_pattern=ranks, alpha=6.0, dtype=torch.float64)
    for path, layer in lb.adapted(wide).items():
        adapter = layer.adapter("default")
        assert adapter.form is BlockDiagonal.of(ranks[path] // 2)
        assert sum(p.numel() for p in adapter.parameters()) == 2 * (24 + 16)
        assert adapter.scale == 3.0
        with torch.no_grad():
            adapter.left.normal_(generator=torch.Generator().manual_seed(2))
        assert np.linalg.matrix_rank(adapter.update().detach().numpy()) == ranks[path]


@pytest.mark.covers("R18")
def test_the_pro_version_starts_from_ranks_of_its_own(wide):
    base = {f"lines.{i}": rank for i, rank in enumerate((1, 2, 4))}
    ranks = lb.ranks_by_effective_rank(wide, [batch()], rank=base, progress=False)
    assert all(ranks[path] % rank == 0 for path, rank in base.items())
    for size in set(base.values()):
        own = {path: ranks[path] for path, rank in base.items() if rank == size}
        lb.adapt(wide, lb.ralora_of(size), targets=list(own), rank_pattern=own, name=f"rank{size}")
    lb.activate(wide, "rank1", "rank2", "rank4")
    assert sum(p.numel() for p in wide.parameters() if p.requires_grad) == sum(base.values()) * (24 + 16)
    assert lb.optimizer(wide) is not None


def test_blocks_have_the_rank_of_lora_where_the_rank_is_small():
    made = lb.recipe("ralora")
    assert made.form_for((16, 24), 4) is BlockDiagonal.of(1)
    assert made.size((16, 24), 4) == 4
    assert made.form_for((64, 64), 32) is BlockDiagonal.of(4)
    assert made.scale(16.0, 32) == made.scale(16.0, 8) == 2.0


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"most": 0}, {"rank": {"lines.0": 0}}])
def test_numbers_out_of_range(wrong, wide):
    with pytest.raises(ValueError, match="must be positive"):
        lb.ranks_by_effective_rank(wide, [batch()], progress=False, **wrong)
    with pytest.raises(ValueError, match="rank of a block must be a positive integer, got 0"):
        lb.ralora_of(0)


def test_a_gradient_of_zero_has_no_effective_rank(wide):
    x = batch()
    x[:, 1] = 0
    with pytest.raises(ValueError, match=r"gradient of lines\.1 is zero"):
        lb.ranks_by_effective_rank(wide, [x], rank=2, progress=False)
