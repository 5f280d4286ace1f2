"""Kernels with a core space, on convolutions: one convolution with the tensor written out is the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import llm_bridge as lb
from llm_bridge.recipes import flora_conv_of


@pytest.fixture
def images():
    return torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(0))


def shake(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


@pytest.mark.covers("P30")
def test_one_convolution_with_the_tensor_written_out(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 2), stride=2, padding=1))
    before = model(images)
    lb.adapt(model, flora_conv_of(3, 2), rank=2, alpha=3.0, targets=["0"])
    assert torch.equal(model(images), before)
    shake(model)
    arrays = lb.adapted(model)["0"].adapter("default").point().arrays()
    kernel = torch.einsum("abcd,oa,ib,yc,xd->oiyx", *arrays)
    after = model(images)
    assert torch.allclose(after, before + 1.5 * F.conv2d(images, kernel, stride=2, padding=1), atol=1e-4)
    lb.merge(model)
    assert torch.allclose(model(images), after, atol=1e-4)


@pytest.mark.covers("P30")
def test_convolutions_of_one_dimension():
    model = nn.Sequential(nn.Conv1d(4, 6, 3))
    lb.adapt(model, flora_conv_of(1, 3), rank=2, targets=["0"])
    x = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))
    with lb.disable(model):
        before = model(x)
    shake(model)
    kernel = torch.einsum("abcd,oa,ib,yc,xd->oiyx", *lb.adapted(model)["0"].adapter("default").point().arrays())
    assert torch.allclose(model(x), before + F.conv1d(x, kernel[:, :, 0]), atol=1e-4)


def test_learns(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    target = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(2))
    lb.adapt(model, flora_conv_of(3, 3), rank=3, targets=["0"])
    opt = lb.optimizer(model, lr=1e-2)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = ((model(images) - target) ** 2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_kernel_of_another_size_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 6, 2))
    with pytest.raises(ValueError, match="16 columns holds no kernels of 3 x 3"):
        lb.adapt(model, flora_conv_of(3, 3), rank=2, targets=["0"])
