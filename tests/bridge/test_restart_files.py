"""Restarts and files: saving, exporting and merging what earlier phases have learned, and resumed runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import llm_bridge as lb
from llm_bridge.trainer import trained_state

from .training_steps import restarted, steps

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore:.*shares its weight.*:UserWarning")


def test_what_was_learned_is_saved_beside_the_weights(mlp, task, tmp_path):
    base = copy.deepcopy(mlp)
    optimizer, _ = restarted(mlp, lb.relora(5), rank=2)
    steps(mlp, optimizer, task, 13)
    expected = mlp(task[0])
    lb.save(mlp, tmp_path / "now")
    lb.save(mlp, tmp_path / "past", name="default-past")
    lb.export_lora(mlp, tmp_path / "lora")

    loaded = copy.deepcopy(base)
    lb.load(loaded, tmp_path / "past")
    lb.load(loaded, tmp_path / "now")
    lb.activate(loaded, "default", "default-past")
    assert torch.allclose(loaded(task[0]), expected, atol=1e-5)

    exported = lb.load_peft(copy.deepcopy(base), tmp_path / "lora")
    assert torch.allclose(exported(task[0]), expected, atol=1e-5)

    report = lb.combine(mlp, ["default", "default-past"], [1.0, 1.0])
    assert report.worst < 1e-6
    assert torch.allclose(mlp(task[0]), expected, atol=1e-5)

    # A run may go on from files.
    more = lb.optimizer(loaded, lr=3e-2)
    restarts = lb.Restarts(loaded, more, lb.relora(5))
    assert not list(lb.adapted(loaded)["layers.0.up"].adapter("default-past").parameters())
    steps(loaded, more, task, 5)
    assert restarts.reports[0].ranks["layers.0.up"] == 4 + 2


def test_merging_and_unloading_keeps_everything(mlp, task):
    optimizer, _ = restarted(mlp, lb.relora(5))
    steps(mlp, optimizer, task, 7)
    expected = mlp(task[0])
    lb.merge(mlp)
    assert torch.allclose(lb.unload(mlp)(task[0]), expected, atol=1e-5)


def test_moved_weights_refuse_files(mlp, task, tmp_path):
    optimizer, _ = restarted(mlp, lb.relora(5, keep=lb.InWeights()))
    steps(mlp, optimizer, task, 7)
    for write in (lb.save, lb.save_peft, lb.export_lora):
        with pytest.raises(ValueError, match=r"cannot be saved on its own: earlier phases .*merge\(model\), unload"):
            write(mlp, tmp_path / "x")
    assert not list(Path(tmp_path).glob("x/*"))
    expected = mlp(task[0])
    lb.merge(mlp)
    assert torch.allclose(lb.unload(mlp)(task[0]), expected, atol=1e-5)


def test_half_precision_rounds_in_the_weights_only(mlp, task):
    model = mlp.to(torch.bfloat16)
    worst = {}
    for keep in (lb.Beside(), lb.InWeights()):
        twin = copy.deepcopy(model)
        optimizer, restarts = restarted(twin, lb.chain_of_lora(5, keep))
        x, y = (a.bfloat16() for a in task)
        steps(twin, optimizer, (x, y), 5)
        worst[type(keep)] = max(restarts.reports[0].errors.values())
    assert worst[lb.Beside] < 1e-6
    assert 1e-3 < worst[lb.InWeights] < 1


@pytest.mark.parametrize("keep", [lb.Beside(), lb.InWeights()])
@pytest.mark.parametrize("recipe", ["lora", "reflora", "pissa"])
@pytest.mark.parametrize("phases", [lb.relora, lb.periodic_lora, lambda e, keep: lb.xgblora(e, 1, keep)])
def test_a_resumed_run_is_the_same_to_the_bit(phases, recipe, keep, mlp, task):
    base = copy.deepcopy(mlp)
    whole, _ = restarted(mlp, phases(3, keep=keep), recipe)
    steps(mlp, whole, task, 7)
    kept = copy.deepcopy((trained_state(mlp), whole.state_dict()))
    steps(mlp, whole, task, 5)
    model = copy.deepcopy(base)
    again, restarts = restarted(model, phases(3, keep=keep), recipe)
    unknown = model.load_state_dict(kept[0], strict=False).unexpected_keys
    assert not unknown
    again.load_state_dict(kept[1])
    assert restarts.steps == 7
    steps(model, again, task, 5)
    pairs = zip(mlp.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(k == l and torch.equal(a, b) for (k, a), (l, b) in pairs)


def test_states_of_other_runs_are_refused(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    plain = lb.optimizer(mlp, lr=1e-2)
    steps(mlp, plain, task, 1)
    state = plain.state_dict()
    optimizer = lb.optimizer(mlp, lr=1e-2)
    lb.Restarts(mlp, optimizer, lb.relora(5))
    with pytest.raises(ValueError, match="saved without Restarts"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="has Restarts already"):
        lb.Restarts(mlp, optimizer, lb.relora(5))


@pytest.mark.parametrize("keep", [lb.Beside(), lb.InWeights()])
def test_an_unmodified_trainer_restarts_and_resumes(keep, llama, tmp_path):
    from .test_trainer import trainer

    def run(out, resume=None):
        model = lb.adapt(copy.deepcopy(llama[0]), "lora", rank=2, targets=["q_proj", "up_proj"])
        optimizer = lb.optimizer(model, lr=1e-2)
        restarts = lb.Restarts(model, optimizer, lb.relora(3, keep=keep))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lb.jagged(3, warmup=1))
        trainer(model, out, optimizers=(optimizer, schedule)).train(resume_from_checkpoint=resume)
        return model, restarts

    whole, restarts = run(tmp_path / "a")
    assert (restarts.steps, len(restarts.reports)) == (8, 2)
    resumed, again = run(tmp_path / "b", str(tmp_path / "a/checkpoint-4"))
    assert (again.steps, len(again.reports)) == (8, 1)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_weight_that_two_modules_share_moves_in_one_of_them(llama):
    """Also when a checkpoint is loaded, which copies into the parameters that there are."""
    base, ids = llama

    def begin():
        model = copy.deepcopy(base)
        return model, *restarted(model, lb.relora(2, keep=lb.InWeights()), rank=2, targets=["embed_tokens", "q_proj"])

    def run(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    model, optimizer, _ = begin()
    run(model, optimizer, 5)
    kept = copy.deepcopy((trained_state(model), optimizer.state_dict()))
    run(model, optimizer, 3)
    again, other, _ = begin()
    again.load_state_dict(kept[0], strict=False)
    other.load_state_dict(kept[1])
    run(again, other, 3)
    assert torch.equal(again.lm_head.weight, base.lm_head.weight)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
