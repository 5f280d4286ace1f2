"""Products with block diagonal matrices, alone and before a frozen layer: derivatives, and what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import llm_bridge as lb
from llm_bridge.functions import block_products, times_blocks, turned_linear
from lowrank_sp.parameterizations import BlockRotation, Butterfly, EtherPlus

from .test_functions import saved_bytes


def draw(*shape, seed=0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


# narrow blocks that are put together and some that are not, one block, and wide ones
SIZES = [(4, 3), (5, 4), (1, 5), (2, 17)]


@pytest.mark.parametrize(("count", "side"), SIZES)
def test_products_are_those_with_the_whole_matrix(count, side):
    x, y, blocks = draw(3, count * side), draw(3, count * side, seed=1), draw(count, side, side)
    whole = torch.block_diag(*blocks)
    torch.testing.assert_close(times_blocks(x, blocks), x @ whole.mT)
    full = (x.mT @ y).unflatten(1, (count, side)).unflatten(0, (count, side))
    torch.testing.assert_close(block_products(x, y, count), full.diagonal(dim1=0, dim2=2).movedim(-1, 0))


@pytest.mark.parametrize(("count", "side"), SIZES[:3])
def test_first_and_second_derivatives_of_products(count, side):
    x, y, blocks = draw(3, count * side), draw(3, count * side, seed=1), draw(count, side, side)
    for check in (gradcheck, gradgradcheck):
        assert check(times_blocks, (x, blocks))
        assert check(lambda a, b: block_products(a, b, count), (x, y))


def test_rows_that_are_not_contiguous():
    x, blocks = draw(12, 4).mT, draw(3, 4, 4)
    torch.testing.assert_close(times_blocks(x, blocks), x @ torch.block_diag(*blocks).mT)


# the last ones with so many rows that the weight is turned instead of them
CASES = [
    (BlockRotation, 3, 4),
    (BlockRotation, 2, 2),
    (Butterfly.of(2), 2, 6),
    (BlockRotation, 2, 7),
    (Butterfly.of(2), 2, 7),
]


def a_rotation(form, size):
    return torch.as_tensor(form.random((12, 12), size, np.random.default_rng(0)).angles).requires_grad_()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("form", "size", "rows"), CASES)
def test_derivatives_before_a_frozen_layer(form, size, rows, biased):
    weight, x, angles = draw(5, 12, seed=9).detach(), draw(rows, 12), a_rotation(form, size)
    bias = (draw(5, seed=3),) if biased else ()

    def function(x, angles, *bias):
        return turned_linear(x, lambda: weight, bias[0] if bias else None, form, (angles,))

    torch.testing.assert_close(function(x, angles, *bias), F.linear(x, weight @ form(angles).dense(), *bias))
    for check in (gradcheck, gradgradcheck):
        assert check(function, (x, angles, *bias))


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize(("form", "size", "rows"), CASES)
def test_without_one_gradient(form, size, rows, frozen):
    weight, inputs = draw(5, 12, seed=9).detach(), [draw(rows, 12), a_rotation(form, size)]
    inputs[frozen].requires_grad_(False)
    assert gradcheck(lambda x, angles: turned_linear(x, lambda: weight, None, form, (angles,)), inputs)


@pytest.mark.parametrize(("form", "size", "kept"), [(BlockRotation, 3, 4 * 3 * 3), (Butterfly.of(2), 2, 0)])
def test_keeps_blocks_only_where_their_gradient_is_closed(form, size, kept):
    x, angles, weight = draw(6, 12), a_rotation(form, size), draw(5, 12, seed=9).detach()
    got, _ = saved_bytes(lambda: turned_linear(x, lambda: weight, None, form, (angles,)), (x, angles))
    assert got == 8 * kept


@pytest.mark.parametrize(("tokens", "turned", "pairs"), [(6, 3 * 6, 4), (64, 8 + 8 + 64, 5)])
def test_turns_the_smaller_of_rows_and_weight(tokens, turned, pairs):
    """Beside two products with the weight: rows times blocks, and ``pairs`` of products of blocks with blocks."""
    x, weight = torch.randn(tokens, 64, requires_grad=True), torch.randn(8, 64)
    angles = torch.zeros(1, 2, 32 * 31 // 2, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        turned_linear(x, lambda: weight, None, BlockRotation, (angles,)).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * tokens * 8 * 64) + 2 * 64 * 32 * (turned + 32 * pairs)


def test_no_rows():
    x, angles = torch.zeros(0, 12, requires_grad=True), torch.zeros(1, 4, 3, requires_grad=True)
    turned_linear(x, lambda: torch.ones(5, 12), None, BlockRotation, (angles,)).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 12)
    torch.testing.assert_close(angles.grad, torch.zeros(1, 4, 3))


def test_forms_without_blocks_say_so():
    point = EtherPlus.random((12, 12), 3, np.random.default_rng(0))
    assert not point.blocky(10**6)
    with pytest.raises(TypeError, match="EtherPlus has no blocks"):
        point.blocks(10**6)
    with pytest.raises(TypeError, match="EtherPlus has no gradient that follows from blocks"):
        point.pull_blocks(np.eye(2), np.eye(2))


@pytest.mark.parametrize("name", ["oft", "boft", "boft-scaled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(name, dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 6)), torch.randn(40, 16)
    lb.adapt(model, name, rank=4)
    adapter: Any = lb.adapted(model)["0"].adapter("default")
    with torch.no_grad():
        adapter.angles.add_(0.3 * torch.randn_like(adapter.angles))
    expected = model(x)
    with torch.autocast("cpu", dtype):
        got = model(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0.05)
    got.float().sum().backward()
    assert adapter.angles.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["oft", "boft"])
def test_watched_layers_and_weights_that_train_are_called(name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6)).double(), torch.randn(9, 8, dtype=torch.float64)
    lb.adapt(model, name, rank=2, dtype=torch.float64)
    layer, expected = lb.adapted(model)["0"], model(x)
    seen = []
    handle = layer.base.register_forward_hook(lambda *call: seen.append(call))
    torch.testing.assert_close(model(x), expected)
    assert len(seen) == 1
    handle.remove()
    layer.base.weight.requires_grad_()
    model(x).sum().backward()
    assert layer.base.weight.grad is not None
