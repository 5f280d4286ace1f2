"""Exports as plain LoRA: logits through PEFT, errors against a dense SVD, and what is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.files import read_header, read_json, read_tensors
from lowrank_sp.parameterizations import Hadamard, Kronecker

from .conftest import Mlp
from .test_checkpoint import X, calibration, output, shake, trained
from .test_peft import MODELS, base

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def through_peft(fresh: nn.Module, path, x: torch.Tensor) -> torch.Tensor:
    import peft

    return output(peft.PeftModel.from_pretrained(copy.deepcopy(fresh), str(path)), x)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Relative to the largest output: some starts are large, and so is what shaking makes of them."""
    return bool((a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("name", [name for name, made in lb.recipes().items() if made.mergeable])
def test_every_recipe_at_full_rank_through_peft(mlp, name, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, name, **(calibration(mlp) if lb.recipe(name).init.needs else {}))
    report = lb.export_lora(mlp, tmp_path)
    assert report.worst < 1e-6
    assert close(through_peft(fresh, tmp_path, X), output(mlp))
    lb.load_peft(fresh, tmp_path)
    assert close(output(fresh), output(mlp))


@pytest.mark.parametrize("form", [Hadamard, Kronecker.of(4, 2)])
def test_forms_without_thin_factors(mlp, form, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, lb.recipe("lora").but("mine", form=form), rank=2)
    lb.export_lora(mlp, tmp_path)
    assert torch.allclose(through_peft(fresh, tmp_path, X), output(mlp), atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["dora", "polar"])
def test_every_type_of_layer(kind, name, tmp_path):
    model, x, targets = base(kind)
    fresh = copy.deepcopy(model)
    lb.adapt(model, name, rank=2, targets=targets)
    shake(model)
    lb.export_lora(model, tmp_path)
    assert torch.allclose(through_peft(fresh, tmp_path, x), output(model, x), atol=1e-4)


@pytest.mark.parametrize("name", ["polar", "dora", "hira"])
def test_truncation_is_the_nearest_matrix_and_its_error_is_reported(mlp, name, tmp_path):
    fresh = copy.deepcopy(mlp)
    trained(mlp, name, rank=6, alpha=9.0)
    report = lb.export_lora(mlp, tmp_path, rank=2)
    lb.load_peft(fresh, tmp_path)
    lb.merge(mlp)
    lb.merge(fresh)
    for path, layer in lb.adapted(mlp).items():
        change = (layer.base.weight - layer.original).detach().double().numpy()
        exported = lb.adapted(fresh)[path]
        short = (exported.base.weight - exported.original).detach().double().numpy()
        values = np.linalg.svd(change, compute_uv=False)
        best = np.linalg.norm(values[2:]) / np.linalg.norm(values)
        assert report.ranks[path] == 2
        assert report.errors[path] == pytest.approx(best, rel=1e-4)
        assert np.linalg.norm(short - change) / np.linalg.norm(change) == pytest.approx(best, rel=1e-4)


def test_the_report_prints_and_travels_with_the_file(mlp, tmp_path):
    trained(mlp, "lora", rank=4, rank_pattern={"0.up": 2})
    report = lb.export_lora(mlp, tmp_path, rank=3)
    stored = json.loads(read_header(tmp_path / "adapter_model.safetensors")["truncation"])
    assert stored == {"ranks": report.ranks, "errors": report.errors}
    assert report.ranks["layers.0.up"] == 2 and report.ranks["layers.1.up"] == 3  # noqa: PT018
    lines = str(report).splitlines()
    assert len(lines) == 6 and lines[1].split()[:2] == ["layers.0.up", "2"]  # noqa: PT018
    assert "4 layers, largest error" in lines[-1]


def test_servers_find_one_scale_and_short_names(mlp, tmp_path):
    """Alpha over r is one for every layer, also to a reader that knows no patterns."""
    trained(mlp, "rslora", rank=3, alpha=12.0, rank_pattern={"0.up": 2})
    lb.export_lora(mlp, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    assert config["r"] == config["lora_alpha"] and not config.get("use_rslora")  # noqa: PT018
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^layers\.0\.up": 2}
    assert config["target_modules"] == ["down", "up"]
    assert config["modules_to_save"] == ["head"]


def test_several_active_adapters_go_into_one(mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    lb.adapt(mlp, "lora", rank=2, targets=["up"], name="a")
    shake(mlp)
    lb.adapt(mlp, "moslora", rank=3, targets=["up", "down"], name="b")
    shake(mlp, 1)
    lb.activate(mlp, "a", "b")
    expected = output(mlp)
    report = lb.export_lora(mlp, tmp_path)
    assert report.ranks["layers.0.up"] == 5 and report.ranks["layers.0.down"] == 3  # noqa: PT018
    assert torch.allclose(output(lb.load_peft(fresh, tmp_path)), expected, atol=1e-5)
    lb.export_lora(mlp, tmp_path, name="a")
    lb.activate(mlp, "a")
    assert torch.allclose(through_peft(lb.unload(fresh), tmp_path, X), output(mlp), atol=1e-5)


def test_an_update_of_zero_has_no_error(mlp, tmp_path):
    lb.adapt(mlp, "hira", rank=2)
    assert lb.export_lora(mlp, tmp_path).worst == 0.0


def test_what_is_refused(mlp, tmp_path):
    with pytest.raises(ValueError, match="no adapter is active"):
        lb.export_lora(mlp, tmp_path)
    trained(mlp, name="a")
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lb.export_lora(mlp, tmp_path, rank=0)
    with pytest.raises(TypeError, match=r"rank must be an integer or None, got 2\.5"):
        lb.export_lora(mlp, tmp_path, rank=2.5)
    with pytest.raises(ValueError, match="no adapter 'z'; it has 'a'"):
        lb.export_lora(mlp, tmp_path, name="z")
    trained(mlp, "dora", name="b", also_train=[])
    trained(mlp, "lora", name="c", targets=["head"])
    with pytest.raises(ValueError, match="do not add up; export them one by one"):
        lb.export_lora(mlp, tmp_path, name=("a", "b"))
    with pytest.raises(ValueError, match="train the same parameters in full"):
        lb.export_lora(mlp, tmp_path, name=("a", "c"))
    lb.merge(mlp)
    with pytest.raises(ValueError, match="unmerge"):
        lb.export_lora(mlp, tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_precision_bases(tmp_path):
    torch.manual_seed(0)
    model = Mlp().bfloat16()
    fresh = copy.deepcopy(model)
    lb.adapt(model, "dora", rank=2, targets=["up"])
    shake(model)
    lb.export_lora(model, tmp_path)
    assert all(t.dtype == torch.float32 for t in read_tensors(tmp_path / "adapter_model.safetensors").values())
    x = X.bfloat16()
    assert torch.allclose(output(lb.load_peft(fresh, tmp_path), x), output(model, x), atol=0.05)


def test_pretrained_model(minilm, tmp_path):
    model, batch = minilm
    fresh = copy.deepcopy(model)
    lb.adapt(model, "polar", rank=4, targets=["query", "value"])
    shake(model)
    lb.export_lora(model, tmp_path)
    import peft

    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    with torch.no_grad():
        ours = model(**batch).last_hidden_state
        assert torch.allclose(theirs(**batch).last_hidden_state, ours, atol=1e-4)
