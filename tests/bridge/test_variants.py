"""The table of variants is current, its counts are the published ones, and the largest shared pools are counted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.layers import LINEAR
from llm_bridge.recipes import bslora_of, rasa_of
from llm_bridge.sites import Site
from lowrank_sp.parameterizations import RandLoRA, RaSA
from lowrank_sp.spaces import FIXED

from . import test_peft, test_peft_structured

ROOT = Path(__file__).parents[2]
LORA = lb.recipe("lora")


def load(path: Path):
    """Import a script that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


make_variants = load(ROOT / "docs/make_variants.py")

# (in, out) of the layers of a block of Llama-3.1-8B.
LLAMA = {
    "q_proj": (4096, 4096),
    "k_proj": (4096, 1024),
    "v_proj": (4096, 1024),
    "o_proj": (4096, 4096),
    "gate_proj": (4096, 14336),
    "up_proj": (4096, 14336),
    "down_proj": (14336, 4096),
}
SITES = [
    Site(f"model.layers.{i}.{name}", nn.Linear(*sizes, device="meta"), LINEAR)
    for i in range(32)
    for name, sizes in LLAMA.items()
]


def trained(made: lb.Recipe, rank: int, sites: list[Site] = SITES) -> int:
    """Numbers that train in a model, from shapes alone: shared arrays once for every group."""
    own = sum(make_variants.parameters(made, site.shape, rank)[0] for site in sites)
    groups: dict[object, int] = {}
    for array, key in made.shares:
        for site in sites:
            form = made.form_for(site.shape, rank).for_shape(site.shape)
            sizes = dict(zip(form.names, form.shapes(site.shape, made.size(site.shape, rank)), strict=True))
            moves = dict(zip(form.names, form.spaces, strict=True))[array] is not FIXED
            count = int(torch.Size(sizes[array]).numel()) if moves else 0
            groups[array, key(site)] = max(count, groups.get((array, key(site)), 0))
    return own + sum(groups.values())


def test_page_is_current():
    stored = (ROOT / make_variants.TARGET).read_text(encoding="utf-8")
    assert stored == make_variants.page(), "run `make docs`"


def test_an_entry_without_a_word_is_noticed(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("inventory.toml", "variants.toml"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        (tmp_path / "docs" / name).write_text(text.replace("[P12]\n", "[P01]\n"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"P01 .* has both recipes and a remark"):
        make_variants.page(tmp_path)


def test_what_is_said_to_agree_with_peft_is_tested_to():
    tested = set(test_peft.FROM_PEFT) | set(test_peft_structured.FROM_PEFT) | set(test_peft_structured.OWN)
    tested |= set(test_peft.WRITTEN)
    assert set(make_variants.remarks()["agrees_with_peft"]) <= tested


def test_at_least_seventy_five_recipes():
    assert len(lb.recipes()) >= 75


@pytest.mark.covers("P01", "P28", "P29", "P44", "P46", "P47", "P53", "P63", "P90", "P92", "P102", "X10")
@pytest.mark.parametrize(
    ("made", "rank", "count"),
    [
        ("lora", 8, 20_971_520),
        ("hira", 8, 20_971_520),
        ("melora", 8, 20_971_520),
        ("loha", 4, 20_971_520),
        ("dora", 8, 22_347_776),
        ("moslora", 8, 20_985_856),
        ("rasa", 8, 20_980_256),
        ("denselora", 192, 23_986_176),
        ("aurora", 8, 21_000_192),
        ("delora", 8, 20_971_520 + 224),
        (lb.recipe("randlora").but("bounded", form=RandLoRA.of(1024)), 32, 23_298_048),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_published_counts_of_llama_3_1_8b(made, rank, count):
    assert trained(lb.recipe(made), rank) == count


@pytest.mark.covers("P04", "P45", "P60", "P61", "P62", "P68", "P70", "P73", "P74", "P75", "P78", "X08")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tied-right", lambda m, n, r, layers: m * r * layers + n * r),
        ("localized", lambda m, n, r, layers: 2 * (m + n) * (r // 2) * layers),
        ("sharelora", lambda m, n, r, layers: n * r + m * r * layers),
        ("sharelora-both", lambda m, n, r, layers: (m + n) * r),
        ("vera", lambda m, n, r, layers: (m + r) * layers),
        ("tied-lora", lambda m, n, r, layers: (m + n) * r + (m + r) * layers),
        ("nola", lambda m, n, r, layers: 2 * 64 * layers),
        ("cp", lambda m, n, r, layers: r * (m + n + layers)),
        ("fact-tk", lambda m, n, r, layers: m * r + n * r + layers * r + r**3),
        ("lotr", lambda m, n, r, layers: m * r + n * r + r**2 * layers),
        ("fact-tt", lambda m, n, r, layers: m * r + n * r**2 + layers * r),
        ("metatt", lambda m, n, r, layers: (m + n) * r + (layers + 1) * r**2),
    ],
)
def test_counts_of_layers_that_share(name, count):
    """The formulas of the survey for one type of layer in all blocks, also as the optimizer would count them."""
    sites = [site for site in SITES if site.name.endswith("down_proj")]
    assert trained(lb.recipe(name), 8, sites) == count(4096, 14336, 8, 32)
    small = nn.ModuleList(nn.ModuleDict({"down": nn.Linear(12, 16)}) for _ in range(3))
    lb.adapt(small, name, rank=4)
    assert sum(p.numel() for p in small.parameters() if p.requires_grad) == count(16, 12, 4, 3)


@pytest.mark.covers("P63", "P64")
def test_pools_of_a_model(mlp, task):
    made = rasa_of(mlp)
    assert made.form_for((16, 12), 3) is RaSA.of(1, 2)
    before = mlp(task[0])
    lb.adapt(mlp, made, rank=3)
    first, second = (mlp.layers[i]["up"].adapter("default") for i in (0, 1))
    assert first.left_pool is second.left_pool
    assert first.left_pool.shape == (16, 2)
    assert torch.allclose(mlp(task[0]), before, atol=1e-6)
    lb.unload(mlp)
    lb.adapt(mlp, bslora_of(mlp), rank=2)
    up, down, other = (layer.adapter("default") for layer in list(lb.adapted(mlp).values())[:3])
    assert up.left_layer is down.left_layer
    assert up.left_layer is not other.left_layer
    assert up.left_model is other.left_model
    assert up.left_model.shape == (16, 2)


def test_arrays_of_random_bases_are_shared_and_stored_once(mlp):
    for name in ("randlora", "nola", "vera"):
        lb.adapt(mlp, name, rank=2)
        shared = [array for array, _ in lb.recipe(name).shares]
        layers = [layer.adapter("default") for layer in lb.adapted(mlp).values()]
        for array in shared:
            stores = {getattr(a, array).untyped_storage().data_ptr() for a in layers}
            assert len(stores) < len(layers)
        lb.unload(mlp)
