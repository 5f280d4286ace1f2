"""Clipped and noisy gradients against their definition, sample by sample."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import llm_bridge as lb


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def prepared(model, clip=0.05, noise=0.0, rate=1.0, batch=8, seed=0, recipe="lora-fa"):
    lb.adapt(model, recipe, rank=2)
    optimizer = torch.optim.SGD(trained(model), lr=rate)
    return lb.PrivateSteps(optimizer, clip, noise, batch, seed)


def samples_of(task, count=6):
    return [(task[0][i : i + 1], task[1][i : i + 1]) for i in range(count)]


def loss_of(model):
    return lambda sample: (model(sample[0]) - sample[1]).square().mean()


@pytest.mark.covers("O50", "A24")
def test_gradients_of_samples_are_clipped_and_added(mlp, task):
    private, samples = prepared(mlp), samples_of(task)
    start, norms = [p.detach().clone() for p in trained(mlp)], []
    expected = [np.zeros(p.shape) for p in start]
    for sample in samples:
        mlp.zero_grad()
        loss_of(mlp)(sample).backward()
        grads = [p.grad.double().numpy() for p in trained(mlp)]
        norms.append(np.sqrt(sum((g**2).sum() for g in grads)))
        expected = [e + g * min(1.0, 0.05 / norms[-1]) / 8 for e, g in zip(expected, grads, strict=True)]
    mlp.zero_grad()
    assert min(norms) > 0.05
    private.clip = float(np.median(norms))  # some are clipped, some are not
    expected = [0 * e for e in expected]
    for sample, norm in zip(samples, norms, strict=True):
        mlp.zero_grad()
        loss_of(mlp)(sample).backward()
        scale = min(1.0, private.clip / norm) / 8
        expected = [e + scale * p.grad.double().numpy() for e, p in zip(expected, trained(mlp), strict=True)]
    mlp.zero_grad()
    loss = private.step(loss_of(mlp), samples)
    for p, s, e in zip(trained(mlp), start, expected, strict=True):
        assert np.allclose((s - p).detach(), e, atol=1e-6)
    assert loss > 0


@pytest.mark.covers("O50", "A24")
def test_no_sample_moves_the_parameters_by_more_than_the_clip(mlp, task):
    samples, moved = samples_of(task), []
    for kept in (samples, samples[1:]):
        model = copy.deepcopy(mlp)
        private = prepared(model, clip=0.03)
        start = [p.detach().clone() for p in trained(model)]
        private.step(loss_of(model), kept)
        moved.append(torch.cat([(s - p).detach().flatten() for p, s in zip(trained(model), start, strict=True)]))
    assert 0.5 * 0.03 / 8 < (moved[0] - moved[1]).norm().item() <= 0.03 / 8 * (1 + 1e-5)


@pytest.mark.covers("O50", "A24")
def test_noise_has_the_stated_size_and_is_new_in_every_step(mlp):
    private = prepared(mlp, clip=0.5, noise=3.0, batch=10)
    drawn = []
    for _ in range(30):
        before = [p.detach().clone() for p in trained(mlp)]
        private.step(loss_of(mlp), [])
        drawn.append(torch.cat([(b - p).detach().flatten() for p, b in zip(trained(mlp), before, strict=True)]))
    noise = torch.stack(drawn)
    assert noise.std().item() == pytest.approx(3.0 * 0.5 / 10, rel=0.03)
    assert noise.mean().abs().item() < 0.01
    assert not torch.equal(noise[0], noise[1])
    state = private.state_dict()
    again = lb.PrivateSteps(private.optimizer, 0.5, 3.0, 10)
    again.load_state_dict(state)
    assert again.steps == 30


@pytest.mark.parametrize("recipe", ["lora-fa", "reflora"])
def test_training_under_noise(recipe, mlp, task):
    lb.adapt(mlp, recipe, rank=2)
    private = lb.PrivateSteps(lb.optimizer(mlp, lr=1e-2), clip=1.0, noise=0.1, batch=16)
    samples = samples_of(task, 16)
    first = np.mean([loss_of(mlp)(s).item() for s in samples])
    for _ in range(25):
        private.step(loss_of(mlp), samples)
    assert np.mean([loss_of(mlp)(s).item() for s in samples]) < 0.9 * first


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"noise": -1.0}, {"batch": 0}])
def test_numbers_out_of_range(wrong, mlp):
    with pytest.raises(ValueError, match="clip and batch must be positive"):
        prepared(mlp, **wrong)


def test_samples_that_are_not_finite(mlp, task):
    private = prepared(mlp)
    start = [p.detach().clone() for p in trained(mlp)]
    with pytest.raises(ValueError, match="no step was taken"):
        private.step(loss_of(mlp), [(task[0][:1] * float("nan"), task[1][:1])])
    assert all(torch.equal(a, b) for a, b in zip(start, trained(mlp), strict=True))
