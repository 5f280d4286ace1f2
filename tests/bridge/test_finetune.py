"""Fine-tuning from files: what a run writes, exact resume after an interruption, and errors that say what is wrong."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

import llm_bridge as lb
from llm_bridge.__main__ import main
from llm_bridge.data import language, read_rows
from llm_bridge.training.loop import last_checkpoint
from llm_bridge.training.models import load_tokenizer
from tests.bridge.small_files import save_llama, save_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture
def options(folder, labelled, tmp_path):
    return lb.FinetuneOptions(
        folder,
        labelled,
        "classification",
        str(tmp_path / "out"),
        rank=2,
        lr=1e-2,
        steps=12,
        every=4,
        eval_fraction=0.2,
        dropout=0.1,
        cpu=True,
        progress=False,
    )


def test_a_run_leaves_everything_that_was_promised(options, tmp_path):
    result = lb.finetune(replace(options, recipe="polar", steps=40, every=20))
    out = tmp_path / "out"
    assert result.metrics["eval_accuracy"] > 0.9
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert sum("eval_loss" in row for row in rows) == 2
    with open(out / "stable_rank.csv", newline="") as table:
        sites = list(csv.DictReader(table))
    assert len(sites) == 14
    assert all(1 <= float(s["update"]) <= 2.0001 for s in sites)
    for name in ("loss.png", "stable_rank.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events*"))
    run = json.loads((out / "run.json").read_text())
    assert run["finished"]
    assert run["classes"] == ["high", "low"]
    assert run["options"]["recipe"] == "polar"


@pytest.mark.covers("O53")
def test_the_recipe_of_lorafactory_is_adamw_under_a_cosine(folder, tmp_path):
    """As the command runs it, against a loop of torch: all rows are one batch, so that their order does not matter."""
    from transformers import AutoModelForCausalLM

    rows = save_rows(tmp_path / "rows.jsonl", 4)
    words = ["finetune", "--model", folder, "--data", rows, "--task", "causal-lm", "--out", str(tmp_path / "out")]
    words += ["--recipe", "lora", "--rank", "8", "--alpha", "16", "--schedule", "cosine", "--dropout", "0"]
    words += ["--seed", "3", "--lr", "1e-2", "--warmup", "0", "--steps", "6", "--eval-fraction", "0"]
    main([*words, "--cpu", "--no-progress"])

    model = AutoModelForCausalLM.from_pretrained(folder)
    lb.adapt(model, "lora", rank=8, alpha=16.0, seed=3)
    trained = [p for p in model.parameters() if p.requires_grad]
    data = language(read_rows(rows), load_tokenizer(folder), "text", 256)
    opt = torch.optim.AdamW(trained, weight_decay=0.0)
    for k in range(6):
        opt.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * k / 6)) / 2
        opt.zero_grad()
        model(**data.collate(data.examples)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        opt.step()

    fresh = AutoModelForCausalLM.from_pretrained(folder)
    lb.load(fresh, tmp_path / "out" / "adapter")
    assert lb.adapted(fresh)["model.layers.0.mlp.up_proj"].adapter("default").scale == 2.0
    for a, b in zip(trained, (p for p in fresh.parameters() if p.requires_grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@SLOW
def test_the_adapter_loads_on_the_base_model(options):
    from transformers import AutoModelForSequenceClassification

    result = lb.finetune(options)
    fresh = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    fresh.config.pad_token_id = 0
    lb.load(fresh, result.adapter)
    ids = torch.arange(3, 9)[None]
    ours = result.model.eval()(input_ids=ids).logits
    assert torch.equal(fresh.eval()(input_ids=ids).logits, ours)


class Stop(TrainerCallback):
    """The power cut at step six."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", ["lora", pytest.param("polar", marks=SLOW), pytest.param("reflora", marks=SLOW)])
def test_an_interrupted_run_continues_to_the_same_result(recipe, options, tmp_path, monkeypatch):
    from llm_bridge.training import loop

    whole = lb.finetune(replace(options, recipe=recipe, out=str(tmp_path / "whole")))
    cut = replace(options, recipe=recipe, out=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Watch", Stop)
        with pytest.raises(KeyboardInterrupt):
            lb.finetune(cut)
    checkpoints = tmp_path / "cut/checkpoints"
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-4"
    (checkpoints / "checkpoint-6").mkdir()  # torn: what a process leaves that dies while it saves
    resumed = lb.finetune(replace(cut, resume=True))
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    timing = ("runtime", "per_second")
    rows = [[{k: v for k, v in row.items() if not k.endswith(timing)} for row in r.history] for r in (whole, resumed)]
    assert [r for r in rows[0] if "train_loss" not in r] == [r for r in rows[1] if "train_loss" not in r]


@pytest.mark.parametrize("restarts", ["relora", pytest.param("periodic-lora", marks=SLOW)])
def test_a_run_with_restarts_leaves_one_adapter_and_resumes(restarts, options, tmp_path, monkeypatch):
    from llm_bridge.training import loop

    made = replace(options, restarts=restarts, restart_every=3, warmup=0.4)
    whole = lb.finetune(replace(made, out=str(tmp_path / "whole")))
    cut = replace(made, out=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Watch", Stop)
        with pytest.raises(KeyboardInterrupt):
            lb.finetune(cut)
    resumed = lb.finetune(replace(cut, resume=True))
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    rates = {row["step"]: row["learning_rate"] for row in whole.history if "learning_rate" in row}
    assert [step for step in rates if rates[step] == 0] == [1, 4, 7, 10]  # the run's rise, and those after restarts
    ranks = set(lb.setups(whole.model)["whole"].ranks.values())
    assert ranks == {8}  # four phases of rank two
    base = lb.unload(copy.deepcopy(whole.model))
    loaded = lb.load(base, whole.adapter)
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    device = next(whole.model.parameters()).device
    logits = [model.eval()(input_ids=ids.to(device)).logits for model in (whole.model, loaded)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("more", [{}, pytest.param({"restarts": "relora", "restart_every": 2}, marks=SLOW)])
def test_a_run_that_is_resumed_at_its_end_does_not_train(more, options, tmp_path):
    """Whether it died before it wrote its adapter or has written everything: in the middle of an epoch, too."""
    options = replace(options, steps=3, every=3, **more)
    whole = lb.finetune(options)
    rows = (tmp_path / "out/metrics.jsonl").read_text()
    shutil.rmtree(whole.adapter)
    again = lb.finetune(replace(options, resume=True))
    assert again.metrics == whole.metrics
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (tmp_path / "out/metrics.jsonl").read_text() == rows
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["checkpoint-3"]


def test_a_single_step_learns(options):
    result = lb.finetune(replace(options, steps=1))
    assert not lb.summary(result.model).unmoved


@SLOW
def test_checkpoints_hold_what_trains_only(options, tmp_path):
    from safetensors.torch import load_file

    result = lb.finetune(options)
    saved = load_file(tmp_path / "out/checkpoints/checkpoint-12/model.safetensors")
    trained = {name for name, p in result.model.named_parameters() if p.requires_grad}
    assert set(saved) == trained


@pytest.mark.parametrize("recipe", ["lora", pytest.param("reflora", marks=SLOW)])
def test_language_modelling_from_text(recipe, folder, tmp_path):
    text = "\n".join(" ".join(f"w{(i + j) % 40}" for j in range(30)) for i in range(40))
    (tmp_path / "lines.txt").write_text(text)
    options = lb.FinetuneOptions(
        folder, str(tmp_path / "lines.txt"), "causal-lm", str(tmp_path / "out"), recipe=recipe, rank=4
    )
    options = replace(options, steps=40, lr=2e-2, max_length=32, cpu=True, progress=False, bf16=True)
    result = lb.finetune(replace(options, gradient_checkpointing=True))
    losses = [row["eval_loss"] for row in result.history if "eval_loss" in row]
    assert losses[-1] < losses[0]
    assert result.metrics["eval_perplexity"] == pytest.approx(torch.tensor(losses[-1]).exp().item())


@SLOW
def test_recipes_that_look_at_data_are_calibrated_with_the_first_batches(options):
    needy = [name for name, made in lb.recipes().items() if made.init.needs]
    if needy:
        result = lb.finetune(replace(options, recipe=needy[0], steps=4))
        assert not lb.summary(result.model).unmoved


@SLOW
def test_a_compiled_run_is_a_run(options):
    result = lb.finetune(replace(options, compile="aot_eager", steps=4))
    assert not lb.summary(result.model).unmoved


def test_only_the_completion_is_predicted(folder, tmp_path):
    from llm_bridge.training.models import load_tokenizer

    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "w1 w2 w3", "completion": "w4 w5"}\n')
    tokens = language(read_rows(path), load_tokenizer(folder), "text", 16)
    assert tokens[0]["labels"] == [-100, -100, -100, 7, 8, 2]
    assert tokens[0]["input_ids"] == [4, 5, 6, 7, 8, 2]


def test_batches_are_filled_up(folder):
    from llm_bridge.data import Tokens

    tokens = Tokens(({"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}), 0)
    batch = tokens.collate(tokens.examples)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[5, 6], [7, -100]]


def test_csv_and_parquet_read_as_jsonl(labelled, tmp_path):
    import pandas

    rows = pandas.read_json(labelled, lines=True)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_parquet(tmp_path / "rows.parquet")
    read = [
        [{k: r[k] for k in ("text", "label")} for r in read_rows(p)]
        for p in (labelled, tmp_path / "rows.csv", tmp_path / "rows.parquet")
    ]
    assert read[0] == read[1] == read[2]
    assert len(read[0]) == 60


# what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("rows.jsonl", '{"text": "w1", "label": 1}\n{"text": \n', r"rows.jsonl:2: not a JSON object"),
        ("rows.jsonl", '{"text": "w1", "label": 1}\n[1]\n', r"rows.jsonl:2: a line must be a JSON object, got list"),
        ("rows.jsonl", "\n\n", "holds no rows"),
        ("rows.jsonl", '{"body": "w1", "label": 1}\n' * 30 + '{"text": "w1", "label": 2}\n', "no column 'text'"),
        ("rows.jsonl", '{"text": "w1"}\n' * 30, "no column 'label' with the label; the row has 'text'"),
        ("rows.jsonl", '{"text": "w1", "label": 1}\n' * 30, "needs two classes"),
        ("rows.jsonl", '{"text": "w1", "label": 1.5}\n' * 30, "a word or an integer, got 1.5"),
        ("rows.jsonl", '{"text": 3, "label": 1}\n{"text": "w1", "label": 2}\n' * 9, "must hold text, got 3"),
        ("rows.csv", "text,label\nw1,a\nw2\n", r"rows.csv:3: the row has not as many fields as the header"),
        ("rows.csv", 'text,label\n"w1,a\n', r"rows.csv:\d: malformed CSV"),
        ("rows.txt", "w1\nw2\n", "has no labels"),
        ("rows.parquet", "text", "not a parquet file"),
        ("rows.docx", "text", "the ending must be one of .jsonl, .csv, .txt, .parquet"),
        ("rows.jsonl", '{"text": "w1", "label": 1}\n{"text": "w1", "label": 2}\n', "leaves nothing"),
    ],
)
def test_bad_files(name, content, says, options, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        lb.finetune(replace(options, data=str(path)))


def test_files_that_are_missing_or_not_text(options, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        lb.finetune(replace(options, data=str(tmp_path / "nothing.csv")))
    (tmp_path / "latin.csv").write_bytes(b"text,label\n\xe9t\xe9,a\n")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        lb.finetune(replace(options, data=str(tmp_path / "latin.csv")))


def test_a_class_that_only_the_evaluation_has(options, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"text": "w1", "label": "new"}\n')
    with pytest.raises(ValueError, match=r"eval.jsonl:1: label 'new' does not occur"):
        lb.finetune(replace(options, eval_data=str(path)))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_not_there(options, tmp_path):
    with pytest.raises(ValueError, match=r"there is no model 'nobody/nothing'.*put its files"):
        lb.finetune(replace(options, model="nobody/nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not hold what is needed"):
        lb.finetune(replace(options, model=str(tmp_path / "empty")))


def test_a_truncated_model_file(options, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="could not be loaded"):
        lb.finetune(replace(options, model=str(copy)))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"task": "regression"}, "task must be one of"),
        ({"recipe": "piss"}, "did you mean pissa"),
        ({"rank": 0}, "rank must be positive, got 0"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"eval_fraction": 1.5}, r"eval_fraction must lie in \[0, 1\)"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"warmup": 1.0}, "warmup must lie in"),
        ({"restarts": "cola"}, "restarts must be one of relora, periodic-lora, chain-of-lora, got 'cola'"),
        ({"restart_every": 5}, "restart_every is for runs with restarts"),
        ({"restarts": "relora", "restart_every": 0}, "restart_every must be positive, got 0"),
        ({"restarts": "relora", "recipe": "dora"}, "recipe 'dora' cannot begin again"),
        ({"restarts": "relora", "recipe": "adalora", "target_rank": 1}, "restarts and target_rank exclude each other"),
        ({"targets": ("nowhere",)}, "matches no module"),
        ({"rank": 99}, "rank must lie between"),
    ],
)
def test_bad_options(change, says, options):
    with pytest.raises(ValueError, match=says):
        lb.finetune(replace(options, **change))


@SLOW
def test_a_folder_with_another_run(options):
    lb.finetune(replace(options, steps=1))
    with pytest.raises(ValueError, match="holds a run already; continue it with --resume"):
        lb.finetune(options)
    with pytest.raises(ValueError, match="holds a run with steps=1; resume with the same options"):
        lb.finetune(replace(options, resume=True))


def test_a_loss_that_is_not_finite_stops_the_run(options):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+; a smaller --lr"):
        lb.finetune(replace(options, lr=1e30, clip=1e30))


# the command line -----------------------------------------------------------------------------------------------


def test_the_command_line_does_the_same(options, capsys, tmp_path):
    words = f"finetune --model {options.model} --data {options.data} --task classification --out {tmp_path}/cli"
    words += " --recipe reflora --rank 2 --lr 0.01 --steps 4 --targets q_proj v_proj --cpu --no-progress"
    assert main(words.split()) == 0
    assert "eval_accuracy" in capsys.readouterr().out
    run = json.loads((tmp_path / "cli/run.json").read_text())
    assert run["options"]["targets"] == ["q_proj", "v_proj"]
    assert main(words.split()) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_the_command_line_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    shown = capsys.readouterr().out
    assert "reflora" in shown
    assert "--gradient-checkpointing" in shown
    assert "torchrun" in shown
