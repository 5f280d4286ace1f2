"""What people do with models and optimizers of torch and transformers, done with adapted ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import llm_bridge as lb

from .test_checkpoint import shake
from .test_trainer import Rows, trainer
from .training_steps import steps

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


# copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "polar", "reflora"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_model_and_its_optimizer_are_copied_together(name, copied, mlp, task):
    lb.adapt(mlp, name, rank=2, also_train=["head"], targets=["up", "down"])
    opt = lb.optimizer(mlp, lr=1e-2)
    steps(mlp, opt, task, 2)
    twin, own = copied((mlp, opt))
    before = [p.clone() for p in mlp.parameters()]
    steps(twin, own, task, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, mlp.parameters(), strict=True))
    steps(mlp, opt, task, 3)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), mlp.parameters(), strict=True))
    assert len(own.state_dict()["state"]) == len(opt.state_dict()["state"])


def test_an_optimizer_with_companions_is_not_copied(mlp):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp)
    lb.Restarts(mlp, opt, lb.relora(5))
    with pytest.raises(TypeError, match="the optimizer has Restarts, which copies of it would lack"):
        copy.deepcopy(opt)


@pytest.mark.parametrize("name", ["lora", "reflora"])
def test_parameters_that_come_later_get_adamw(name, mlp, task):
    lb.adapt(mlp, name, rank=2)
    opt = lb.optimizer(mlp, lr=1e-2)
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    opt.add_param_group({"params": [ours], "lr": 0.1})
    other = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for scale in (1.0, -0.3):
        ours.grad = theirs.grad = torch.tensor([1.0, 2.0, 3.0]) * scale
        (mlp(task[0]) - task[1]).square().mean().backward()
        opt.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-7)
    assert not lb.summary(mlp).unmoved
    fresh = lb.optimizer(mlp)
    fresh.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    fresh.load_state_dict(opt.state_dict())
    assert fresh.param_groups[-1]["lr"] == 0.1


def test_merged_adapters_do_not_train(mlp):
    lb.adapt(mlp, "lora", rank=2)
    lb.merge(mlp)
    with pytest.raises(ValueError, match=r"merged into the weights; unmerge\(model\) first"):
        lb.optimizer(mlp)
    lb.unmerge(mlp)
    assert lb.optimizer(mlp).param_groups


def test_adapters_come_before_the_compiler(mlp, task, tmp_path):
    compiled = torch.compile(mlp, backend="eager")
    lb.save(lb.adapt(copy.deepcopy(mlp), "lora", rank=2), tmp_path)
    for make in (lambda: lb.adapt(compiled, "lora", rank=2), lambda: lb.load(compiled, tmp_path)):
        with pytest.raises(ValueError, match="wrapped by OptimizedModule; adapters go into the one inside"):
            make()
    assert not lb.adapted(mlp)
    lb.adapt(mlp, "lora", rank=2)
    assert lb.optimizer(compiled).param_groups


# one adapter after the other --------------------------------------------------------------------------------------


def test_two_adapters_take_turns(mlp, task):
    optimizers = {}
    for name, recipe in (("a", "lora"), ("b", "polar")):
        lb.adapt(mlp, recipe, rank=2, name=name)
        optimizers[name] = lb.optimizer(mlp, lr=1e-2)
    alone = copy.deepcopy(mlp)
    for name in ("a", "b", "b", "a"):
        lb.activate(mlp, name)
        steps(mlp, optimizers[name], task, 2)
    lb.activate(alone, "b")
    steps(alone, lb.optimizer(alone, lr=1e-2), task, 4)
    for path, layer in lb.adapted(mlp).items():
        pairs = zip(layer.adapter("b").parameters(), lb.adapted(alone)[path].adapter("b").parameters(), strict=True)
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in pairs)


def test_unloading_and_adapting_again(llama):
    model, tokens = llama
    before = model(tokens).logits
    for name in ("lora", "dora", "pissa", "oft"):
        lb.adapt(model, name, rank=2, targets=["q_proj", "up_proj"])
        shake(model)
        assert not torch.equal(model(tokens).logits, before)
        lb.unload(model)
        assert torch.equal(model(tokens).logits, before)


# generation ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(llama):
    model, tokens = llama
    for name, recipe in (("a", "lora"), ("b", "dora")):
        lb.adapt(model, recipe, rank=2, name=name, targets=["q_proj", "v_proj", "down_proj"])
        shake(model)
    return model, tokens


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_generation_with_an_adapter_for_each_sample(how, two):
    model, tokens = two

    def generated(ids, **more):
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0, **more)

    beams = how.get("num_beams", 1)
    with lb.route(model, ["a"] * beams + ["b"] * beams):
        mixed = generated(tokens, **how)
    for i, name in enumerate("ab"):
        lb.activate(model, name)
        assert torch.equal(generated(tokens[i : i + 1], num_beams=beams)[0], mixed[i])


def test_beams_need_a_name_each(two):
    model, tokens = two
    with lb.route(model, ["a", "b"]), pytest.raises(ValueError, match=r"4 samples, but 2 adapters.*beams a name"):
        model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=2, num_beams=2, pad_token_id=0)


# training -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_give_the_same_gradients(reentrant, llama):
    model, tokens = llama
    lb.adapt(model, "dora", rank=2, targets=["q_proj", "down_proj"])
    shake(model)
    model.train()
    found = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["polar", pytest.param("dora", marks=pytest.mark.slow)])
def test_the_best_of_a_training_comes_back(name, llama, tmp_path):
    from transformers import EarlyStoppingCallback

    model = lb.adapt(llama[0], name, rank=2, targets=["q_proj", "up_proj"], also_train=["norm"])
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    run = trainer(
        model,
        tmp_path,
        arguments=settings | {"metric_for_best_model": "eval_loss", "save_total_limit": 1, "max_steps": 10},
        eval_dataset=Rows(8),
        optimizer_cls_and_kwargs=(lb.optimizer_factory, {"lr": 0.3}),
        callbacks=[EarlyStoppingCallback(2)],
    )
    run.train()
    losses = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)


@pytest.fixture
def accelerator():
    """One that no other test has left its settings for, and that leaves none."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_loop_under_accelerate(accelerator, llama, tmp_path):
    from torch.utils.data import DataLoader

    model = lb.adapt(llama[0], "polar", rank=2, targets=["q_proj", "up_proj"])
    parts = model, lb.optimizer(model, lr=1e-2), DataLoader(Rows(), batch_size=4)
    model, optimizer, batches = accelerator.prepare(*parts)

    def epoch():
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters() if p.requires_grad]

    epoch()
    accelerator.save_state(tmp_path)
    first = epoch()
    accelerator.load_state(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(), strict=True))
    assert not lb.summary(accelerator.unwrap_model(model)).unmoved


def test_weights_that_are_offloaded(mlp, tmp_path):
    from accelerate import cpu_offload

    lb.save(lb.adapt(copy.deepcopy(mlp), "lora", rank=2, targets=["up"]), tmp_path)
    cpu_offload(mlp, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"layers.0.up are offloaded by accelerate"):
        lb.adapt(mlp, "lora", rank=2, targets=["up"])
    with pytest.raises(ValueError, match=r"layers.0.up are offloaded by accelerate"):
        lb.load(mlp, tmp_path)
    assert not lb.adapted(mlp)
