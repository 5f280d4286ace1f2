"""QLoRA: a base in four bits that stays as it is, and adapters in sixteen bits beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from llm_bridge.files import read_tensors

from .conftest import Mlp

BLOCK = 16


class FourBits(torch.Tensor):
    """Codes of NF4 with a scale for every block: a stand-in for the tensors of torchao, which need not be there."""

    __module__ = "torchao.dtypes"
    codes: Any
    scales: Any

    @staticmethod
    def __new__(cls, weight):
        levels = lb.NormalFloat().levels().to(weight)
        blocks = weight.reshape(-1, BLOCK)
        scales = blocks.abs().amax(1, keepdim=True)
        codes = (blocks[..., None] / scales[..., None] - levels).abs().argmin(-1).to(torch.uint8)
        made = torch.Tensor._make_subclass(cls, codes.reshape(weight.shape).float())
        made.codes, made.scales = codes, scales
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, *bias = args
            return F.linear(x, FourBits.dequantize(weight).to(x.dtype), *bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    def dequantize(self):
        with torch._C.DisableTorchFunctionSubclass():
            levels = lb.NormalFloat().levels().to(self.scales)
            return (levels[self.codes.long()] * self.scales).reshape(self.shape)


def quantized(model: nn.Module) -> nn.Module:
    for block in model.layers:  # type: ignore[union-attr]
        for layer in block.values():
            made = FourBits(layer.weight.detach())
            layer.weight = nn.Parameter(made, requires_grad=False)
            vars(layer.weight).update(vars(made))  # which becoming a parameter has lost
    return model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return quantized(Mlp(width=16))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 16, generator=generator), torch.randn(32, 4, generator=generator)


@pytest.mark.covers("P112", "A01")
def test_a_layer_is_its_rounded_weight_and_a_product_in_sixteen_bits(model):
    x, _ = data()
    torch.manual_seed(0)
    original = Mlp(width=16).layers[0]["up"]
    layer = model.layers[0]["up"]
    rounded = lb.NormalFloat(4, BLOCK)(original.weight.detach())
    levels = (rounded.reshape(-1, BLOCK) / rounded.reshape(-1, BLOCK).abs().amax(1, keepdim=True)).numpy()
    assert len(np.unique(levels.round(5))) <= 16
    lb.adapt(model, "lora", rank=2, alpha=3.0, targets=["up", "down"], dtype=torch.bfloat16)
    adapted = lb.adapted(model)["layers.0.up"]
    adapter = adapted.adapter("default")
    assert {p.dtype for p in adapter.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        adapter.left.copy_(torch.randn(adapter.left.shape, generator=torch.Generator().manual_seed(2)))
    left, right = adapter.left.float(), adapter.right.float()
    expected = x @ rounded.T + layer.bias + 1.5 * x @ right @ left.T
    assert torch.allclose(adapted(x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="quantized; merging would round"):
        lb.merge(model)


@pytest.mark.covers("P112", "A01")
def test_training_moves_the_product_alone(model: Any, tmp_path):
    """``min f(Q(W) + s B A)``: the codes stay, the loss falls, and the file holds the factors."""
    x, y = data()
    codes = [block[name].weight.codes.clone() for block in model.layers for name in ("up", "down")]
    lb.adapt(model, "lora", rank=2, targets=["up", "down"], dtype=torch.bfloat16)
    assert all("left" in n or "right" in n for n, p in model.named_parameters() if p.requires_grad)
    optimizer = lb.optimizer(model, lr=2e-2)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    layers: list[Any] = list(lb.adapted(model).values())
    assert all(torch.equal(layer.base.weight.codes, kept) for layer, kept in zip(layers, codes, strict=True))
    lb.save(model, tmp_path)
    stored = sum(t.numel() for t in read_tensors(next(tmp_path.glob("*.safetensors"))).values())
    assert stored == 4 * 2 * (16 + 16)


@pytest.mark.covers("A08")
def test_many_tasks_need_one_base_and_a_small_file_each(tmp_path):
    """``S_base + N S_adapter``: files of N tasks, and the model that holds all of them at once."""
    torch.manual_seed(0)
    model = Mlp(width=64, hidden=64)
    base = sum(p.numel() for p in model.parameters())
    names = ["first", "second", "third"]
    for name in names:
        lb.adapt(model, "lora", rank=2, targets=["up", "down"], name=name)
        lb.save(model, tmp_path / name, name=name)
    each = 4 * 2 * (64 + 64)
    for name in names:
        tensors = read_tensors(next((tmp_path / name).glob("*.safetensors")))
        assert sum(t.numel() for t in tensors.values()) == each
    held = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    assert held == base + 3 * each
    assert each < base / 10
