"""Adapters and optimizer inside an unmodified Trainer of transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import llm_bridge as lb

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*:UserWarning",
    "ignore:.*shares its weight with.*:UserWarning",
)


class Rows(torch.utils.data.Dataset):
    """Twenty-four sequences that repeat a pattern."""

    def __init__(self, count=24):
        generator = torch.Generator().manual_seed(5)
        start = torch.randint(0, 50, (count, 1), generator=generator)
        self.ids = (start + torch.arange(7)) % 50

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trainer(model, out, **changes):
    from transformers import Trainer, TrainingArguments

    settings = {
        "output_dir": str(out),
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "save_steps": 4,
        "logging_steps": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**settings | changes.pop("arguments", {}))
    return Trainer(model, arguments, train_dataset=Rows(), **changes)


def adapted(base, name, dropout=0.1):
    return lb.adapt(copy.deepcopy(base), name, rank=2, targets=["q_proj", "up_proj"], dropout=dropout)


@pytest.mark.parametrize(
    "name",
    ["lora", "reflora", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lora-fa", "polar", "pissa", "dora"))],
)
def test_resuming_from_a_checkpoint_gives_the_same_model(name, llama, tmp_path):
    whole = adapted(llama[0], name)
    history = trainer(whole, tmp_path, optimizers=(lb.optimizer(whole, lr=1e-2), None))
    history.train()
    losses = [row["loss"] for row in history.state.log_history if "loss" in row]
    assert len(losses) == 4
    assert not lb.summary(whole).unmoved

    resumed = adapted(llama[0], name)
    again = trainer(resumed, tmp_path / "again", optimizers=(lb.optimizer(resumed, lr=1e-2), None))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("targets", [["lm_head"], pytest.param(["embed_tokens", "lm_head"], marks=pytest.mark.slow)])
def test_an_adapted_head_that_is_tied_to_the_embedding(targets, llama, tmp_path):
    def fresh():
        return lb.adapt(copy.deepcopy(llama[0]), "lora", rank=2, targets=targets)

    whole, resumed = fresh(), fresh()
    short = {"max_steps": 2, "save_steps": 1, "warmup_steps": 0}
    trainer(whole, tmp_path, arguments=short, optimizers=(lb.optimizer(whole, lr=1e-2), None)).train()
    again = trainer(resumed, tmp_path / "more", arguments=short, optimizers=(lb.optimizer(resumed, lr=1e-2), None))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.get_parameter("lm_head.weight") is resumed.get_parameter("model.embed_tokens.weight")
    lb.merge(whole)
    whole.save_pretrained(tmp_path / "merged")


def test_the_factory_makes_the_same_optimizer(llama, tmp_path):
    models = [adapted(llama[0], "reflora", dropout=0.0) for _ in range(2)]
    trainer(models[0], tmp_path / "a", optimizers=(lb.optimizer(models[0], lr=1e-2), None)).train()
    made: Any = trainer(models[1], tmp_path / "b", optimizer_cls_and_kwargs=(lb.optimizer_factory, {"lr": 1e-2}))
    made.train()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert len(made.optimizer.optimizer.buckets) == 2


def test_half_precision_with_recomputed_activations(llama, tmp_path):
    model = adapted(llama[0].to(torch.bfloat16), "polar")
    arguments = {"bf16": True, "activation_checkpointing": True, "max_steps": 6, "save_strategy": "no"}
    made = trainer(model, tmp_path, optimizers=(lb.optimizer(model, lr=1e-2), None), arguments=arguments)
    made.train()
    assert not lb.summary(model).unmoved
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("name", ["lora", "polar", "pissa", "hira"])
def test_stable_ranks_are_those_of_the_definition(name, mlp, task):
    import numpy as np

    from llm_bridge.training.report import stable_ranks

    start = {name: p.detach().numpy().copy() for name, p in mlp.named_parameters()}
    lb.adapt(mlp, name, rank=3)
    opt = lb.optimizer(mlp, lr=1e-1)
    for _ in range(5):
        opt.zero_grad()
        ((mlp(task[0]) - task[1]) ** 2).mean().backward()
        opt.step()
    sites = stable_ranks(mlp)
    lb.merge(mlp)
    merged = {site.path: mlp.get_submodule(site.path).weight.detach().numpy() for site in sites}

    def stable(w):
        return np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2

    assert len(sites) == 5
    for site in sites:
        before = start[f"{site.path}.weight"]
        assert site.before == pytest.approx(stable(before), rel=1e-3)
        assert site.after == pytest.approx(stable(merged[site.path]), rel=1e-3)
        if name != "hira":  # there the update is a factor of the weight
            assert site.update == pytest.approx(stable(merged[site.path] - before), rel=1e-3)
            assert site.norm == pytest.approx(
                np.linalg.norm(merged[site.path] - before) / np.linalg.norm(before), rel=1e-3
            )
