"""Mixtures on an accelerator: losses beside the experts, labels and limits, and nothing waits."""

from contextlib import ExitStack

import pytest
import torch

import llm_bridge as lb
from tests.accelerator import never_waits

from .conftest import Mlp
from .test_gpu import close, task

pytestmark = pytest.mark.gpu


def trained(name, device, dropout):
    """The loss and what is collected beside it in two steps; nothing waits in the second."""
    torch.manual_seed(0)
    model = lb.adapt(Mlp().to(device), name, rank=2, dropout=dropout)
    x, y = task(device)
    opt, found = lb.optimizer(model, lr=1e-2), []
    with ExitStack() as stack:
        if name in ("moa", "loramoe", "mtlora"):
            stack.enter_context(lb.labelled(model, torch.arange(len(x)) % 2))
        for number in range(2):
            with ExitStack() as step:
                if number and device != "cpu":
                    step.enter_context(never_waits(device))
                balance = None if name == "mtlora" else step.enter_context(lb.balancing(model))
                opt.zero_grad()
                loss = ((model(x) - y) ** 2).mean()
                (loss if balance is None else loss + 0.1 * balance.total()).backward()
                opt.step()
                found += [loss.detach()] + ([] if balance is None else [balance.total().detach()])
    return torch.stack(found).cpu()


@pytest.mark.parametrize("name", ["moe-lora", "moelora", "loramoe", "moa", "adamole", "mtlora", "sira"])
def test_mixtures_train_there_as_here(name, device):
    ours, theirs = trained(name, device, 0.0), trained(name, "cpu", 0.0)
    assert close(ours, theirs, device)


def test_scores_drop_out_there(device):
    assert torch.isfinite(trained("sira", device, 0.2)).all()
