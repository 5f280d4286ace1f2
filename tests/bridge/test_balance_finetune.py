"""The loss beside experts in fine-tuning: its weight, accumulation, checkpointing, rows, resumed runs and errors."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import llm_bridge as lb
from llm_bridge.__main__ import main
from llm_bridge.training.options import balance_weight
from tests.bridge.small_files import save_llama, save_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def options(folder, tmp_path, monkeypatch):
    for figure in ("draw_curves", "draw_ranks"):  # most of the time of so short a run
        monkeypatch.setattr(sys.modules["llm_bridge.finetune"], figure, lambda *args: None)
    rows = save_rows(tmp_path / "rows.jsonl", 16)
    made = lb.FinetuneOptions(folder, rows, "causal-lm", str(tmp_path / "out"), recipe="moe-lora", rank=2, max_length=7)
    return replace(
        made, targets=("q_proj", "up_proj"), steps=4, eval_fraction=0, batch_size=4, lr=1e-2, cpu=True, progress=False
    )


def equal_rows(path, count=8):
    """One text many times: whatever the batches are, all of them have the same balance."""
    path.write_text((json.dumps({"text": "w1 w5 w1 w9 w12 w3"}) + "\n") * count)
    return str(path)


def factors(result):
    return load_file(next(result.adapter.glob("*.safetensors")))


def close(a, b, atol=1e-5):
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=atol) for key in a)


def experts(llama, name="moe-lora"):
    """With routers and experts that are away from their start, in training mode."""
    model, ids = llama
    lb.adapt(model, name, rank=2, targets=["q_proj", "down_proj"])
    generator = torch.Generator().manual_seed(4)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return model.train(), ids


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def unevenness(model, ids):
    """The standard deviation of how often experts act, over the mean, averaged over layers."""
    found, handles = [], []
    for layer in lb.adapted(model).values():

        def look(layer, args):
            acting = layer.adapter("default").point().weights(args[0]) > 0
            shares = acting.flatten(0, -2).float().mean(0)
            found.append(shares.std() / shares.mean())

        handles.append(layer.register_forward_pre_hook(look))
    with torch.no_grad():
        model.eval()(input_ids=ids)
    for handle in handles:
        handle.remove()
    return float(torch.stack(found).mean())


# on a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moe-lora", "moelora", "mola", "llava-mole", "adamole"])
def test_the_loss_of_a_model_has_the_balance_that_a_loop_would_add(name, llama):
    model, ids = experts(llama, name)
    with lb.balancing(model) as balance:
        plain = model(input_ids=ids, labels=ids).loss
        total = balance.total()
        (plain + 0.3 * total).backward()
    wanted = gradients(model)
    model.zero_grad()
    with lb.balanced_loss(model, 0.3) as balanced:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert torch.allclose(loss, plain + 0.3 * total)
    assert torch.allclose(balanced.last, total)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(wanted, gradients(model), strict=True))


def test_evaluation_and_a_removed_balance_leave_the_loss(llama):
    model, ids = experts(llama)
    plain = model(input_ids=ids, labels=ids).loss
    balanced = lb.balanced_loss(model, 0.3)
    assert torch.equal(model.eval()(input_ids=ids, labels=ids).loss, plain)
    assert balanced.last is None
    assert model.train()(input_ids=ids).get("loss") is None
    assert model(input_ids=ids, labels=ids).loss > plain
    balanced.remove()
    assert torch.equal(model(input_ids=ids, labels=ids).loss, plain)


def test_accumulated_batches_weigh_the_balance_by_their_tokens(llama):
    model, ids = experts(llama)
    batches = [(ids, ids), (ids.flip(0), ids.flip(0).index_fill(1, torch.arange(4), -100))]
    items = sum(labels[:, 1:].ne(-100).sum() for _, labels in batches)
    with lb.balanced_loss(model, 0.3) as balanced:
        for x, labels in batches:
            with lb.balancing(model) as balance:
                total = balance.total if model(input_ids=x) is not None else None
            share = labels[:, 1:].ne(-100).sum() / items
            balanced.weight = 0.0
            plain = model(input_ids=x, labels=labels, num_items_in_batch=items).loss
            balanced.weight = 0.3
            loss = model(input_ids=x, labels=labels, num_items_in_batch=items).loss
            assert total is not None
            assert torch.allclose(loss, plain + 0.3 * share * total())


def test_recomputed_layers_have_the_same_gradients(llama):
    plain, ids = experts(llama)
    again = copy.deepcopy(plain)
    again.activation_checkpointing_enable({"use_reentrant": False})
    for model in (plain, again):
        with lb.balanced_loss(model, 0.3):
            model(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(plain), gradients(again), strict=True))


def test_what_layers_compute_again_is_not_collected_again(llama):
    """It would keep their activations, which recomputing is there to avoid."""
    model, ids = experts(llama)
    model.activation_checkpointing_enable({"use_reentrant": False})
    with lb.balancing(model) as balance:
        loss = model(input_ids=ids, labels=ids).loss + balance.total()
        collected = list(balance.terms)
        loss.backward()
    assert len(collected) == 4
    assert len(balance.terms) == 4


def test_the_unmodified_trainer_evens_the_use_of_experts(llama, tmp_path):
    from transformers import Trainer, TrainingArguments

    start, _ = experts(llama)
    data = torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(5))
    left = {}
    for weight in (0.0, 10.0):
        model = copy.deepcopy(start)
        args = TrainingArguments(
            str(tmp_path), max_steps=15, per_device_train_batch_size=16, use_cpu=True, report_to=[],
            save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in data]
        factory = (lb.optimizer_factory, {"lr": 3e-2})
        with lb.balanced_loss(model, weight):
            Trainer(model, args, train_dataset=rows, optimizer_cls_and_kwargs=factory).train()
        left[weight] = unevenness(model, data)
    assert left[10.0] < 0.6 * left[0.0]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(weight, llama):
    model, _ = experts(llama)
    with pytest.raises(ValueError, match="weight must be a number that is not negative"):
        lb.balanced_loss(model, weight)


def test_models_without_experts_or_without_a_loss_are_refused(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="no active adapter of the model routes"):
        lb.balanced_loss(mlp)
    lb.adapt(mlp, "moe-lora", rank=2, name="experts")
    with lb.balanced_loss(mlp), pytest.raises(TypeError, match=r"return outputs with a loss.*got Tensor"):
        mlp.train()(task[0])
    assert mlp(task[0]).shape == (32, 4)


# in a run -------------------------------------------------------------------------------------------------------


def test_a_run_adds_the_balance_and_logs_it_beside_the_loss(options):
    result = lb.finetune(replace(options, balance=2.0, eval_fraction=0.25, every=2))
    logged = [row for row in result.history if "loss" in row]
    assert len(logged) == 4
    assert all(row["balance"] > 1.9 for row in logged)  # two of eight experts act, so that 2 is even use
    assert all(row["loss"] > row["balance"] for row in logged)
    evaluated = [row for row in result.history if "eval_loss" in row]
    assert len(evaluated) == 2
    assert all("balance" not in row and row["eval_loss"] < 4.5 for row in evaluated)
    assert not any(layer._forward_pre_hooks for layer in lb.adapted(result.model).values())


def test_accumulated_batches_are_the_double_batch(options, tmp_path):
    options = replace(options, data=equal_rows(tmp_path / "equal.jsonl"), balance=1.0)
    whole = lb.finetune(replace(options, out=str(tmp_path / "whole")))
    parts = lb.finetune(replace(options, out=str(tmp_path / "parts"), batch_size=2, accumulate=2))
    assert close(factors(whole), factors(parts))
    for a, b in zip(whole.history, parts.history, strict=True):
        if "loss" in a:
            assert (a["loss"], a["balance"]) == pytest.approx((b["loss"], b["balance"]), abs=1e-4)


def test_classifiers_accumulate_alike(options, tmp_path):
    """Their heads know nothing of the other batches, and the Trainer divides the loss."""
    rows = [{"text": "w1 w5 w1 w9", "label": "a"}, {"text": "w1 w5 w1 w9", "label": "b"}] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = replace(options, data=str(tmp_path / "pairs.jsonl"), task="classification", balance=1.0, steps=2)
    whole = lb.finetune(replace(options, out=str(tmp_path / "whole"), batch_size=8))
    parts = lb.finetune(replace(options, out=str(tmp_path / "parts"), batch_size=4, accumulate=2))
    a, b = ([row["balance"] for row in r.history if "balance" in row] for r in (whole, parts))
    assert a == pytest.approx(b, abs=1e-4)
    assert close(factors(whole), factors(parts), 1e-4)


def test_recomputed_layers_train_alike(options, tmp_path):
    options = replace(options, balance=1.0)
    kept = lb.finetune(replace(options, out=str(tmp_path / "kept")))
    again = lb.finetune(replace(options, out=str(tmp_path / "again"), gradient_checkpointing=True))
    assert close(factors(kept), factors(again))


def test_a_resumed_run_is_the_uninterrupted_one(options, tmp_path):
    whole = lb.finetune(replace(options, balance=1.0, every=2))
    shutil.copytree(tmp_path / "out", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "checkpoint-4")
    resumed = lb.finetune(replace(options, balance=1.0, every=2, out=str(tmp_path / "cut"), resume=True))
    a, b = factors(whole), factors(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)
    one, two = ([r for r in result.history if "loss" in r] for result in (whole, resumed))
    assert one == two


@pytest.mark.parametrize(
    ("name", "weight"), [("lora", 0.0), ("moe-lora", 0.01), ("moelora", 0.01), ("mola", 0.01), ("mtlora", 0.0)]
)
def test_recipes_have_their_usual_weight(name, weight, options):
    assert balance_weight(replace(options, recipe=name)) == weight
    assert balance_weight(replace(options, recipe=name, balance=0.0)) == 0


@pytest.mark.parametrize("name", ["loramoe", "moa"])
def test_a_loss_that_needs_labels_is_left_out_and_said(name, options):
    with pytest.warns(UserWarning, match=r"trains without balance: .* needs the domain or the type of every sample"):
        result = lb.finetune(replace(options, recipe=name, steps=1))
    assert not any("balance" in row for row in result.history)
    with pytest.raises(ValueError, match=r"balance must be 0 for .* needs the domain"):
        replace(options, recipe=name, balance=0.1)


def test_a_balance_that_cannot_be_is_refused(options, capsys):
    with pytest.raises(ValueError, match="which 'dora' does not; take one such as 'moe-lora'"):
        replace(options, recipe="dora", balance=0.1)
    with pytest.raises(ValueError, match="balance must be a number that is not negative, got -1"):
        replace(options, balance=-1.0)
    words = ["--model", options.model, "--data", options.data, "--task", "causal-lm", "--out", options.out]
    assert main(["finetune", *words, "--recipe", "lora", "--balance", "0.5"]) == 2
    assert "balance is for recipes that route among experts" in capsys.readouterr().err
