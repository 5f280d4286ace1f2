"""What all policies of ranks have in common: resumed runs, the Trainer, sharing an optimizer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import llm_bridge as lb
from llm_bridge.__main__ import main
from llm_bridge.trainer import trained_state

from .conftest import Mlp
from .small_files import save_llama, save_rows
from .training_steps import adapted, steps

MAKE = {
    "adalora": lambda m, o: lb.adalora(m, o, lb.Budget(2, 12, 2, 2)),
    "mao": lambda m, o: lb.dynamic_components(m, o, lb.Budget(2, 12, 2, 2)),
    "increlora": lambda m, o: lb.Growing(m, o, 15, 12, every=2, layers=2, warmup=2),
    "salora": lambda m, o: lb.HardConcreteGates(m, o, 0.5),
    "lora": lb.NestedRanks,
    "autolora": lb.SelectionWeights,
}


@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_run_is_the_same_to_the_bit(name, mlp, task):
    base = copy.deepcopy(mlp)
    recipe = {"mao": "adalora", "autolora": "salora"}.get(name, name)

    def begin(model):
        optimizer = adapted(model, recipe)
        return optimizer, MAKE[name](model, optimizer)

    whole, _ = begin(mlp)
    steps(mlp, whole, task, 6)
    kept = copy.deepcopy((trained_state(mlp), whole.state_dict()))
    steps(mlp, whole, task, 6)
    model = copy.deepcopy(base)
    again, policy = begin(model)
    model.load_state_dict(kept[0], strict=False)
    again.load_state_dict(kept[1])
    assert policy.steps == 6
    steps(model, again, task, 6)
    matched = zip(mlp.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(k == l and torch.equal(a, b) for (k, a), (l, b) in matched)


def test_a_trainer_needs_nothing_but_the_optimizer(llama, tmp_path):
    from .test_trainer import trainer

    model = lb.adapt(copy.deepcopy(llama[0]), "adalora", rank=3, targets=["q_proj", "up_proj"])
    optimizer = lb.optimizer(model, lr=1e-2)
    policy = lb.adalora(model, optimizer, lb.Budget(1, 8, 2, 2))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    trainer(model, tmp_path, optimizers=(optimizer, schedule)).train()
    assert policy.steps == 8
    assert sum(policy.ranks().values()) == 4


def test_two_companions_share_an_optimizer(mlp, task):
    optimizer = adapted(mlp, "adalora")
    policy = lb.adalora(mlp, optimizer, lb.Budget(2, 12, 2, 2))
    restarts = lb.Restarts(mlp, optimizer, lb.chain_of_lora(4))
    steps(mlp, optimizer, task, 9)
    assert set(optimizer.state_dict()["companions"]) == {"Pruning", "Restarts"}
    assert policy.steps == restarts.steps == 9


def test_models_without_the_layers_have_no_policy():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no adapter 'default'"):
        lb.adalora(model, torch.optim.SGD(model.parameters(), 0.1), lb.Budget(1, 10))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_factors_of_any_precision(name, dtype, mlp, task):
    recipe = {"mao": "adalora", "autolora": "salora"}.get(name, name)
    optimizer = adapted(mlp.to(dtype), recipe, dtype=dtype)
    policy = MAKE[name](mlp, optimizer)
    assert np.isfinite(steps(mlp, optimizer, [a.to(dtype) for a in task], 6))
    assert policy.steps == 6


def test_gates_have_one_owner(mlp):
    optimizer = adapted(mlp, "salora")
    MAKE["salora"](mlp, optimizer)
    for other, make in (("Pruning", MAKE["adalora"]), ("SelectionWeights", MAKE["autolora"])):
        with pytest.raises(ValueError, match=f"{other} cannot share an optimizer with HardConcreteGates"):
            make(mlp, optimizer)
    with pytest.raises(ValueError, match="Restarts cannot share an optimizer with HardConcreteGates"):
        lb.Restarts(mlp, optimizer, lb.relora(5))


def test_an_optimizer_of_other_parameters_is_refused(mlp):
    optimizer = adapted(mlp, "adalora")
    other = lb.optimizer(lb.adapt(Mlp(), "adalora", rank=4))
    with pytest.raises(ValueError, match="does not move all parameters that Pruning acts on"):
        lb.adalora(mlp, other, lb.Budget(1, 10))
    assert lb.adalora(mlp, optimizer, lb.Budget(1, 10)).steps == 0


def test_detached_policies_let_go(mlp, task):
    optimizer = adapted(mlp, "salora")
    policy = lb.HardConcreteGates(mlp, optimizer, 0.5)
    steps(mlp, optimizer, task, 2)
    policy.detach()
    assert not mlp._forward_pre_hooks
    assert "companions" not in optimizer.state_dict()
    steps(mlp, optimizer, task, 2)
    assert policy.steps == 2
    assert lb.adalora(mlp, optimizer, lb.Budget(1, 10)).steps == 0
    with pytest.raises(ValueError, match="attached to no optimizer"):
        policy.detach()


def test_states_with_policies_ask_for_them(mlp, task):
    optimizer = adapted(mlp, "adalora")
    lb.adalora(mlp, optimizer, lb.Budget(1, 10))
    steps(mlp, optimizer, task, 2)
    state, fresh = optimizer.state_dict(), lb.optimizer(mlp)
    with pytest.raises(ValueError, match="saved with Pruning, which this optimizer lacks"):
        fresh.load_state_dict(state)
    state.pop("companions")
    fresh.load_state_dict(state)


def scaled(model):
    lb.adapt(model, "adalora", rank=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    return optimizer, lb.adalora(model, optimizer, lb.Budget(1, 10)), torch.amp.GradScaler("cpu")


def test_scaled_gradients_of_a_fused_optimizer_are_refused(mlp, task):
    optimizer, policy, scaler = scaled(mlp)
    scaler.scale((mlp(task[0]) - task[1]).square().mean()).backward()
    with pytest.raises(ValueError, match=r"call scaler\.unscale_"):
        scaler.step(optimizer)
    assert policy.steps == 0


def test_steps_that_a_fused_optimizer_skips_are_not_seen(mlp, task):
    optimizer, policy, scaler = scaled(mlp)
    for factor, taken in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(factor * (mlp(task[0]) - task[1]).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert policy.steps == taken
    assert all(torch.isfinite(a).all() for column in policy.sums for a in column)


def test_the_model_may_be_wrapped(mlp, task):
    optimizer = adapted(mlp, "adalora")
    wrapped = torch.compile(mlp, backend="eager")
    policy = lb.adalora(wrapped, optimizer, lb.Budget(2, 12, 2, 2))
    restarts = lb.Restarts(wrapped, optimizer, lb.chain_of_lora(4))
    assert list(policy.adapters) == list(restarts.paths) == list(lb.adapted(mlp))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_command_line_lets_ranks_fall(tmp_path, capsys):
    folder, rows = save_llama(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl")
    words = f"finetune --model {folder} --data {rows} --task causal-lm --out {tmp_path}/out --targets q_proj up_proj"
    words += " --rank 3 --lr 0.01 --steps 8 --every 8 --cpu --no-progress --target-rank"
    assert main([*words.split(), "1", "--recipe", "lora"]) == 2
    assert "components with gates, which 'lora' does not have; take 'adalora'" in capsys.readouterr().err
    assert main([*words.split(), "4", "--recipe", "adalora"]) == 2
    assert "target_rank must lie between 1 and rank, 3, got 4" in capsys.readouterr().err
    assert main([*words.split(), "1", "--recipe", "adalora"]) == 0
    with safe_open(tmp_path / "out/adapter/adapter.safetensors", "pt") as file:
        gates = [file.get_tensor(key) for key in file.keys() if key.endswith("values")]  # noqa: SIM118, no mapping
    assert all(len(values) == 3 for values in gates)
    assert sum(int(values.count_nonzero()) for values in gates) == len(gates)
