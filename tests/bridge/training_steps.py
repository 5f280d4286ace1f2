"""Small trainings that tests of what acts around the steps of an optimizer share."""

from __future__ import annotations

import llm_bridge as lb


def steps(model, optimizer, task, count, start=0):
    for _ in range(start, start + count):
        optimizer.zero_grad()
        loss = (model(task[0]) - task[1]).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def adapted(model, recipe="adalora", rank=4, lr=1e-2, **options):
    lb.adapt(model, recipe, rank=rank, **options)
    return lb.optimizer(model, lr=lr)


def restarted(model, phases, recipe="lora", lr=3e-2, rank=1, **options):
    lb.adapt(model, recipe, rank=rank, **options)
    optimizer = lb.optimizer(model, lr=lr)
    return optimizer, lb.Restarts(model, optimizer, phases)
