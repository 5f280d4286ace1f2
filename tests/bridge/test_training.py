"""Plain torch loops: exact resume for every recipe, half precision, gradient scaling, clipping and checkpointing."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import llm_bridge as lb


def batches(count=20, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (2, 7), generator=generator) for _ in range(count)]


def adapt(model, name):
    needs = lb.recipe(name).init.needs
    calibration = [{"input_ids": ids, "labels": ids} for ids in batches(2, seed=4)]
    return lb.adapt(model, name, rank=2, targets=["q_proj", "down_proj"], calibration=calibration if needs else None)


def run(model, opt, scheduler, data):
    for ids in data:
        opt.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        opt.step()
        scheduler.step()


def parts(model):
    opt = lb.optimizer(model, lr=1e-2, weight_decay=0.01)
    return opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)


@pytest.mark.filterwarnings("ignore:.*shares its weight with.*:UserWarning")
@pytest.mark.parametrize("name", list(lb.recipes()))
def test_twenty_steps_resumed_from_step_ten_are_the_same_twenty(name, llama, tmp_path):
    base, data = llama[0], batches()
    whole = adapt(copy.deepcopy(base), name)
    opt, scheduler = parts(whole)
    run(whole, opt, scheduler, data[:10])
    torch.save((whole.state_dict(), opt.state_dict(), scheduler.state_dict()), tmp_path / "ten.pt")
    run(whole, opt, scheduler, data[10:])

    resumed = adapt(copy.deepcopy(base), name)
    opt, scheduler = parts(resumed)
    saved = torch.load(tmp_path / "ten.pt", weights_only=True)
    for part, state in zip((resumed, opt, scheduler), saved, strict=True):
        part.load_state_dict(state)
    run(resumed, opt, scheduler, data[10:])
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert any(not torch.equal(theirs[key], saved[0][key]) for key in theirs)


@pytest.mark.parametrize("name", ["lora", "polar", "reflora", "dora"])
def test_accumulated_gradients_are_those_of_the_whole_batch(name, mlp, task):
    x, y = task
    whole = lb.adapt(mlp, name, rank=2)
    parted = copy.deepcopy(whole)
    for model, pieces in ((whole, 1), (parted, 4)):
        opt = lb.optimizer(model, lr=1e-2)
        for _ in range(5):
            opt.zero_grad()
            for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (((model(a) - b) ** 2).mean() / pieces).backward()
            opt.step()
    assert torch.allclose(whole(x), parted(x), atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "polar", "reflora", "dora", "hira", "moslora"])
def test_factors_stay_in_single_precision_under_autocast(name, mlp, task):
    model = lb.adapt(mlp.to(torch.bfloat16), name, rank=2)
    opt = lb.optimizer(model, lr=1e-2)
    x, y = task
    losses = []
    for _ in range(30):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["lora", "polar", "reflora"])
def test_a_scaler_skips_what_overflows_and_unscales_the_rest(name, mlp, task):
    plain, x, y = lb.adapt(mlp, name, rank=2), *task
    scaled = copy.deepcopy(plain)
    opts = [lb.optimizer(model, lr=1e-2) for model in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(6):
        for model, opt in zip((plain, scaled), opts, strict=True):
            opt.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            if model is plain:
                loss.backward()
                opt.step()
                continue
            scaler.scale(loss).backward()
            before = [p.detach().clone() for p in model.parameters()]
            if step == 3:  # an overflow of half precision
                p: Any = next(p for p in model.parameters() if p.grad is not None)
                kept = p.grad.clone()
                p.grad.fill_(float("inf"))
                scaler.step(opt)
                scaler.update()
                assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
                opt.zero_grad()
                scaler.scale(((model(x) - y) ** 2).mean()).backward()
                assert torch.allclose(p.grad * 2, kept)
            scaler.step(opt)
            scaler.update()
    assert torch.allclose(plain(x), scaled(x), atol=1e-6)


def test_clipping_bounds_the_gradient_of_every_adapter(mlp, task):
    lb.adapt(mlp, "reflora", rank=2)
    opt = lb.optimizer(mlp)
    (1e3 * ((mlp(task[0]) - task[1]) ** 2).mean()).backward()
    trained = [p for group in opt.param_groups for p in group["params"]]
    assert torch.nn.utils.clip_grad_norm_(trained, 1.0) > 1
    assert torch.nn.utils.get_total_norm([p.grad for p in trained]) <= 1 + 1e-5


def checkpointed(llama, reentrant, inputs):
    model = lb.adapt(llama[0].train(), "lora", rank=2, targets=["q_proj", "down_proj"])
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if not inputs:
        model.disable_input_require_grads()
    return model


@pytest.mark.parametrize("reentrant, inputs", [(False, False), (False, True), (True, True)])
def test_recomputed_activations_give_the_same_gradients(reentrant, inputs, llama):
    ids = llama[1]
    stored = lb.adapt(copy.deepcopy(llama[0]).train(), "lora", rank=2, targets=["q_proj", "down_proj"])
    stored(input_ids=ids, labels=ids).loss.backward()
    model = checkpointed(llama, reentrant, inputs)
    model(input_ids=ids, labels=ids).loss.backward()
    assert lb.without_gradient(model) == ()
    pairs = zip(stored.parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-7) for a, b in pairs if a.requires_grad)


def test_an_adapter_without_gradient_is_reported(llama):
    ids = llama[1]
    model = checkpointed(llama, reentrant=True, inputs=False)
    model.get_submodule("model.norm").requires_grad_(True)  # something trains, so that backward itself succeeds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
        model(input_ids=ids, labels=ids).loss.backward()
    missing = lb.without_gradient(model)
    assert len(missing) == 4
    assert missing[0] == "model.layers.0.self_attn.q_proj (default)"
