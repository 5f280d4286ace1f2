"""Fine-tuning runs whose recipe needs more of the model, or leaves less of the adapter, than a plain one."""

from __future__ import annotations

import json

import pytest

import llm_bridge as lb
from llm_bridge.training.models import open_blocks
from tests.bridge.small_files import save_llama, save_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("model")), save_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def run(files, out, **changes):
    settings = {"rank": 2, "lr": 1e-2, "steps": 8, "every": 8, "eval_fraction": 0.2, "cpu": True, "progress": False}
    return lb.finetune(lb.FinetuneOptions(*files, "classification", str(out), **settings | changes))


@pytest.mark.covers("P56")
def test_paths_are_opened_beside_all_blocks(files, tmp_path):
    from transformers import AutoModelForSequenceClassification

    result = run(files, tmp_path, recipe="lor2c")
    assert [row.path for row in result.ranks] == [f"model.layers.{i}.residual_path" for i in range(2)]
    assert all(row.update >= 1 for row in result.ranks)
    fresh = AutoModelForSequenceClassification.from_pretrained(files[0])
    with pytest.raises(ValueError, match=r"which the model does not have; open_paths\(model, blocks\) makes them"):
        lb.load(fresh, result.adapter)
    open_blocks(fresh, "all-linear")
    lb.load(fresh, result.adapter)
    assert not lb.summary(fresh).unmoved


@pytest.mark.slow
def test_targets_name_the_blocks(files, tmp_path):
    result = run(files, tmp_path, recipe="lor2c", targets=("layers.1",), steps=1, every=1)
    assert [row.path for row in result.ranks] == ["model.layers.1.residual_path"]
    assert json.loads((tmp_path / "run.json").read_text())["finished"]
    with pytest.raises(ValueError, match="is a single layer, beside which a path is its own adapter"):
        run(files, tmp_path / "other", recipe="lor2c", targets=("q_proj",))


def test_a_model_without_blocks(mlp):
    del mlp.layers
    with pytest.raises(ValueError, match="no list of blocks"):
        open_blocks(mlp, "all-linear")


def test_ranks_are_those_that_a_policy_has_left(files, tmp_path):
    result = run(files, tmp_path, recipe="adalora", rank=4, target_rank=2, targets=("q_proj", "up_proj"), steps=12)
    ranks = [row.rank for row in result.ranks]
    assert sum(ranks) == 2 * len(ranks)
    assert all(row.rank == 0 if row.norm == 0 else 1 <= row.update <= row.rank + 1e-4 for row in result.ranks)
