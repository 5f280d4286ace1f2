"""Layers that share arrays are slices of one tensor: tensorly, and sums written out, are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorly
import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp import HierarchicalTucker

tl: Any = tensorly  # its annotations promise lists
OUT, IN, LAYERS, RANK = 16, 12, 3, 4


@pytest.fixture
def stack():
    """Blocks with a layer ``a`` and a layer ``b`` of the same shape, adapted by a recipe and shaken."""

    def make(name: str, names: tuple[str, ...] = ("a",)) -> dict[str, list]:
        torch.manual_seed(0)
        model = nn.ModuleList(nn.ModuleDict({k: nn.Linear(IN, OUT) for k in names}) for _ in range(LAYERS))
        lb.adapt(model, name, rank=RANK)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape))
        return {k: [block[k].adapter("default") for block in model] for k in names}

    return make


def updates(adapters: list) -> np.ndarray:
    """The slices of all layers, on a last axis."""
    return np.stack([a.update().detach().double().numpy() for a in adapters], -1)


def numbers(array: torch.Tensor) -> np.ndarray:
    return array.detach().double().numpy()


@pytest.mark.covers("P70")
def test_cp(stack):
    layers = stack("cp")["a"]
    modes = numbers(torch.stack([a.values for a in layers]))
    factors = [numbers(layers[0].left), numbers(layers[0].right), modes]
    assert np.allclose(updates(layers), tl.cp_to_tensor((np.ones(RANK), factors)), atol=1e-4)


@pytest.mark.covers("P73")
def test_tucker_with_three_factors(stack):
    layers = stack("fact-tk")["a"]
    core = numbers(layers[0].cores).transpose(1, 2, 0)
    factors = [numbers(layers[0].left), numbers(layers[0].right), numbers(torch.stack([a.weights for a in layers]))]
    assert np.allclose(updates(layers), tl.tucker_to_tensor((core, factors)), atol=1e-4)


@pytest.mark.covers("P74", "D14")
def test_tucker_with_two_factors(stack):
    layers = stack("lotr")["a"]
    core = numbers(torch.stack([a.core for a in layers], -1))
    factors = [numbers(layers[0].left), numbers(layers[0].right), np.eye(LAYERS)]
    assert np.allclose(updates(layers), tl.tucker_to_tensor((core, factors)), atol=1e-4)


@pytest.mark.covers("P75", "P76")
def test_tensor_train(stack):
    layers = stack("fact-tt")["a"]
    middle = numbers(layers[0].middle).transpose(2, 1, 0)  # bond to the rows, inputs, bond to the layers
    last = numbers(torch.stack([a.weights for a in layers], -1))
    cores = [numbers(layers[0].left)[None], middle, last[..., None]]
    assert np.allclose(updates(layers), tl.tt_to_tensor(cores), atol=1e-4)


@pytest.mark.covers("P78")
def test_train_over_blocks_and_modules(stack):
    both = stack("metatt", ("a", "b"))
    first = both["a"][0]
    assert all(a.left is first.left and a.right is first.right for part in both.values() for a in part)
    assert both["a"][1].layer is both["b"][1].layer
    assert both["a"][0].module is both["a"][2].module
    assert both["a"][0].module is not both["b"][0].module
    blocks = numbers(torch.stack([a.layer for a in both["a"]], 1))  # rows, blocks, columns
    modules = numbers(torch.stack([part[0].module for part in both.values()], 1))
    cores = [numbers(first.left)[None], blocks, modules, numbers(first.right).T[..., None]]
    whole = tl.tt_to_tensor(cores)  # outputs, blocks, modules, inputs
    for k, part in enumerate(both.values()):
        assert np.allclose(updates(part), whole[:, :, k].transpose(0, 2, 1), atol=1e-3)


@pytest.mark.covers("P71", "P72")
def test_cp_over_heads_blocks_and_modules(stack):
    both = stack("lorta", ("a", "b"))
    first = both["a"][0]
    blocks = numbers(torch.stack([a.layer for a in both["a"]]))
    modules = numbers(torch.stack([part[0].module for part in both.values()]))
    factors = [numbers(a) for a in (first.heads, first.left)] + [numbers(first.right), blocks, modules]
    whole = tl.cp_to_tensor((np.ones(RANK), factors)).reshape(OUT, IN, LAYERS, 2)
    for k, part in enumerate(both.values()):
        assert np.allclose(updates(part), whole[..., k], atol=1e-4)


@pytest.mark.covers("P77", "P80")
def test_train_of_one_layer(stack):
    for adapter in stack("loretta")["a"]:
        arrays = [numbers(a) for a in adapter.point().arrays()]
        (_, a, d), (_, _, b, e), (_, c, f) = (x.shape for x in arrays)
        cores = [
            arrays[0].reshape(1, -1, a * d).transpose(0, 2, 1),
            arrays[1].reshape(*arrays[1].shape[:2], b * e).transpose(0, 2, 1),
            arrays[2].reshape(-1, c * f, 1),
        ]
        whole = tl.tt_to_tensor(cores).reshape(a, d, b, e, c, f).transpose(0, 2, 4, 1, 3, 5)
        assert np.allclose(updates([adapter])[..., 0], whole.reshape(OUT, IN), atol=1e-4)


@pytest.mark.covers("P79")
def test_tree_over_blocks_modules_outputs_and_inputs(stack):
    both = stack("hierarchical-tucker", ("a", "b"))
    first = both["a"][0]
    for name in ("left", "right", "cores", "root", "joint"):
        assert all(getattr(a, name) is getattr(first, name) for part in both.values() for a in part)
    assert both["a"][1].block is both["b"][1].block
    assert both["a"][0].module is both["a"][2].module
    blocks = numbers(torch.stack([a.block for a in both["a"]]))
    modules = numbers(torch.stack([part[0].module for part in both.values()]))
    inner = [numbers(a) for a in (first.root[None], first.joint, first.cores)]
    tree = HierarchicalTucker(*inner, blocks, modules, numbers(first.left), numbers(first.right))
    whole = tree.dense()
    written = np.einsum("cd,cab,dpq,la,tb,ip,jq->ltij", inner[0][0], *inner[1:], *tree.arrays()[3:])
    assert np.allclose(whole, written)
    for k, part in enumerate(both.values()):
        assert np.allclose(updates(part), whole[:, k].transpose(1, 2, 0), atol=1e-3)
    trained = {id(p): p.numel() for part in both.values() for a in part for p in a.parameters()}
    assert sum(trained.values()) == (OUT + IN + LAYERS + 2) * RANK + 2 * RANK**3 + RANK**2
