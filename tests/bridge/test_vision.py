"""Adapters in networks that see: convolutions as in PEFT, and a vision transformer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import llm_bridge as lb

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (2, 3, 11)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), padding=1, bias=False), (2, 3, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(3, 5, (2, 3, 1), stride=(1, 2, 1), padding=1), (2, 3, 5, 6, 4)),
}


def with_peft(layer: nn.Module) -> tuple[Any, Any]:
    import peft

    plain: Any = nn.Sequential(copy.deepcopy(layer))
    made: Any = peft.get_peft_model(plain, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"]))
    return made, made.base_model.model[0]


@pytest.mark.covers("P11")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_agree_with_peft(kind, tmp_path):
    """Outputs and gradients at equal factors: r channels with the kernel, then kernels of size one; and files."""
    import peft

    torch.manual_seed(0)
    make, shape = CONVOLUTIONS[kind]
    layer, x = make(), torch.randn(shape)
    theirs, other = with_peft(layer)
    model = lb.adapt(nn.Sequential(layer), "lora", rank=2, alpha=3.0, targets=["0"])
    adapter = lb.adapted(model)["0"].adapter("default")
    kernel, ones = other.lora_A.default.weight, other.lora_B.default.weight
    channels = kernel[0].numel()
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (channels + 5)  # r (c_in k ... + c_out)
    with torch.no_grad():
        ones.copy_(torch.randn(ones.shape))
        adapter.left.copy_(ones.reshape(5, 2))
        adapter.right.copy_(kernel.reshape(2, -1).T)
    outs = [model(x), theirs(x)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(adapter.left.grad, ones.grad.reshape(5, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter.right.grad, kernel.grad.reshape(2, -1).T, atol=1e-4, rtol=1e-4)
    lb.merge(model)
    torch.testing.assert_close(model(x), outs[1], atol=1e-5, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    lb.unmerge(model)
    fresh = nn.Sequential(copy.deepcopy(lb.adapted(model)["0"].base))
    plain: Any = copy.deepcopy(fresh)
    lb.load_peft(fresh, tmp_path / "theirs")
    torch.testing.assert_close(fresh(x), outs[1], atol=1e-5, rtol=1e-4)
    lb.save_peft(model, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(plain, str(tmp_path / "ours"))
    torch.testing.assert_close(back(x), outs[1], atol=1e-5, rtol=1e-4)


@pytest.fixture
def vit():
    """A vision transformer of two blocks with random weights, images (6, 3, 8, 8) and classes."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0.0, **sizes)
    generator = torch.Generator().manual_seed(1)
    return ViTForImageClassification(config).eval(), torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3


@pytest.mark.covers("P12")
def test_every_linear_layer_of_a_vision_transformer_adapts_trains_and_merges(vit):
    model, images, labels = vit
    plain = model(images).logits
    linear = {name for name, m in model.named_modules() if type(m) is nn.Linear and "classifier" not in name}
    lb.adapt(model, "lora", rank=2, also_train=["classifier"])
    assert set(lb.adapted(model)) == linear
    assert len(linear) == 2 * 6  # q, k, v, o and the two of the perceptron
    torch.testing.assert_close(model(images).logits, plain)
    optimizer = lb.optimizer(model, lr=2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(layer.adapter("default").left.any() for layer in lb.adapted(model).values())
    tuned = model(images).logits
    lb.merge(model)
    torch.testing.assert_close(model(images).logits, tuned, atol=1e-5, rtol=1e-4)
    lb.unload(model)
    torch.testing.assert_close(model(images).logits, tuned, atol=1e-5, rtol=1e-4)


@pytest.mark.covers("P12")
def test_the_patches_of_a_vision_transformer_are_a_convolution_that_adapts(vit):
    model, images, _ = vit
    lb.adapt(model, "lora", rank=2, targets=["projection"])
    (layer,) = lb.adapted(model).values()
    assert isinstance(layer.base, nn.Conv2d)
    adapter = layer.adapter("default")
    with torch.no_grad():
        adapter.left.copy_(torch.randn(16, 2, generator=torch.Generator().manual_seed(2)))
    tokens = torch.nn.functional.unfold(images, 4, stride=4).mT  # patches as rows
    moved = layer(images).flatten(2).mT - layer.base(images).flatten(2).mT
    torch.testing.assert_close(moved, adapter.scale * tokens @ adapter.right @ adapter.left.T, atol=1e-5, rtol=1e-4)
