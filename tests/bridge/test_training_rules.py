"""Ways of taking steps around an optimizer: sharpness-aware, without gradients, weights that follow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.trainer import trained_state


def loss_of(model, task):
    return (model(task[0]) - task[1]).square().mean()


def closure_of(model, task, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, task)
        loss.backward()
        return loss

    return closure


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


# SAM ------------------------------------------------------------------------------------------------------------


@pytest.mark.covers("O21")
def test_the_gradient_is_that_of_the_worst_point_nearby():
    rng = np.random.default_rng(0)
    square = rng.standard_normal((5, 5))
    hessian, start, rho = square @ square.T, rng.standard_normal(5), 0.3
    point = nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([point], lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * point @ torch.tensor(hessian) @ point
        loss.backward()
        return loss

    loss = lb.SharpnessAware(optimizer, rho).step(closure)
    gradient = hessian @ start
    worst = start + rho * gradient / np.linalg.norm(gradient)
    assert np.allclose(point.detach(), start - 0.01 * hessian @ worst)
    assert loss.item() == pytest.approx(0.5 * start @ gradient)


@pytest.mark.covers("O21")
def test_factors_get_balanced():
    """For a loss in x y^T alone the imbalance is kept by gradient flow, and reduced by SAM."""
    imbalance = {}
    for radius in (None, 0.3):
        x, y = nn.Parameter(torch.full((4, 1), 1.5).double()), nn.Parameter(torch.full((3, 1), 0.2).double())
        target = torch.ones(4, 3, dtype=torch.float64)
        optimizer = torch.optim.SGD([x, y], lr=0.01)

        def closure(x=x, y=y, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            loss = 0.5 * (x @ y.mT - target).square().sum()
            loss.backward()
            return loss

        step = optimizer.step if radius is None else lb.SharpnessAware(optimizer, radius).step
        for _ in range(600):
            step(closure)
        imbalance[radius] = abs(x.square().sum() - y.square().sum()).item()
    assert imbalance[0.3] < 0.5 * imbalance[None]


@pytest.mark.parametrize("recipe", ["lora", "reflora", "polar"])
def test_sam_trains_any_recipe(recipe, mlp, task):
    lb.adapt(mlp, recipe, rank=2, also_train=["head.bias"])
    optimizer = lb.optimizer(mlp, lr=1e-2)
    sam = lb.SharpnessAware(optimizer, 0.05)
    first = sam.step(closure_of(mlp, task, optimizer)).item()
    for _ in range(20):
        last = sam.step(closure_of(mlp, task, optimizer)).item()
    assert last < first


def test_only_adapters_go_to_the_worst_point(mlp, task):
    lb.adapt(mlp, "lora", rank=2, targets=["up"], also_train=["head"])
    optimizer, seen = lb.optimizer(mlp, lr=1e-2), []
    before = mlp.head.weight.detach().clone()
    factors = [a.adapter("default").right for a in lb.adapted(mlp).values()]
    starts = [f.detach().clone() for f in factors]

    def closure():
        seen.append((mlp.head.weight.detach().clone(), factors[0].detach().clone()))
        return closure_of(mlp, task, optimizer)()

    lb.SharpnessAware(optimizer, 0.1, lb.SharpnessAware.ADAPTERS).step(closure)
    assert torch.equal(seen[1][0], before)
    lb.SharpnessAware(optimizer, 0.1).step(closure)
    assert not torch.equal(seen[3][0], seen[2][0])
    assert len(starts) == 2


def test_an_error_at_the_worst_point_leaves_the_parameters(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    optimizer, calls = lb.optimizer(mlp, lr=1e-2), []
    before = [p.detach().clone() for p in trained(mlp)]

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return closure_of(mlp, task, optimizer)()

    with pytest.raises(RuntimeError, match="out of memory"):
        lb.SharpnessAware(optimizer).step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, trained(mlp), strict=True))


def test_sam_of_bad_input(mlp):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="radius must be positive"):
        lb.SharpnessAware(lb.optimizer(mlp), 0.0)
    with pytest.raises(ValueError, match="no group of the optimizer has a role among bucket"):
        lb.SharpnessAware(lb.optimizer(mlp), 0.1, ("bucket",))
    with pytest.raises(ValueError, match="it must call backward"):
        lb.SharpnessAware(lb.optimizer(mlp)).step(lambda: mlp(torch.ones(1, 12)).sum())


# MeZO -----------------------------------------------------------------------------------------------------------


@pytest.mark.covers("O23", "B06")
def test_estimates_are_slopes_along_their_directions(mlp, task):
    lb.adapt(mlp.double(), "lora", rank=2, dtype=torch.float64)
    task = [a.double() for a in task]
    optimizer = torch.optim.SGD(trained(mlp), lr=0.1)
    zeroth = lb.ZerothOrder(optimizer, epsilon=1e-4, samples=2)
    start = [p.detach().clone() for p in trained(mlp)]
    loss_of(mlp, task).backward()
    gradient = [p.grad.clone() for p in trained(mlp)]
    expected = [0 * g for g in gradient]
    for sample in range(2):
        z = list(zeroth.directions(sample))
        slope = sum((a * b).sum() for a, b in zip(z, gradient, strict=True))
        expected = [e + 0.5 * slope * a for e, a in zip(expected, z, strict=True)]
    zeroth.step(lambda: loss_of(mlp, task))
    for p, s, e in zip(trained(mlp), start, expected, strict=True):
        assert torch.allclose(p, s - 0.1 * e, atol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(z, zeroth.directions(1), strict=True))


@pytest.mark.covers("O23", "B06")
def test_directions_are_gaussian_and_independent(mlp):
    lb.adapt(mlp, "lora", rank=4)
    zeroth = lb.ZerothOrder(lb.optimizer(mlp), samples=200)
    z = torch.stack([torch.cat([a.flatten() for a in zeroth.directions(s)]) for s in range(200)])
    assert abs(z.mean().item()) < 0.01
    assert z.var().item() == pytest.approx(1.0, abs=0.02)
    assert (z.mT @ z / 200 - torch.eye(z.shape[1])).abs().mean().item() < 0.08


@pytest.mark.parametrize("recipe", ["lora", "reflora"])
def test_training_without_backward(recipe, mlp, task):
    lb.adapt(mlp, recipe, rank=2)
    optimizer = lb.optimizer(mlp, lr=5e-3)
    zeroth = lb.ZerothOrder(optimizer, samples=8)
    first = loss_of(mlp, task).item()
    for _ in range(60):
        zeroth.step(lambda: loss_of(mlp, task))
    assert loss_of(mlp, task).item() < 0.95 * first
    kept = copy.deepcopy((mlp.state_dict(), optimizer.state_dict(), zeroth.state_dict()))
    zeroth.step(lambda: loss_of(mlp, task))
    after = copy.deepcopy(mlp.state_dict())
    mlp.load_state_dict(kept[0])
    again = lb.optimizer(mlp, lr=5e-3)
    again.load_state_dict(kept[1])
    resumed = lb.ZerothOrder(again, samples=8)
    resumed.load_state_dict(kept[2])
    resumed.step(lambda: loss_of(mlp, task))
    assert all(torch.equal(a, b) for a, b in zip(after.values(), mlp.state_dict().values(), strict=True))


def test_zeroth_order_of_bad_input(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    optimizer = lb.optimizer(mlp)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        lb.ZerothOrder(optimizer, epsilon=0.0)
    with pytest.raises(ValueError, match="samples must be a positive integer"):
        lb.ZerothOrder(optimizer, samples=0)
    before = [p.detach().clone() for p in trained(mlp)]
    with pytest.raises(ValueError, match="a smaller lr or epsilon"):
        lb.ZerothOrder(optimizer).step(lambda: torch.tensor(float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, trained(mlp), strict=True))


# Delta-LoRA -----------------------------------------------------------------------------------------------------


@pytest.mark.covers("O44")
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("recipe", ["lora", "reflora"])
def test_weights_follow_as_in_the_published_algorithm(recipe, first, mlp, task):
    base, twin = copy.deepcopy(mlp), copy.deepcopy(mlp)
    lb.adapt(mlp, recipe, rank=2, alpha=4)
    optimizer = lb.optimizer(mlp, lr=1e-2)
    lb.DeltaLoRA(mlp, optimizer, ratio=0.5, first=first)
    lb.adapt(twin, recipe, rank=2, alpha=4)
    other = lb.optimizer(twin, lr=1e-2)
    for t in range(8):
        closure_of(mlp, task, optimizer)()
        optimizer.step()
        closure_of(twin, task, other)()
        layers = lb.adapted(twin).values()
        before = [layer.adapter("default").update().detach().clone() for layer in layers]
        other.step()
        with torch.no_grad():  # the weights themselves move
            for layer, old in zip(layers, before, strict=True):
                if t >= first:
                    layer.base.weight += 0.5 * (layer.adapter("default").update() - old)
        assert torch.allclose(mlp(task[0]), twin(task[0]), atol=1e-5)
    for path, layer in lb.adapted(mlp).items():
        assert torch.equal(layer.base.weight, base.get_submodule(path).weight)


def test_what_follows_is_saved_and_resumed(mlp, task, tmp_path):
    base = copy.deepcopy(mlp)

    def begin(model):
        lb.adapt(model, "lora", rank=2)
        optimizer = lb.optimizer(model, lr=1e-2)
        return optimizer, lb.DeltaLoRA(model, optimizer, first=2)

    def run(model, optimizer, count):
        for _ in range(count):
            closure_of(model, task, optimizer)()
            optimizer.step()

    whole, _ = begin(mlp)
    run(mlp, whole, 5)
    kept = copy.deepcopy((trained_state(mlp), whole.state_dict()))
    run(mlp, whole, 4)
    model = copy.deepcopy(base)
    again, delta = begin(model)
    model.load_state_dict(kept[0], strict=False)
    again.load_state_dict(kept[1])
    assert delta.steps == 5
    run(model, again, 4)
    pairs = zip(mlp.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    lb.export_lora(mlp, tmp_path)
    exported = lb.load_peft(copy.deepcopy(base), tmp_path)
    assert torch.allclose(exported(task[0]), mlp(task[0]), atol=1e-5)


def test_following_of_bad_input(mlp):
    lb.adapt(mlp, "dora", rank=2)
    with pytest.raises(ValueError, match="recipe 'dora' has no thin factors that are added"):
        lb.DeltaLoRA(mlp, lb.optimizer(mlp))
    lb.unload(mlp)
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="ratio must be positive"):
        lb.DeltaLoRA(mlp, lb.optimizer(mlp), ratio=0.0)
    optimizer = lb.optimizer(mlp)
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.DeltaLoRA(mlp, optimizer)


def test_delta_lora_does_not_share_its_place_with_restarts(mlp):
    lb.adapt(mlp, "lora", rank=2)
    optimizer = lb.optimizer(mlp)
    lb.DeltaLoRA(mlp, optimizer)
    with pytest.raises(ValueError, match="Restarts cannot share an optimizer with DeltaLoRA"):
        lb.Restarts(mlp, optimizer, lb.relora(5))
    other = lb.optimizer(mlp)
    lb.Restarts(mlp, other, lb.relora(5))
    with pytest.raises(ValueError, match="DeltaLoRA cannot share an optimizer with Restarts"):
        lb.DeltaLoRA(mlp, other)
