"""The contract of every recipe: it starts at the pretrained model, moves what it says, learns, and merges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import llm_bridge as lb

BIBLIOGRAPHY = (Path(__file__).parents[2] / "docs/bibliography.bib").read_text(encoding="utf-8")
EVERY = pytest.mark.parametrize("name", sorted(lb.recipes()))
MERGEABLE = pytest.mark.parametrize("name", sorted(n for n, r in lb.recipes().items() if r.mergeable))


def adapt(model: nn.Module, name: str, task, **options) -> nn.Module:
    """Adapt with a calibration where the recipe asks for one."""
    x, y = task

    def loss():
        ((model(x) - y) ** 2).mean().backward()

    return lb.adapt(model, name, rank=2, calibration=loss if lb.recipe(name).init.needs else None, **options)


def train(model: nn.Module, task, steps: int, lr: float = 1e-2) -> list[float]:
    x, y = task
    opt = lb.optimizer(model, lr=lr)
    losses = []

    def closure():
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(opt.step(closure).item())
    return losses


@EVERY
def test_starts_at_the_pretrained_model(name, mlp, task):
    before = mlp(task[0])
    adapt(mlp, name, task)
    assert torch.allclose(mlp(task[0]), before, atol=1e-5)


@EVERY
def test_sixty_steps_reduce_the_loss(name, mlp, task):
    adapt(mlp, name, task)
    losses = train(mlp, task, 60)
    assert losses[-1] < 0.9 * losses[0]


@EVERY
def test_only_declared_factors_move(name, mlp, task):
    adapt(mlp, name, task)
    before = {path: array.clone() for path, array in mlp.state_dict().items()}
    train(mlp, task, 5)  # of four experts that are drawn at random one has then acted twice
    trainable = {path for path, p in mlp.named_parameters(remove_duplicate=False) if p.requires_grad}
    moved = {path for path, array in mlp.state_dict().items() if not torch.equal(array, before[path])}
    assert moved == trainable


@MERGEABLE
def test_merging_changes_nothing_and_comes_off_exactly(name, mlp, task):
    weights = {path: array.clone() for path, array in mlp.state_dict().items()}
    adapt(mlp, name, task)
    train(mlp, task, 20)
    mlp.eval()
    after = mlp(task[0])
    lb.merge(mlp)
    assert torch.allclose(mlp(task[0]), after, atol=1e-4)
    lb.unmerge(mlp)
    assert torch.equal(mlp(task[0]), after)
    lb.unload(mlp)
    assert all(torch.equal(array, weights[path]) for path, array in mlp.state_dict().items())


@EVERY
def test_disabling_gives_the_pretrained_model(name, mlp, task):
    before = mlp(task[0])
    adapt(mlp, name, task)
    train(mlp, task, 5)
    with lb.disable(mlp):
        assert torch.equal(mlp(task[0]), before)
    assert not torch.allclose(mlp(task[0]), before)


@EVERY
def test_a_saved_optimizer_continues_exactly(name, task):
    def run(pause: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = adapt(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)), name, task)
        opt = lb.optimizer(model, lr=1e-2, weight_decay=0.01)
        for step in range(6):
            if pause and step == 3:
                kept = opt.state_dict()
                opt = lb.optimizer(model, lr=1e-2, weight_decay=0.01)
                opt.load_state_dict(kept)
            opt.zero_grad()
            ((model(task[0]) - task[1]) ** 2).mean().backward()
            opt.step()
        return model.state_dict()

    whole, paused = run(False), run(True)
    assert all(torch.equal(whole[key], paused[key]) for key in whole)


@EVERY
def test_states_its_source(name):
    assert re.search(rf"^@\w+\{{{re.escape(lb.recipe(name).cite)},", BIBLIOGRAPHY, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(n for n, r in lb.recipes().items() if r.init.needs is None))
def test_fits_a_pretrained_transformer(name, minilm):
    model, batch = minilm
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        lb.adapt(model, name, rank=4, targets=["query", "value"])
        after = model(**batch).last_hidden_state
    # Exactly, wherever the update adds something.
    exact = lb.recipe(name).combine.additive
    assert torch.allclose(before, after, rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize("name", ["dora", "dude", "boft-scaled", "hra"])
def test_magnitudes_and_reflections_change_no_bit_at_the_start(name, minilm):
    model, batch = minilm
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        lb.adapt(model, name, rank=4)
        assert torch.equal(model(**batch).last_hidden_state, before)


def test_a_name_that_comes_close_is_named():
    with pytest.raises(ValueError, match=r"did you mean .*pissa"):
        lb.recipe("piss")
    with pytest.raises(ValueError, match="there is a recipe 'lora' already"):
        lb.register(lb.recipe("lora"))
