"""The optimizer: buckets, groups, schedulers, scaling, closures, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import llm_bridge as lb
from lowrank_sp.rules import LossDamped, Scaled, chain


def gradients(model, task):
    model.zero_grad()
    loss = ((model(task[0]) - task[1]) ** 2).mean()
    loss.backward()
    return loss


def test_equal_shapes_share_a_bucket(mlp):
    lb.adapt(mlp, "reflora", rank=2)
    opt = lb.optimizer(mlp)
    assert sorted(len(bucket.adapters) for bucket in opt.buckets) == [1, 2, 2]


def test_plain_adam_is_that_of_torch(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp, lr=1e-2, weight_decay=0.1)
    reference = [p.detach().clone().requires_grad_() for p in mlp.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(reference, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        gradients(mlp, task)
        trained = [p for p in mlp.parameters() if p.requires_grad]
        for r, p in zip(reference, trained, strict=True):
            r.grad = p.grad.clone()
        opt.step()
        adamw.step()
    assert all(torch.equal(r, p) for r, p in zip(reference, trained, strict=True))
    assert not opt.buckets


def test_other_parameters_train_in_the_same_object(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, targets=["up"], also_train=["head"])
    opt = lb.optimizer(mlp, lr=1e-2, other_lr=1e-1)
    before = mlp.head.weight.detach().clone()
    gradients(mlp, task)
    opt.step()
    assert torch.allclose((mlp.head.weight - before).abs(), torch.tensor(1e-1), rtol=1e-3)


def test_schedulers_reach_every_group(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, also_train=["head.bias"])
    opt = lb.optimizer(mlp, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    gradients(mlp, task)
    opt.step()
    scheduler.step()
    assert {group["lr"] for group in opt.param_groups} == {5e-3}


def test_scaled_gradients_are_unscaled(mlp, task):
    lb.adapt(mlp, "riemannian", rank=2)
    state = {k: v.clone() for k, v in mlp.state_dict().items()}
    opt = lb.optimizer(mlp, lr=1e-2)
    gradients(mlp, task)
    opt.step()
    plain = {k: v.clone() for k, v in mlp.state_dict().items()}
    mlp.load_state_dict(state)
    opt = lb.optimizer(mlp, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    mlp.zero_grad()
    scaler.scale(((mlp(task[0]) - task[1]) ** 2).mean()).backward()
    scaler.step(opt)
    scaler.update()
    assert all(torch.allclose(plain[k], v, atol=1e-6) for k, v in mlp.state_dict().items())


def test_a_loss_reaches_rules_that_damp_by_it(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp, lr=1e-3, rule=chain(Scaled(damping=0.1), LossDamped(0.5)))
    first = opt.step(lambda: gradients(mlp, task)).item()
    for _ in range(20):
        last = opt.step(lambda: gradients(mlp, task)).item()
    assert last < first


def test_layers_without_gradient_stay_where_they_are(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, targets=["up"])
    opt = lb.optimizer(mlp, lr=1e-2)
    adapters = [layer.adapter("default") for layer in lb.adapted(mlp).values()]
    gradients(mlp, task)
    opt.step()
    before = [p.detach().clone() for p in adapters[0].parameters()]
    for _ in range(2):
        gradients(mlp, task)
        for p in adapters[0].parameters():
            p.grad = None
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, adapters[0].parameters(), strict=True))

    # Two buckets now, with counters of their own: both come back from the state.
    resumed = lb.optimizer(mlp, lr=1e-2)
    resumed.load_state_dict(opt.state_dict())
    kept = {path: array.clone() for path, array in mlp.state_dict().items()}
    ends = []
    for continued in (opt, resumed):
        mlp.load_state_dict(kept)
        gradients(mlp, task)
        continued.step()
        ends.append({path: array.clone() for path, array in mlp.state_dict().items()})
    assert all(torch.equal(ends[0][path], ends[1][path]) for path in kept)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}])
def test_bad_numbers(mlp, options):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match=next(iter(options))):
        lb.optimizer(mlp, **options)


def test_nothing_to_train(mlp):
    mlp.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in the model trains"):
        lb.optimizer(mlp)


def test_a_rule_that_does_not_fit_the_form_says_what_it_needs(mlp):
    lb.adapt(mlp, "polar", rank=2)
    with pytest.raises(TypeError, match="needs a BurerMonteiro"):
        lb.optimizer(mlp, rule=lb.recipe("reflora").rule)


def test_state_of_another_model_is_refused(mlp):
    lb.adapt(mlp, "reflora", rank=2)
    opt = lb.optimizer(mlp)
    other = nn.Sequential(nn.Linear(5, 5))
    lb.adapt(other, "reflora", rank=2)
    with pytest.raises(ValueError):
        opt.load_state_dict(lb.optimizer(other).state_dict())
