"""The overhead study at a toy size, and its measuring against counts by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from studies import load
from studies.overhead import study
from studies.overhead.analysis import COMPARED, slug
from studies.overhead.ledger import BANDWIDTH, Ledger
from studies.overhead.models import LAYERS, SIZES, clone, llama, tokens
from studies.overhead.step import Step, take_turns
from studies.overhead.variants import VARIANTS

CELL = {"part": "cpu", "device": "cpu", "model": "tiny", "sequences": 1, "length": 32, "rounds": 2, "repeat": 0}
QUANTITIES = ("trainable", "kept_bytes", "bytes", "memory")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [{**CELL, **row} for row in study.run(CELL)]


@pytest.fixture(scope="module")
def counted() -> list[dict]:
    cell = {"part": "counted", "device": "counted", "model": "tiny", "sequences": 1, "length": 32}
    return [{**cell, **row} for row in study._counted(cell, [study.FLOOR, "LoRA", "DoRA", "LoRAMoE, 8 experts"])]


@pytest.mark.covers("X10")
def test_every_variant_is_measured_beside_lora(rows):
    by = {row["variant"]: row for row in rows}
    assert set(by) == {study.FLOOR, "LoRA", *COMPARED}
    assert by["LoRA"]["bytes"] == by["LoRA"]["memory"] == 1
    assert by[study.FLOOR]["bytes"] == by[study.FLOOR]["trainable"] == 0
    for row in rows:
        assert 0 < row["least"] <= row["most"] < math.inf
        assert row["milliseconds"] > 0


def test_claims_on_the_cpu_are_evaluated_and_others_are_not(rows, counted):
    found = study.measures(rows)
    for claim in load("overhead").config.claims:
        assert claim.measure in found, claim.id
        evaluated = not claim.id.startswith(("counted", "gpu", "long"))
        assert bool(found[claim.measure]) == evaluated, claim.id
    everywhere = [*rows, *counted, *({**row, "part": part} for row in rows for part in ("long", "gpu"))]
    assert all(study.measures(everywhere).values())
    assert set(study.figures(everywhere)) == {"cpu", "long", "counted", "gpu"}
    tables = study.tables(everywhere)
    assert len(tables) == 4
    assert sorted(map(len, tables.values())) == [4, *3 * [1 + len(VARIANTS)]]


def test_claims_state_the_printed_ratios():
    """A limit of a claim is the ratio in the table, rounded up in its last digit."""
    claims = {claim.id: claim.expect.high for claim in load("overhead").config.claims}
    for name in COMPARED:
        variant, key = VARIANTS[name], slug(name).replace("_", "-")
        assert 0 <= claims[f"{key}-time"] - variant.source_time < 1e-3
        assert 0 <= claims[f"{key}-memory"] - variant.source_memory < 1e-4
        assert claims.get(f"{key}-time-limit") == variant.cpu_time
        assert claims.get(f"{key}-bytes-limit") == variant.cpu_bytes


def test_a_ledger_counts_a_chain_of_products_as_by_hand():
    x, v, w = torch.ones(4, 5), torch.ones(5, 6, requires_grad=True), torch.ones(6, 7, requires_grad=True)
    with Ledger((x, v, w)) as ledger:
        y = x @ v
        z = y @ w
        assert ledger.alive == 4 * (20 + 30 + 42 + 24 + 28)
        assert ledger.kernels == 2
        assert ledger.operations == 2 * (4 * 5 * 6 + 4 * 6 * 7)
        assert ledger.moved == 4 * (20 + 30 + 24 + 24 + 42 + 28)
        assert ledger.least == pytest.approx(ledger.moved / BANDWIDTH)  # so small, bytes decide
        z.backward(torch.ones(4, 7))
    assert ledger.operations == 2 * (2 * 4 * 5 * 6 + 3 * 4 * 6 * 7)  # x gets no gradient
    del y, z
    assert ledger.alive == 4 * (20 + 2 * 30 + 2 * 42)  # with both gradients
    assert ledger.peak > ledger.alive


def test_a_ledger_counts_what_is_read_and_what_is_written():
    x, y, z = torch.ones(4, 5), torch.ones(4, 5), torch.ones(4, 5)
    cases = {
        lambda: x.mul_(y): 3, lambda: x.addcmul_(y, z): 4, lambda: x.copy_(y): 2, lambda: x.zero_(): 1,
        lambda: torch.add(y, z, out=x): 3, lambda: y * y: 2, lambda: x.view(5, 4): 0,
        lambda: torch.promote_types(x.dtype, torch.bfloat16): 0, lambda: torch.empty_like(x): 0,
    }  # fmt: skip
    for operation, arrays in cases.items():
        with Ledger() as ledger:
            operation()
        assert ledger.moved == 80 * arrays
        assert ledger.kernels == bool(arrays)


def test_counts_of_tensors_without_numbers_are_those_of_real_ones(counted):
    """Beyond the frozen model: transformers makes a causal mask only for tensors that hold no numbers."""
    base, floor = llama("counted", "tiny"), counted[0]
    least = study._ledger(base, study.FLOOR, floor)
    for row in counted:
        real = study._ledger(base, row["variant"], row)
        beyond = {key: row[key] - floor[key] for key in real}
        assert beyond == pytest.approx({key: real[key] - least[key] for key in real}, rel=1e-9)


def test_memory_does_not_depend_on_the_run(rows):
    base = llama("cpu", "tiny")
    for name in ("LoRA", "DoRA", "HiRA"):
        again = study._memory(base, name, CELL)
        row = next(row for row in rows if row["variant"] == name)
        assert again["kept"] == row["kept_bytes"]
        assert again["trainable"] == row["trainable"]


def test_variants_train_what_their_formulas_say(rows):
    trained = {row["variant"]: row["trainable"] for row in rows}
    size = SIZES["tiny"]
    width, inner, blocks = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    lora = blocks * 8 * (4 * 2 * width + 3 * (width + inner))
    outputs = blocks * (5 * width + 2 * inner)
    assert trained["LoRA"] == trained["HiRA"] == trained["MELoRA"] == trained["LoHa"] == trained["LoRAN"] == lora
    assert trained["DoRA"] == lora + outputs
    assert trained["MoSLoRA"] == lora + 7 * blocks * 64
    assert trained["LoRAMoE, 8 experts"] == lora + 8 * blocks * (6 * width + inner)
    assert trained["LoRA, checkpointing"] == lora


def test_a_device_that_is_not_there_gives_no_rows():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert study.run({**CELL, "part": "gpu", "device": "cuda"}) == []


# measuring -------------------------------------------------------------------------------------------------------


class Chain(torch.nn.Module):
    """Two linear layers behind an embedding, as a model that returns a loss."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(7, 5)
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))

    def get_input_embeddings(self):
        return self.table

    def forward(self, inputs_embeds, attention_mask, labels, use_cache):
        return type("Output", (), {"loss": self.layers(inputs_embeds).sum()})()


def chain(first: bool) -> Step:
    model = Chain().requires_grad_(False)
    model.layers[0].requires_grad_(first)
    ids = torch.zeros(2, 4, dtype=torch.long)
    return Step(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_kept_bytes_are_those_of_the_activations():
    output_of_tanh = 2 * 4 * 6 * 4
    embedded = 2 * 4 * 5 * 4  # the gradient of the first weight needs it
    assert chain(first=False).saved() == output_of_tanh
    assert chain(first=True).saved() == output_of_tanh + embedded


def test_resident_bytes_are_weights_gradients_and_two_moments():
    frozen, step = chain(first=False), chain(first=True)
    weights = 4 * (7 * 5 + 6 * 5 + 6 + 3 * 6 + 3)
    assert frozen.resident() == weights
    step()
    moved = 6 * 5 + 6
    count = 2 * 4  # of steps, for the weight and the bias
    assert step.resident() == weights + 4 * 3 * moved + count
    assert frozen.peak() is None
    assert step.seconds() >= 0


def test_copies_share_their_weights():
    base = llama("cpu", "tiny")
    other = clone(base)
    assert {p.data_ptr() for p in base.parameters()} == {p.data_ptr() for p in other.parameters()}
    assert not {id(p) for p in base.parameters()} & {id(p) for p in other.parameters()}
    names = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    assert {name.rpartition(".")[2] for name in names} == set(LAYERS)
    assert tokens(base)["input_ids"].shape == (2, 256)
    assert int(tokens(base, (1, 9))["input_ids"].max()) < SIZES["tiny"]["vocab_size"]


def test_turns_compare_with_the_reference_nearby():
    """On a machine that slows down steadily, ratios are those of a steady one, and plain medians are not."""

    class Costs:
        now = 0.0

        def __init__(self, cost: float):
            self.cost = cost

        def seconds(self) -> float:
            Costs.now += 1
            return self.cost * (1 + Costs.now / 50)

    costs = {"reference": 2.0, **{f"m{i}": 1.0 + i for i in range(20)}}
    seconds, ratios = take_turns({name: cast(Step, Costs(c)) for name, c in costs.items()}, "reference", 4)
    for name, cost in costs.items():
        assert len(seconds[name]) == len(ratios[name]) == 4
        assert all(abs(ratio / (cost / 2.0) - 1) < 0.1 for ratio in ratios[name])
    assert max(seconds["m0"]) > 1.5 * min(seconds["m0"])
