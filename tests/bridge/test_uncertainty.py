"""Laplace's approximation: against the exact Gauss-Newton curvature and Jacobians of automatic differentiation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.uncertainty import Categorical, Gaussian, laplace

from .test_checkpoint import shake


def model_of(*sizes, rank=2, alpha=3.0):
    """Linear layers with tanh between, in double precision, with moved adapters."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    lb.adapt(model, "lora", rank=rank, alpha=alpha, dtype=torch.float64)
    shake(model, 1)
    return model


def parameters(model) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def jacobian(model, x, outputs):
    """By name of the array, (samples, C, its size)."""

    def run(arrays):
        return outputs(lambda z: torch.func.functional_call(model, arrays, (z,)), x)

    # One output at a time: what the layers do in backward is not made for vmap.
    found = torch.autograd.functional.jacobian(
        lambda *a: run(dict(zip(parameters(model), a, strict=True))), tuple(parameters(model).values())
    )
    return {n: j.flatten(2) for n, j in zip(parameters(model), found, strict=True)}


def plain(net, x):
    return net(x)


def exact(model, data, x, hessian, precision, outputs=plain):
    """Covariances of the outputs for x, from dense curvatures of every array."""
    total = 0.0
    curvature = jacobian(model, data, outputs)
    for name, j in jacobian(model, x, outputs).items():
        dense = torch.einsum("sci,scd,sdj->ij", curvature[name], hessian, curvature[name])
        sigma = torch.linalg.inv(dense + precision * torch.eye(len(dense)))
        total = total + j @ sigma @ j.mT
    return total


@pytest.mark.covers("A19")
def test_a_linear_model_of_regression_is_exact():
    model = model_of(5, 3)
    data, x = torch.randn(9, 5).double(), torch.randn(4, 5).double()
    posterior = laplace(model, [data[:4], data[4:]], model, Gaussian(0.5), precision=0.7, rank=None)
    mean, covariance = posterior.predict(x)
    hessian = (torch.eye(3) / 0.25).expand(9, 3, 3).double()
    assert torch.allclose(mean, model(x))
    assert torch.allclose(covariance, exact(model, data, x, hessian, 0.7))


@pytest.mark.covers("A19")
@pytest.mark.parametrize("sizes", [(5, 3), (4, 6, 3)])
def test_one_sample_of_classification_is_exact(sizes):
    """With one sample and one token the curvature of a layer is a Kronecker product."""
    model = model_of(*sizes)
    data, x = torch.randn(1, sizes[0]).double(), torch.randn(6, sizes[0]).double()
    posterior = laplace(model, [data], model, precision=0.3)
    p = model(data).detach().softmax(-1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert torch.allclose(posterior.predict(x)[1], exact(model, data, x, hessian, 0.3))
    directions = Categorical().directions(model(data).detach())
    assert torch.allclose(torch.einsum("ksc,ksd->scd", directions, directions), hessian)


@pytest.mark.covers("A19")
def test_jacobians_add_up_over_tokens():
    model = model_of(4, 6, 3)
    x = torch.randn(3, 5, 4).double()

    def mean(net, x):
        return net(x).mean(1)

    far = laplace(model, [x[:1]], lambda b: mean(model, b), precision=1e12)
    covariance = far.predict(x)[1] * 1e12  # the prior alone
    expected = sum(j @ j.mT for j in jacobian(model, x, mean).values())
    assert torch.allclose(covariance, expected, rtol=1e-6)


@pytest.mark.covers("A19")
def test_jacobians_of_a_transformer(llama):
    model, ids = llama
    lb.adapt(model, "lora", rank=2, targets=["q_proj", "down_proj"])
    shake(model, 1)

    def last(net, ids):
        return net(input_ids=ids).logits[:, -1, :3]

    posterior = laplace(model, [ids], lambda b: last(model, b), precision=1e8)
    expected = torch.zeros(2, 3, 3)
    for row in range(2):
        columns = last(model, ids)[row]
        for j in zip(*[torch.autograd.grad(c, list(trained(model)), retain_graph=True) for c in columns], strict=True):
            flat = torch.stack(j).flatten(1)
            expected[row] += flat @ flat.mT
    assert torch.allclose(posterior.predict(ids)[1].float() * 1e8, expected, rtol=1e-3)
    assert laplace(model, [ids], lambda b: last(model, b)).probabilities(ids).shape == (2, 3)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.covers("A19")
def test_fewer_directions_leave_more_variance():
    model = model_of(6, 7, 3, rank=3)
    data, x = torch.randn(40, 6).double(), torch.randn(5, 6).double()
    variances = []
    for rank in (1, 3, None):
        covariance = laplace(model, [data[i : i + 8] for i in range(0, 40, 8)], model, rank=rank).predict(x)[1]
        variances.append(covariance.diagonal(dim1=1, dim2=2))
    assert (variances[0] > variances[1]).all()
    assert (variances[1] > variances[2]).all()
    whole = laplace(model, [data], model, rank=None).predict(x)[1].diagonal(dim1=1, dim2=2)
    assert torch.allclose(whole, variances[2])


@pytest.mark.covers("A19")
def test_the_evidence_is_that_of_dense_determinants():
    model = model_of(5, 3)
    data = torch.randn(9, 5).double()
    posterior = laplace(model, [data], model, Gaussian(), rank=None)
    curvature = jacobian(model, data, plain)
    theta = torch.cat([p.flatten() for p in parameters(model).values()])

    def dense(precision):
        value = -precision * theta @ theta / 2
        for j in curvature.values():
            h = torch.einsum("sci,scj->ij", j, j)
            value -= torch.linalg.slogdet(torch.eye(len(h)) + h / precision)[1] / 2
        return value.item()

    for precision in (0.1, 1.0, 20.0):
        assert posterior.evidence(precision) == pytest.approx(dense(precision))
    best = posterior.tuned()
    values = [dense(best.precision * factor) for factor in (0.9, 1.0, 1.1)]
    assert values[1] == max(values)


@pytest.mark.covers("A19")
def test_trained_classes_are_less_sure_far_from_the_data():
    torch.manual_seed(0)
    labels = torch.arange(60) % 2
    data = torch.randn(60, 4) + 2.0 * (2 * labels[:, None] - 1)
    model = lb.adapt(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "lora", rank=2, dropout=0.1)
    opt = lb.optimizer(model, lr=2e-2)
    for _ in range(60):
        opt.zero_grad()
        nn.functional.cross_entropy(model(data), labels).backward()
        opt.step()
    model.train()
    posterior = laplace(model, [data], model, precision=1.0)
    assert model.training
    near, far = torch.full((1, 4), 2.0), torch.tensor([[40.0, -30.0, 20.0, -35.0]])
    _, covariance = posterior.predict(torch.cat([near, far]))
    assert covariance[1].trace() > covariance[0].trace()
    p = posterior.probabilities(data)
    model.eval()
    sure = model(data).softmax(-1).max(1).values
    assert torch.allclose(p.sum(1), torch.ones(60).double())
    assert (p.max(1).values <= sure + 1e-3).float().mean() > 0.95
    assert torch.equal(p, posterior.probabilities(data))


@pytest.mark.covers("A19")
def test_draws_have_the_covariance():
    model = model_of(5, 3)
    posterior = laplace(model, [torch.randn(3, 5).double()], model, precision=2.0)
    x = torch.randn(2, 5).double()
    mean, covariance = posterior.predict(x)
    rng = np.random.default_rng(0)
    for row in range(2):
        draws = rng.multivariate_normal(mean[row].numpy(), covariance[row].numpy(), size=20_000)
        expected = np.exp(draws - draws.max(1, keepdims=True))
        expected = (expected / expected.sum(1, keepdims=True)).mean(0)
        assert np.allclose(posterior.probabilities(x, draws=20_000)[row], expected, atol=0.02)


def test_what_has_no_such_curvature():
    model: Any = model_of(5, 3)
    data = [torch.randn(3, 5).double()]
    cases: list[tuple[Any, Any, Any, Any]] = [
        ({"precision": 0.0}, model, ValueError, "precision and rank must be positive"),
        ({"rank": 0}, model, ValueError, "precision and rank must be positive"),
        ({"name": "z"}, model, ValueError, "no adapter 'z'"),
        ({}, lambda b: model(b).sum(), ValueError, r"outputs must return a tensor \(samples, C\)"),
        ({}, lambda b: model(b).detach(), ValueError, r"outputs must return a tensor \(samples, C\)"),
        ({}, lambda b: model(b) + model(b), ValueError, "called twice"),
    ]
    for options, outputs, error, message in cases:
        with pytest.raises(error, match=message):
            laplace(model, data, outputs, **options)
    with pytest.raises(ValueError, match="data have no batches"):
        laplace(model, [], model)
    with pytest.raises(ValueError, match="deviation must be positive"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="in this order"):
        laplace(model, data, model).tuned(2.0, 1.0)
    assert not model[0]._forward_hooks
    for name in ("dora", "lora-fa", "polar"):
        other = lb.adapt(nn.Sequential(nn.Linear(5, 3)), name, rank=2)
        with pytest.raises(TypeError, match="two factors that train are added"):
            laplace(other, data, other)
