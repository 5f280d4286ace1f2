"""Arrays that several layers share: one parameter, one step, and errors where that cannot be."""

from __future__ import annotations

import copy

import pytest
import torch

import llm_bridge as lb
from lowrank_sp import BurerMonteiro, DiagonalCore
from lowrank_sp.factors import factorization
from lowrank_sp.spaces import FIXED, FLAT

LORA = lb.recipe("lora")
CP = LORA.but("cp", form=DiagonalCore, shares=(("left", lb.by_type), ("right", lb.by_type)))


@factorization
class FrozenRight(BurerMonteiro):
    """X A^T with a fixed A, for the tests."""

    left: torch.Tensor
    right: torch.Tensor

    spaces = (FLAT, FIXED)


def train(model, task, steps: int = 5, **options):
    opt = lb.optimizer(model, lr=1e-2, **options)
    for _ in range(steps):
        opt.zero_grad()
        ((model(task[0]) - task[1]) ** 2).mean().backward()
        opt.step()


def test_trained_arrays_are_one_parameter(mlp, task):
    lb.adapt(mlp, CP, rank=3)
    first, second = (mlp.layers[i]["up"].adapter("default") for i in (0, 1))
    assert first.left is second.left
    assert first.values is not second.values
    per_shape = {"up": 3 * (16 + 12 + 2), "down": 3 * (12 + 16 + 2), "head": 3 * (4 + 12 + 1)}
    assert lb.summary(mlp).trainable == sum(per_shape.values())


def test_layers_that_share_are_a_tensor_in_cp_form(mlp, task):
    """Training shared factors is training the factors of a third-order tensor: autograd is the oracle."""
    lb.adapt(mlp, CP, rank=3, targets=["up"])
    own = [mlp.layers[i]["up"].adapter("default") for i in (0, 1)]
    factors = [a.detach().clone().requires_grad_() for a in (own[0].left, own[0].right)]
    slices = torch.stack([a.values.detach() for a in own]).requires_grad_()
    reference = torch.optim.AdamW([*factors, slices], lr=1e-2, weight_decay=0.0)
    twin = copy.deepcopy(mlp)
    for _ in range(4):
        reference.zero_grad()
        tensor = torch.einsum("mr,nr,lr->lmn", *factors, slices)
        x = task[0]
        for i, layer in enumerate(twin.layers):
            base = layer["up"].base
            x = x + layer["down"](torch.tanh(x @ (base.weight + tensor[i]).mT + base.bias))
        ((twin.head(x) - task[1]) ** 2).mean().backward()
        reference.step()
    train(mlp, task, 4)
    for i, adapter in enumerate(own):
        assert torch.allclose(adapter.update(), torch.einsum("mr,nr,lr->lmn", *factors, slices)[i], atol=1e-5)


def test_fixed_arrays_share_leading_rows(mlp, task):
    fixed = LORA.but("fixed", form=FrozenRight, shares=(("right", lb.everywhere),))
    lb.adapt(mlp, fixed, rank=2)
    arrays = {path: layer.adapter("default").right for path, layer in lb.adapted(mlp).items()}
    longest = max(arrays.values(), key=len)
    assert all(torch.equal(a, longest[: len(a)]) for a in arrays.values())
    assert len({a.untyped_storage().data_ptr() for a in arrays.values()}) == 1
    train(mlp, task)
    assert all(torch.equal(a, longest[: len(a)]) for a in arrays.values())


def test_trained_arrays_of_different_shapes_are_refused(mlp):
    before = str(mlp)
    with pytest.raises(ValueError, match="it must have one shape"):
        lb.adapt(mlp, LORA.but("bad", shares=(("left", lb.everywhere),)), rank=2)
    with pytest.raises(ValueError, match="cannot be part of a shared one"):
        lb.adapt(mlp, CP, rank=2, rank_pattern={"layers.0.up": 3})
    assert str(mlp) == before


def test_rules_that_look_at_one_layer_are_refused(mlp):
    lb.adapt(mlp, LORA.but("shared", shares=(("right", lb.by_type),)), rank=2)
    with pytest.raises(TypeError, match=r"shares right between layers; only Adam\(\)"):
        lb.optimizer(mlp, rule=lb.recipe("reflora").rule)


def test_copies_of_a_model_share_among_themselves(mlp, task):
    lb.adapt(mlp, CP, rank=2)
    twin = copy.deepcopy(mlp)
    first, second = (twin.layers[i]["up"].adapter("default") for i in (0, 1))
    assert first.left is second.left
    assert first.left is not mlp.layers[0]["up"].adapter("default").left


def test_keys():
    site = lb.Site("encoder.layer.3.attention.query", torch.nn.Linear(2, 3), None)
    assert lb.by_block(site) == "3"
    assert lb.everywhere(site) == lb.everywhere(lb.Site("x", torch.nn.Linear(1, 1), None))
