"""PEFT's files in both directions: equal outputs at equal factors, merged and not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.files import read_tensors
from llm_bridge.recipe import everywhere
from lowrank_sp.parameterizations import BlockGrid, Hadamard, Kronecker, LoKr, VeRA

from .conftest import Mlp

# PEFT asks transformers for an attribute that is about to go.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",  # its SHiRA makes sparse tensors
)
X = torch.randn(5, 12, generator=torch.Generator().manual_seed(3))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.line = nn.Conv2d(3, 6, 3, padding=1), nn.Conv1d(6, 4, 3)

    def forward(self, x):
        return self.line(torch.tanh(self.first(x)).flatten(2))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=8, n_embd=12, n_layer=1, n_head=2))


TOKENS = torch.arange(10).reshape(2, 5)
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, list[str]]] = {
    "linear": (Mlp, X, ["up", "down"]),
    "conv1d": (gpt2, TOKENS, ["c_attn", "c_fc"]),
    "conv": (Conv, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(4)), ["first", "line"]),
    "conv2d": (Conv, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(4)), ["first"]),
    "embedding": (Words, TOKENS, ["words"]),
}


def base(kind: str) -> tuple[nn.Module, torch.Tensor, list[str]]:
    torch.manual_seed(0)
    make, x, targets = MODELS[kind]
    return make().eval(), x, targets


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(x)
    return getattr(out, "logits", out)


def shake(parameters: Iterable[torch.Tensor], size: float = 0.3) -> None:
    """Random values, all of them different from the start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.add_(size * torch.randn(p.shape, generator=generator))


# What PEFT's configuration is called, its settings, and the models that its method knows.
FROM_PEFT = {
    "lora": ("LoraConfig", {"r": 3, "lora_alpha": 5}, ["linear", "conv1d", "conv", "embedding"]),
    "rslora": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_rslora": True}, ["linear"]),
    "patterns": (
        "LoraConfig",
        {"r": 3, "lora_alpha": 5, "rank_pattern": {"layers.0.up": 2}, "alpha_pattern": {"^layers.1.*": 7, "down": 1}},
        ["linear"],
    ),
    "dora": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True}, ["linear", "conv1d", "conv", "embedding"]),
    "dora-rs": ("LoraConfig", {"r": 3, "lora_alpha": 5, "use_dora": True, "use_rslora": True}, ["linear"]),
    "hira": ("HiraConfig", {"r": 3}, ["linear", "conv1d", "conv", "embedding"]),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 5}, ["linear", "conv1d", "conv2d"]),
    "loha": ("LoHaConfig", {"r": 3, "alpha": 5}, ["linear", "conv"]),
    "lokr": ("LoKrConfig", {"r": 1, "alpha": 5}, ["linear"]),
    "lokr-full": ("LoKrConfig", {"r": 4, "alpha": 5}, ["linear"]),
    "lokr-factor": ("LoKrConfig", {"r": 2, "alpha": 5, "decompose_factor": 2}, ["linear"]),
    "lokr-both": ("LoKrConfig", {"r": 1, "alpha": 5, "decompose_both": True}, ["linear"]),
    "vera": ("VeraConfig", {"r": 5}, ["linear", "conv1d"]),
    "gralora": ("GraloraConfig", {"r": 4, "alpha": 5}, ["linear", "conv1d"]),
    "shira": ("ShiraConfig", {"r": 2}, ["linear"]),
    "fourierft": ("FourierFTConfig", {"n_frequency": 9}, ["linear", "conv1d"]),
}
CASES = [(name, kind) for name, (_, _, kinds) in FROM_PEFT.items() for kind in kinds]


def peft_model(name: str, model: nn.Module, targets: list[str], **more):
    import peft

    made, settings, _ = FROM_PEFT[name]
    transposed = {"fan_in_fan_out": True} if any("c_" in t for t in targets) else {}
    return peft.get_peft_model(model, getattr(peft, made)(target_modules=targets, **settings, **transposed, **more))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_peft_wrote_computes_the_same_here(name, kind, tmp_path):
    import peft

    model, x, targets = base(kind)
    theirs = peft_model(name, copy.deepcopy(model), targets).eval()
    shake(p for n, p in theirs.named_parameters() if p.requires_grad and "ranknum" not in n)
    theirs.save_pretrained(tmp_path)
    expected = output(theirs, x)
    assert not same(expected, output(model, x))
    fresh = copy.deepcopy(model)
    lb.load_peft(model, tmp_path)
    assert same(output(model, x), expected)
    lb.save_peft(model, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "again")).eval()
    assert same(output(back, x), expected)
    lb.merge(model)
    assert same(output(model, x), expected)


WRITTEN = {
    "lora": {},
    "rslora": {"alpha": 5.0},
    "lora-fa": {},
    "patterns": {"alpha": 5.0, "rank_pattern": {"0.up": 2}, "alpha_pattern": {"1.down": 7.0}},
    "dora": {"alpha": 5.0},
    "hira": {"alpha": 5.0},
    "adalora": {"alpha": 5.0, "rank_pattern": {"0.up": 2}},
    "loha": {"alpha": 5.0},
    "pissa": {},
    "dude": {},
    **{key: {"alpha": 5.0} for key in ("lokr", "lokr-factor", "vera", "gralora")},
    "lokr-full": {"alpha": 5.0, "rank": 1},
}
LORA = lb.recipe("lora")
OWN = {
    "patterns": LORA,
    "loha": LORA.but("loha", form=Hadamard),
    "lokr": LORA.but("lokr", form=LoKr),
    "lokr-full": LORA.but("krona", form=Kronecker, scale=lambda alpha, rank: alpha),
    "lokr-factor": LORA.but("lokr", form=LoKr.of(2)),
    "vera": LORA.but("vera", form=VeRA, shares=(("left", everywhere), ("right", everywhere))),
    "gralora": LORA.but("gralora", form=BlockGrid.of(4, 4)),
}
OURS = [(name, kind) for name in WRITTEN for kind in FROM_PEFT.get(name, (0, 0, ["linear", "conv1d"]))[2]]


@pytest.mark.parametrize(("name", "kind"), OURS)
def test_what_we_write_computes_the_same_in_peft(name, kind, tmp_path):
    import peft

    model, x, targets = base(kind)
    fresh = copy.deepcopy(model)
    recipe = OWN.get(name, name)
    settings = WRITTEN[name] if kind == "linear" else {}
    lb.adapt(model, recipe, **{"rank": 3, "targets": targets} | settings)
    shake(p for p in model.parameters() if p.requires_grad)
    expected = output(model, x)
    assert not same(expected, output(fresh, x))
    lb.save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path)).eval()
    assert same(output(theirs, x), expected)
    assert same(output(theirs.merge_and_unload(), x), expected)
    lb.load_peft(fresh, tmp_path)
    assert same(output(fresh, x), expected)


# beside the factors --------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A head that trains in full, and a bias in an adapted layer that does."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_modules_and_biases_that_train_in_full(tmp_path):
    import peft

    torch.manual_seed(0)
    model = Classifier().eval()
    fresh = copy.deepcopy(model)
    settings = {"target_modules": ["body"], "modules_to_save": ["head"], "bias": "lora_only"}
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, **settings)).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    lb.load_peft(model, tmp_path / "theirs")
    assert same(output(model, X), output(theirs, X))
    assert set(lb.setups(model)["default"].also_train) == {"body.bias", "head.weight", "head.bias"}
    with lb.disable(model):
        assert torch.equal(output(model, X), output(fresh, X))
    lb.save_peft(model, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "ours")).eval()
    assert same(output(back, X), output(theirs, X))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_tied_head_that_trains_in_full(llama, tmp_path):
    import peft

    model, tokens = llama
    fresh = copy.deepcopy(model)
    lb.adapt(model, "lora", rank=2, also_train=["lm_head"])
    shake(p for p in model.parameters() if p.requires_grad)
    lb.save_peft(model, tmp_path)
    saved = read_tensors(tmp_path / "adapter_model.safetensors")
    assert {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"} <= saved.keys()
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path)).eval()
    assert same(output(theirs, tokens), output(model, tokens))
    lb.load_peft(fresh, tmp_path)
    assert same(output(fresh, tokens), output(model, tokens))
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, about tied weights and about what it saves along
def test_embeddings_that_peft_saves_along(llama, tmp_path):
    """Adapted embeddings come with their own weight: of the same model it says nothing new."""
    import peft

    model, tokens = llama
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    assert any("base_layer" in key for key in read_tensors(tmp_path / "adapter_model.safetensors"))
    lb.load_peft(model, tmp_path)
    assert same(output(model, tokens), output(theirs, tokens))
    assert lb.setups(model)["default"].also_train == ()


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor.s. have invalid shape")  # those of rank zero
def test_pruned_ranks_of_adalora(tmp_path):
    """A budget leaves some layers a smaller rank, and some none."""
    import peft

    model, x, targets = base("linear")
    config = peft.AdaLoraConfig(init_r=3, target_r=1, total_step=5, target_modules=targets)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    shake(p for n, p in theirs.named_parameters() if p.requires_grad and "ranknum" not in n)
    kept = {"0.up": [True, False, True], "0.down": [True] * 3, "1.up": [False, True, False], "1.down": [False] * 3}
    for path, mask in kept.items():
        layer = theirs.get_submodule(f"base_model.model.layers.{path}")
        with torch.no_grad():
            layer.lora_E["default"].mul_(torch.tensor(mask)[:, None])
    pattern = {f"layers.{path}.lora_E.default": mask for path, mask in kept.items()}
    expected = output(theirs, x)
    config.rank_pattern = pattern
    theirs.save_pretrained(tmp_path)
    lb.load_peft(model, tmp_path)
    assert same(output(model, x), expected)
    assert lb.setups(model)["default"].ranks == {"layers.0.up": 2, "layers.0.down": 3, "layers.1.up": 1}


def test_pretrained_model_both_ways(minilm, tmp_path):
    import peft

    model, batch = minilm
    fresh = copy.deepcopy(model)
    lb.adapt(model, "dora", rank=4, targets=["query", "value"], also_train=["pooler"])
    shake((p for p in model.parameters() if p.requires_grad), size=0.02)
    lb.save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), str(tmp_path)).eval()
    lb.load_peft(fresh, tmp_path, name="again")
    with torch.no_grad():
        ours = model(**batch).pooler_output
        assert same(theirs(**batch).pooler_output, ours)
        assert same(fresh(**batch).pooler_output, ours)
