"""One adapter for each modality on one model, and batches that mix them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp.rules import Plain

KINDS = ["image", "audio", "image", None, "audio", "image"]


class Perceiver(nn.Module):
    """Tokens (batch, time, 8) through two layers, then the mean over time."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, tokens):
        return (tokens + self.down(torch.relu(self.up(tokens)))).mean(1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Perceiver().double()
    for k, name in enumerate(("image", "audio")):
        lb.adapt(model, "lora", rank=2 + k, name=name, seed=k, dtype=torch.float64)
        with torch.no_grad():
            for layer in lb.adapted(model).values():
                left = layer.adapter(name).left
                left.copy_(torch.randn(left.shape, generator=torch.Generator().manual_seed(k), dtype=left.dtype))
    lb.activate(model, "image", "audio")
    return model


@pytest.fixture
def batch():
    """Tokens of six samples and targets."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(6, 5, 8), normal(6, 8)


def loss(model, batch, rows):
    return (model(batch[0][rows]) - batch[1][rows]).square().sum()


def factors(model, name):
    return [p for layer in lb.adapted(model).values() for p in layer.adapter(name).parameters()]


@pytest.mark.covers("P111")
def test_samples_of_a_modality_go_through_its_own_adapter(model, batch):
    with lb.route(model, KINDS):
        mixed = model(batch[0])
    for i, kind in enumerate(KINDS):
        lb.activate(model, *([] if kind is None else [kind]))
        torch.testing.assert_close(model(batch[0][i : i + 1])[0], mixed[i])
    lb.activate(model, "image", "audio")
    assert not torch.allclose(model(batch[0]), mixed)


@pytest.mark.covers("P111")
def test_a_modality_learns_from_its_own_samples_alone(model, batch):
    """Five steps on mixed batches are five steps on each modality by itself."""
    alone = copy.deepcopy(model)
    optimizer = lb.optimizer(model, lr=1e-3, rule=Plain())
    for _ in range(5):
        optimizer.zero_grad()
        with lb.route(model, KINDS):
            loss(model, batch, slice(None)).backward()
        optimizer.step()
    for name in ("image", "audio"):
        lb.activate(alone, name)
        optimizer = lb.optimizer(alone, lr=1e-3, rule=Plain())
        rows = [i for i, kind in enumerate(KINDS) if kind == name]
        for _ in range(5):
            optimizer.zero_grad()
            loss(alone, batch, rows).backward()
            optimizer.step()
        for mixed, own in zip(factors(model, name), factors(alone, name), strict=True):
            torch.testing.assert_close(mixed, own)
    with lb.route(model, KINDS):
        gradient = torch.autograd.grad(loss(model, batch, slice(None)), factors(model, "audio"))
    swapped = (torch.where(torch.tensor([k == "image" for k in KINDS])[:, None, None], 0.0, batch[0]), batch[1])
    with lb.route(model, KINDS):
        again = torch.autograd.grad(loss(model, swapped, slice(None)), factors(model, "audio"))
    for one, two in zip(gradient, again, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.covers("A09")
def test_rows_of_a_batch_each_with_the_adapter_of_its_user():
    """``Z W^T`` and, row by row, ``s_k z_k A_k B_k^T``: one pass for many users, with ranks of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6)).double()
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    for k in range(3):
        lb.adapt(model, "lora", rank=k + 1, alpha=2.0, name=f"user{k}", seed=k, dtype=torch.float64)
        with torch.no_grad():
            lb.adapted(model)["0"].adapter(f"user{k}").left.normal_(generator=torch.Generator().manual_seed(k))
    z, users = torch.randn(7, 8, dtype=torch.float64), [2, 0, 1, 1, 2, 0, 2]
    own = [lb.adapted(model)["0"].adapter(f"user{k}") for k in users]
    updates = torch.stack([a.scale * row @ a.right @ a.left.T for row, a in zip(z, own, strict=True)])
    with lb.route(model, [f"user{k}" for k in users]):
        torch.testing.assert_close(model(z), z @ weight.T + bias + updates)
