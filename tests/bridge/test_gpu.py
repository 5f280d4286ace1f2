"""Adapters on an accelerator: every recipe does there what it does on the processor, and no step waits for it."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch

import llm_bridge as lb
from lowrank_sp.rules import RULES
from tests.accelerator import never_waits, watch

from .conftest import Mlp

pytestmark = pytest.mark.gpu

EVERY = pytest.mark.parametrize("name", sorted(lb.recipes()))


def task(device, width=12, outputs=4):
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(16, width, generator=generator), torch.randn(16, outputs, generator=generator)
    return [a.to(device) for a in made]


def adapted(name, device, **options):
    """A model on the device with a recipe on it, the function that takes one step, and the model's inputs."""
    torch.manual_seed(0)
    model = Mlp().to(device)
    x, y = task(device)

    def loss():
        ((model(x) - y) ** 2).mean().backward()

    lb.adapt(model, name, rank=2, calibration=loss if lb.recipe(name).init.needs else None, **options)
    opt = lb.optimizer(model, lr=1e-2, weight_decay=0.01)

    def closure():
        opt.zero_grad()
        value = ((model(x) - y) ** 2).mean()
        value.backward()
        return value

    return model, (lambda: opt.step(closure)), x


def trained(name, device):
    """Losses of three steps and the model after them; from the second step on nothing waits."""
    model, step, x = adapted(name, device)
    losses = []
    for number in range(3):
        torch.manual_seed(number)
        if number and device != "cpu":
            with never_waits(device):
                losses.append(step().detach())
        else:
            losses.append(step().detach())
    return model.eval(), torch.stack(losses).cpu(), x


def close(ours, theirs, device):
    """Whether numbers agree: to rounding, which another processor's products may magnify a little."""
    tolerance = 2e-2 if device == "cuda" else 1e-4
    return torch.allclose(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@EVERY
def test_a_recipe_trains_there_as_here_and_never_waits(name, device):
    (ours, losses, x), (theirs, expected, z) = trained(name, device), trained(name, "cpu")
    assert {t.device.type for t in ours.state_dict().values()} == {device}
    assert close(losses, expected, device)
    with torch.no_grad():
        assert close(ours(x), theirs(z), device)


@pytest.mark.slow
@EVERY
def test_an_adapter_lives_there_as_here(name, device, tmp_path):
    model, _, x = trained(name, device)
    model.eval()
    with torch.no_grad():
        after = model(x)
        lb.save(model, tmp_path / "own")
        fresh = Mlp()
        torch.manual_seed(0)
        fresh.load_state_dict(Mlp().state_dict())
        lb.load(fresh.to(device), tmp_path / "own")
        assert torch.allclose(fresh.eval()(x).cpu(), after.cpu(), atol=1e-5)
        if lb.recipe(name).mergeable:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of what the export leaves out
                lb.export_lora(model, tmp_path / "lora")
            lb.merge(model)
            assert torch.allclose(model(x).cpu(), after.cpu(), atol=1e-4)
            lb.unmerge(model)
            assert torch.equal(model(x).cpu(), after.cpu())
            lb.unload(model)


LIFE = ["dora", "polar", "oft", "shira"]


@pytest.mark.parametrize("name", LIFE)
def test_some_adapters_live_there_as_here(name, device, tmp_path):
    test_an_adapter_lives_there_as_here(name, device, tmp_path)


@pytest.mark.parametrize("name", ["lora", "dora", "oft"])
def test_half_precision_dropout_and_clipping_do_not_wait(name, device):
    torch.manual_seed(0)
    model = lb.adapt(Mlp().to(device, torch.bfloat16), name, rank=2, dropout=0.1)
    x, y = (a.bfloat16() for a in task(device))
    opt = lb.optimizer(model)
    for number in range(2):
        with never_waits(device) if number else nullcontext():
            opt.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            opt.step()


FORMS = ["lora", "moslora", "polar", "svd", "loha", "melora"]

# Damped whitening of a core needs the eigenvectors of both Gram matrices, which torch computes only while waiting.
DAMPED = {(rule, form) for rule in ("scaled-damped", "loss-damped") for form in ("moslora", "polar")}


def rule_steps(rule, name, device):
    """Two steps of a rule on the form of a recipe; False where it does not fit."""
    torch.manual_seed(0)
    model = lb.adapt(Mlp().to(device), name, rank=2)
    x, y = task(device)
    try:
        opt = lb.optimizer(model, rule=RULES[rule])
    except TypeError:
        return False

    def closure():
        opt.zero_grad()
        value = ((model(x) - y) ** 2).mean()
        value.backward()
        return value

    opt.step(closure)
    if (rule, name) in DAMPED:
        with watch() as waits:
            opt.step(closure)
        assert {operation for operation, _ in waits.reads} <= {"aten._linalg_eigh.default"}
    else:
        with never_waits(device):
            opt.step(closure)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_rule_waits(rule, device):
    fitting = [name for name in FORMS if rule_steps(rule, name, device)]
    assert fitting


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "dora", "polar"])
def test_a_transformer_trains_there_as_here(name, device, llama):
    pretrained, ids = llama

    def train(where):
        model, tokens = copy.deepcopy(pretrained).to(where), ids.to(where)
        lb.adapt(model, name, rank=2)
        opt = lb.optimizer(model, lr=1e-2)
        for number in range(3):
            opt.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            with watch() as waits:
                loss.backward()
                opt.step()
            assert number == 0 or not (waits.reads or waits.uploads)
        return model(input_ids=tokens).logits.detach()

    assert close(train(device), train("cpu"), device)
