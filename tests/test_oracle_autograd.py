"""Adjoints and gradients against torch's automatic differentiation."""

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp.factors import ByFactor
from lowrank_sp.spaces import FIXED
from lowrank_sp.testing.common import fitting_shape, random_like, random_point


def differentiate(form, arrays, value):
    """Gradient of the real number ``value(point)`` in every array, zeros in those that do not move."""
    fixed = [space is FIXED for space in form.spaces]
    leaves = [a if still else a.clone().requires_grad_() for still, a in zip(fixed, arrays, strict=True)]
    value(form(*leaves)).backward()
    return [0 * a if a.grad is None else a.grad for a in leaves]


@pytest.mark.covers("lowrank_sp.parameterizations.*")
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.parametrize("form", {**lr.FORMS, **lr.ROTATIONS}.values(), ids={**lr.FORMS, **lr.ROTATIONS})
def test_pullback_is_the_gradient_of_the_inner_product(form, batch, dtype):
    """For a form with its own manifold, the differentiated map is the one from tangent coordinates."""
    rng = np.random.default_rng(0)
    size = 2 if form is lr.Butterfly else 3
    shape = fitting_shape(form, size)
    start = random_point(form, shape, size, rng, dtype, batch).map(torch.as_tensor)
    form = type(start)
    g = torch.as_tensor(random_like(np.zeros((*batch, *shape), dtype), rng))
    if issubclass(form, ByFactor):
        arrays, image = start.arrays(), lambda point: point.dense()
    else:
        arrays, image = [0 * a for a in start.arrays()], start.pushforward
    expected = form(*differentiate(form, arrays, lambda point: (g.conj() * image(point)).sum().real))
    expected = expected if issubclass(form, ByFactor) else start.project(expected)
    for a, b in zip(start.pullback(g).arrays(), expected.arrays(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def factorization(rng):
    return lr.MatrixFactorization(torch.as_tensor(rng.standard_normal((7, 6))))


def sensing(rng):
    operator = torch.as_tensor(rng.standard_normal((30, 7, 6)))
    return lr.MatrixSensing(operator, torch.as_tensor(rng.standard_normal(30)), (7, 6))


def rank_one_sensing(rng):
    ensemble = lr.RankOneEnsemble(
        torch.as_tensor(rng.standard_normal((30, 7))), torch.as_tensor(rng.standard_normal((30, 6)))
    )
    return lr.MatrixSensing(ensemble, torch.as_tensor(rng.standard_normal(30)), (7, 6))


def orthogonal_sensing(rng):
    signs = torch.as_tensor(rng.choice((-1.0, 1.0), 42))
    ensemble = lr.SubsampledOrthogonal(signs, torch.as_tensor(rng.permutation(42)[:30]), (7, 6))
    return lr.MatrixSensing(ensemble, torch.as_tensor(rng.standard_normal(30)), (7, 6))


def completion(rng):
    array = torch.as_tensor(rng.standard_normal((7, 6)))
    array[torch.as_tensor(rng.random((7, 6)) < 0.3)] = float("nan")
    return lr.MatrixCompletion.from_array(array)


@pytest.mark.covers("S01", "S02", "S03")
@pytest.mark.parametrize("form", [lr.BurerMonteiro, lr.SVD, lr.PoLAR], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "make",
    [factorization, sensing, rank_one_sensing, orthogonal_sensing, completion],
    ids=lambda f: f.__name__,
)
def test_problem_gradient_is_that_of_its_loss(make, form):
    rng = np.random.default_rng(1)
    problem = make(rng)
    start = form.random((7, 6), 2, rng).map(torch.as_tensor)
    expected = differentiate(form, start.arrays(), lambda p: problem.loss(problem.residual(p)))
    for a, b in zip(problem.gradient(start).arrays(), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
