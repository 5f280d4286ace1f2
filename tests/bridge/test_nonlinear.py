"""Updates that bend: their formulas written out for one input, what they refuse, and splines against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

import llm_bridge as lb
from llm_bridge.nonlinear import GRID, ORDER, Aurora, LoDA, LoDAPlus, spline_basis
from llm_bridge.training.report import stable_ranks

LORA = lb.recipe("lora")
FORMS = [Aurora, LoDA, LoDAPlus]


def point(form, m=5, n=4, rank=3, seed=0):
    drawn = form.random((m, n), rank, np.random.default_rng(seed))
    return drawn.map(lambda a: torch.as_tensor(0.5 * a))


def leaky(v):
    return np.where(v > 0, v, 0.8 * v)


def test_splines_are_those_of_scipy():
    x = torch.linspace(-0.999, 0.999, 37, dtype=torch.float64)
    knots = -1 + 2 / GRID * np.arange(-ORDER, GRID + ORDER + 1)
    expected = BSpline.design_matrix(x.numpy(), knots, ORDER).toarray()
    assert np.allclose(spline_basis(x).numpy(), expected, atol=1e-12)
    assert spline_basis(x).shape == (37, 8)


@pytest.mark.covers("P102")
def test_aurora_for_one_input():
    p = point(Aurora)
    b, a, c, w = (t.numpy() for t in p.arrays())
    x = np.array([0.1, -0.2, 0.3, 0.05])
    h = x @ a
    knots = -1 + 2 / GRID * np.arange(-ORDER, GRID + ORDER + 1)
    splines = np.array([BSpline(knots, w[i], ORDER, extrapolate=False)(h[i]) for i in range(3)])
    expected = b @ (np.tanh(np.tanh(h) @ c) + np.nan_to_num(splines))
    assert np.allclose(p.apply(torch.as_tensor(x)[None])[0].numpy(), expected)
    assert Aurora.parameter_count((4096, 4096), 8) == 2 * 4096 * 8 + 64 + 8 * 8


@pytest.mark.covers("P100", "P101")
def test_loda_for_one_input():
    x = np.array([0.4, -1.0, 2.0, 0.5])
    b, a, c, d = (t.numpy() for t in point(LoDA).arrays())
    h = x @ a
    bent = leaky(leaky(leaky(h) @ c) @ d)
    row = torch.as_tensor(x)[None]
    assert np.allclose(point(LoDA).apply(row)[0].numpy(), leaky(bent @ b.T))
    assert np.allclose(point(LoDAPlus).apply(row)[0].numpy(), h @ b.T + leaky(bent @ b.T))
    assert LoDA.parameter_count((10, 8), 3) == 18 * 3 + 2 * 9


@pytest.mark.parametrize("form", FORMS)
def test_what_bends_activations_is_not_merged_and_says_why(form, mlp, task):
    recipe = LORA.but("bent", form=form)
    assert not recipe.mergeable
    before = mlp(task[0])
    lb.adapt(mlp, recipe, rank=2)
    assert torch.allclose(mlp(task[0]), before, atol=1e-6)
    assert len(lb.summary(mlp).unmoved) == 5
    opt = lb.optimizer(mlp, lr=1e-2)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = ((mlp(task[0]) - task[1]) ** 2).mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not lb.summary(mlp).unmoved
    state = {key: value.clone() for key, value in mlp.state_dict().items()}
    with pytest.raises(TypeError, match="nonlinear function of the activations"):
        lb.merge(mlp)
    assert all(torch.equal(value, state[key]) for key, value in mlp.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_rules_that_need_an_adjoint_are_refused(form):
    p = point(form)
    with pytest.raises(TypeError, match=form.__name__):
        p.whiten(p)
    with pytest.raises(TypeError, match="conversion"):
        form.from_product(*p.arrays()[:2])


@pytest.mark.parametrize("name", sorted(n for n, r in lb.recipes().items() if not r.mergeable))
def test_the_report_of_a_run_does_without_a_matrix(name, mlp):
    """Stable ranks are written before the adapter is: a layer that has no matrix must not cost the run."""
    rows = stable_ranks(lb.adapt(mlp, name, rank=2))
    assert len(rows) == 5
    assert all(row.before >= 1 and math.isnan(row.after) for row in rows)
