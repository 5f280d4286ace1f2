"""Adapters kept to the directions of alignment, and how alike layers are: dense projections and Gram matrices."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.composition import Leading, Normalized

from .test_checkpoint import X, equal, trained
from .test_combination import updates


def aligned(model, rank=3, seed=0):
    """The model before it was aligned: weights differ by matrices of low rank."""
    before = copy.deepcopy(model)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for module in before.modules():
            if isinstance(module, nn.Linear):
                m, n = module.weight.shape
                change = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
                module.weight += torch.as_tensor(change, dtype=torch.float32)
    return before


@pytest.mark.covers("A22")
def test_changes_are_projected_where_they_point_elsewhere(mlp):
    before = aligned(mlp)
    weights = {path: m.weight.detach().double().numpy() for path, m in mlp.named_modules() if isinstance(m, nn.Linear)}
    trained(mlp, "lora", rank=2, also_train=[])
    old = updates(mlp, "default")
    cosines = {}
    for path, update in old.items():
        v = weights[path] - before.get_submodule(path).weight.detach().double().numpy()
        u = np.linalg.svd(v)[0][:, :3]
        kept = u @ (u.T @ update)
        cosines[path] = (kept * update).sum() / np.linalg.norm(kept) / np.linalg.norm(update), kept
    threshold = float(np.median([c for c, _ in cosines.values()]))
    report = lb.safe_projection(mlp, before, threshold=threshold + 1e-4, projector=Leading(1 - 1e-9))
    assert set(report.projected) == {p for p, (c, _) in cosines.items() if c <= threshold + 1e-4}
    assert 0 < len(report.projected) < len(old)
    for path, (cosine, kept) in cosines.items():
        assert report.cosines[path] == pytest.approx(cosine, abs=1e-4)
        expected = kept if path in report.projected else old[path]
        assert np.allclose(updates(mlp, "safe")[path], expected, atol=1e-5)
    assert {layer.active for layer in lb.adapted(mlp).values() if layer.names()} == {("safe",)}
    assert f"{len(report.projected)} of {len(old)} layers projected" in str(report)


@pytest.mark.covers("A22")
def test_the_matrix_of_the_published_code_and_weights_by_path(mlp):
    before = aligned(mlp)
    by_path = {path: m.weight.detach() for path, m in before.named_modules() if isinstance(m, nn.Linear)}
    trained(mlp, "lora", rank=2, also_train=[])
    lb.safe_projection(mlp, by_path, threshold=1.0, projector=Normalized())
    for path, update in updates(mlp, "default").items():
        v = (lb.adapted(mlp)[path].weight - by_path[path]).detach().double().numpy()
        assert np.allclose(updates(mlp, "safe")[path], v @ v.T @ update / np.linalg.norm(v), atol=1e-4)


@pytest.mark.covers("T56")
def test_the_projector_of_the_survey_is_the_unit_matrix_for_square_changes():
    rng = np.random.default_rng(0)
    for m, n in ((6, 6), (6, 4), (4, 6)):
        v = torch.as_tensor(rng.standard_normal((m, n)))
        if n >= m:
            with pytest.raises(ValueError, match=r"all .* directions of the output, so that the projector is the unit"):
                Leading(1.0)(v, "here")
        else:
            projector = Leading(1.0)(v, "here")
            assert torch.allclose(projector, v @ torch.linalg.inv(v.mT @ v) @ v.mT)
            assert torch.linalg.matrix_rank(projector) == 4
        half = Leading(0.5)(v, "here")
        assert torch.allclose(half @ half, half)
        assert 1 <= torch.linalg.matrix_rank(half) < min(m, n)
    square = torch.as_tensor(rng.standard_normal((6, 6)))
    unit = square @ torch.linalg.inv(square.mT @ square) @ square.mT
    assert torch.allclose(unit, torch.eye(6).double())


def test_projections_that_mean_nothing(mlp):
    before = aligned(mlp)
    trained(mlp, "lora", rank=2, also_train=[])
    trained(mlp, "dora", rank=2, name="dora", also_train=[])
    there, state = list(lb.setups(mlp)), copy.deepcopy(mlp.state_dict())
    same = lb.unload(copy.deepcopy(mlp))
    cases = [
        ((before,), {"threshold": 2.0}, r"threshold must lie in \[-1, 1\]"),
        ((before,), {"name": "dora"}, "does more than add"),
        ((same,), {}, "the weight is that of the unaligned model"),
        (({},), {}, "the unaligned model has no weight of layers.0.up"),
        (({"layers.0.up": torch.ones(2, 2)},), {}, r"is \(16, 12\) here and \(2, 2\) in the unaligned model"),
        ((aligned(same, rank=16),), {"projector": Leading(1.0)}, "the projector is the unit matrix"),
        ((before,), {"into": "dora"}, "has an adapter 'dora' already"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            lb.safe_projection(mlp, *arguments, **options)
    assert equal(state, mlp.state_dict())
    assert list(lb.setups(mlp)) == there
    for energy in (0.0, 1.2):
        with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
            Leading(energy)


# CKA ----------------------------------------------------------------------------------------------------------------
@pytest.mark.covers("A34")
def test_cka_is_the_similarity_of_centred_gram_matrices():
    rng = np.random.default_rng(0)
    for k in (7, 40):
        x, y = rng.standard_normal((k, 9)), rng.standard_normal((k, 5)) ** 2
        center = np.eye(k) - 1 / k
        a, b = center @ x @ x.T @ center, center @ y @ y.T @ center
        expected = np.trace(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert lb.linear_cka(torch.as_tensor(x), torch.as_tensor(y)).item() == pytest.approx(expected)
        q, _ = np.linalg.qr(rng.standard_normal((9, 9)))
        assert lb.linear_cka(torch.as_tensor(x), torch.as_tensor(3 * x @ q + 1)).item() == pytest.approx(1.0)
    assert lb.linear_cka(torch.ones(4, 2), torch.randn(4, 3)).item() == 0
    for x, y in ((torch.ones(3, 2), torch.ones(4, 2)), (torch.ones(1, 2), torch.ones(1, 2)), (torch.ones(3), X)):
        with pytest.raises(ValueError, match="same k > 1 examples"):
            lb.linear_cka(x, y)


@pytest.mark.covers("A34")
def test_layers_of_a_model_by_what_they_return_and_by_their_weights(llama):
    model, ids = llama
    paths = ["model.layers.0", "model.layers.1", "model.norm"]
    found = lb.layer_similarity(model, paths, [{"input_ids": ids}, {"input_ids": ids + 14}], tokens=20)
    with torch.no_grad():
        states = [model(input_ids=i, output_hidden_states=True).hidden_states for i in (ids, ids + 14)]
    first, last = (torch.cat([s[i].flatten(0, 1) for s in states])[:20] for i in (1, -1))
    assert torch.allclose(found, found.mT)
    assert torch.allclose(found.diagonal(), torch.ones(3).double())
    assert found[0, 2].item() == pytest.approx(lb.linear_cka(first, last).item(), abs=1e-6)
    weights = [block.self_attn.q_proj.weight for block in model.model.layers]
    alike = lb.weight_similarity(weights)
    assert alike[0, 1].item() == pytest.approx(lb.linear_cka(weights[0].mT, weights[1].mT).item())
    with pytest.raises(ValueError, match="paths must be modules of the model"):
        lb.layer_similarity(model, ["nowhere"], [ids])
    with pytest.raises(ValueError, match=r"model\.layers\.0 was not called"):
        lb.layer_similarity(model, paths, lambda: None)
