"""Restarts: what is kept, what begins again, what the optimizer forgets, and what cannot restart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import llm_bridge as lb
from llm_bridge.inject import setups

from .training_steps import restarted, steps

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning", "ignore:.*shares its weight.*:UserWarning")


def total(model, path, base):
    """The change of a layer's weight, by sending the identity through it."""
    layer = lb.adapted(model)[path]
    size = layer.base.weight.shape[1]
    with torch.no_grad():
        return (layer(torch.eye(size)) - base.get_submodule(path)(torch.eye(size))).mT


@pytest.mark.covers("P40", "P42", "R20", "R21")
@pytest.mark.parametrize("keep", [lb.Beside(), lb.InWeights()])
@pytest.mark.parametrize("recipe", ["lora", "reflora", "pissa", "moslora", "polar"])
def test_a_restart_changes_nothing_but_the_room_to_move(recipe, keep, mlp, task):
    base, twin = copy.deepcopy(mlp), copy.deepcopy(mlp)
    lb.adapt(twin, recipe, rank=2)
    steps(twin, lb.optimizer(twin, lr=1e-2), task, 5)
    optimizer, restarts = restarted(mlp, lb.chain_of_lora(5, keep), recipe, lr=1e-2, rank=2)
    steps(mlp, optimizer, task, 5)
    assert torch.allclose(mlp(task[0]), twin(task[0]), atol=1e-5)
    (report,) = restarts.reports
    assert report.phase == 1
    assert max(report.errors.values()) < 1e-3
    assert set(report.errors) == set(lb.adapted(mlp))
    for path, layer in lb.adapted(mlp).items():
        assert float(layer.adapter("default").update().detach().norm()) < 1e-5
        assert torch.allclose(total(mlp, path, base), total(twin, path, base), atol=1e-5)


@pytest.mark.covers("P40", "R20")
def test_phases_of_rank_one_reach_rank_three(mlp, task):
    base = copy.deepcopy(mlp)
    optimizer, restarts = restarted(mlp, lb.relora(20))
    steps(mlp, optimizer, task, 60)
    singular = torch.linalg.svdvals(total(mlp, "layers.0.up", base))
    assert restarts.phase == 3
    assert int((singular > 1e-4 * singular[0]).sum()) == 3
    assert all(report.ranks["layers.0.up"] == report.phase for report in restarts.reports)


def test_training_goes_on_from_where_it_was(mlp, task):
    plain = copy.deepcopy(mlp)
    optimizer, _ = restarted(mlp, lb.chain_of_lora(40))
    many = steps(mlp, optimizer, task, 200)
    lb.adapt(plain, "lora", rank=1)
    one = steps(plain, lb.optimizer(plain, lr=3e-2), task, 200)
    assert many < one


def test_weights_stay_or_move(mlp, task):
    base = copy.deepcopy(mlp)
    for keep, moved in ((lb.Beside(), False), (lb.InWeights(), True)):
        model = copy.deepcopy(base)
        optimizer, _ = restarted(model, lb.chain_of_lora(3, keep))
        steps(model, optimizer, task, 3)
        with lb.disable(model):
            assert torch.allclose(model(task[0]), base(task[0]), atol=1e-6) is not moved
        weight = lb.adapted(model)["layers.0.up"].base.weight
        assert torch.equal(weight, base.layers[0]["up"].weight) is not moved


@pytest.mark.covers("P41")
def test_momentum_weighs_phases_as_a_running_mean_does(mlp, task):
    base, mu, path = copy.deepcopy(mlp), 0.3, "layers.0.up"
    lb.adapt(mlp, "lora", rank=2)
    optimizer, updates = lb.optimizer(mlp, lr=3e-2), []
    adapter = lb.adapted(mlp)[path].adapter("default")
    optimizer.register_step_post_hook(lambda *_: updates.append(adapter.update().detach().clone()))  # runs first
    lb.Restarts(mlp, optimizer, lb.periodic_lora(4, momentum=mu))
    kept = velocity = torch.zeros(16, 12)
    for _ in range(3):
        steps(mlp, optimizer, task, 4)
        velocity = mu * velocity + (1 - mu) * updates[-1]
        kept = kept + velocity
        assert torch.allclose(total(mlp, path, base), kept, atol=1e-5)


@pytest.mark.covers("P43", "R21")
def test_boosting_trains_some_blocks_a_phase(task):
    torch.manual_seed(0)
    from .conftest import Mlp

    model = Mlp(blocks=5)
    optimizer, restarts = restarted(model, lb.xgblora(4, layers=2), targets=["up", "down"])
    seen = set()
    for _ in range(6):
        trains = {path.split(".")[1] for path in restarts.paths if restarts.adapter(path).left.requires_grad}
        assert len(trains) == 2
        seen |= trains
        before = {path: restarts.adapter(path).right.detach().clone() for path in restarts.paths}
        steps(model, optimizer, task, 3)
        moved = {p.split(".")[1] for p in restarts.paths if not torch.equal(before[p], restarts.adapter(p).right)}
        assert moved == trains
        steps(model, optimizer, task, 1)
        assert {p.split(".")[1] for p in restarts.reports[-1].errors} == trains
    assert len(seen) > 2


# forgetting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["lora", "reflora"])
def test_everything_is_forgotten(recipe, mlp, task):
    lb.adapt(mlp, recipe, rank=2, also_train=["head"])
    optimizer = lb.optimizer(mlp, lr=1e-2)
    steps(mlp, optimizer, task, 3)
    layers = [layer.adapter("default") for path, layer in lb.adapted(mlp).items() if path.startswith("layers.0")]
    lb.forget(optimizer, layers)
    twin = copy.deepcopy(mlp)
    fresh = lb.optimizer(twin, lr=1e-2)
    steps(mlp, optimizer, task, 1)
    steps(twin, fresh, task, 1)
    for path, layer in lb.adapted(mlp).items():
        pairs = zip(layer.parameters(), lb.adapted(twin)[path].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) is path.startswith("layers.0")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_pruning_is_that_of_the_quantile(share, mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    optimizer = lb.optimizer(mlp, lr=1e-2)
    steps(mlp, optimizer, task, 3)
    adapter = lb.adapted(mlp)["layers.0.up"].adapter("default")
    state = {k: v.clone() for k, v in optimizer.state[adapter.left].items()}
    lb.forget(optimizer, [adapter], share)
    size = state["exp_avg"].abs()
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[adapter.left][key], state[key] * (size > torch.quantile(size, share)))
    assert optimizer.state[adapter.left]["step"] == state["step"]


def test_pruning_reaches_buckets_layer_by_layer(mlp, task):
    lb.adapt(mlp, "reflora", rank=2)
    optimizer = lb.optimizer(mlp, lr=1e-2)
    steps(mlp, optimizer, task, 3)
    bucket = next(b for b in optimizer.buckets if len(b.adapters) == 2)
    old = [bucket.unstack(i) for i in range(2)]
    lb.forget(optimizer, bucket.adapters[:1], 0.9)
    new = [bucket.unstack(i) for i in range(2)]
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(old[1].values(), new[1].values()))
    # Of a chain with Adam behind RefLoRA: the counter, then first and second moments of left and right.
    _, *moments = [a for key, a in old[0].items() if key != "turn"]
    pruned = [a for key, a in new[0].items() if key != "turn"][1:]
    for i, (a, b) in enumerate(zip(moments, pruned, strict=True)):
        size = moments[i % 2].abs()
        assert torch.equal(b, a * (size > torch.quantile(size, 0.9)))


@pytest.mark.parametrize("recipe", ["lora", "polar", "stella"])
def test_a_restart_with_pruned_moments_does_not_jump(recipe, mlp, task):
    optimizer, restarts = restarted(mlp, lb.relora(20), recipe)
    loss = steps(mlp, optimizer, task, 20)
    assert len(restarts.reports) == 1
    assert steps(mlp, optimizer, task, 20) < loss
    for bucket in optimizer.buckets:
        assert all(p.isfinite().all() for i in range(len(bucket.adapters)) for p in bucket.parameters(i))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_shares_out_of_range(share, mlp):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        lb.forget(lb.optimizer(mlp), [], share)


# the schedule -------------------------------------------------------------------------------------------------


@pytest.mark.covers("O46")
def test_the_jagged_schedule():
    factor = lb.jagged(100, warmup=10, first=20)
    assert [factor(t) for t in (0, 10, 20, 99, 100, 105, 110, 199, 200)] == [0, 0.5, 1, 1, 0, 0.5, 1, 1, 0]
    falling = lb.jagged(100, warmup=10, steps=400, floor=0.2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0), 400, 0.2)
    for t in range(400):
        if t % 100 >= 10 or t < 100:
            assert falling(t) == pytest.approx(cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 5, "warmup": 5}, {"every": 50, "floor": 2.0}])
def test_schedules_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="needs 0 <= warmup < every"):
        lb.jagged(**wrong)


# what cannot restart ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("dora", "does not add a matrix"),
        ("hira", "does not add a matrix"),
        ("aurora", "does not add a matrix"),
        ("vera", "shares arrays between layers"),
        ("loha", "has no thin factors"),
    ],
)
def test_recipes_that_cannot_restart(recipe, message, mlp):
    lb.adapt(mlp, recipe, rank=2)
    optimizer = lb.optimizer(mlp)
    with pytest.raises(ValueError, match=message):
        lb.Restarts(mlp, optimizer, lb.relora(5))
    assert list(setups(mlp)) == ["default"]


def test_starts_that_look_at_data(mlp, task):
    batch = [task[0]]
    lb.adapt(mlp, "eva", rank=2, calibration=batch)
    with pytest.raises(ValueError, match="looks at inputs, which a restart does not have"):
        lb.Restarts(mlp, lb.optimizer(mlp), lb.relora(5))
    optimizer = lb.optimizer(mlp, lr=1e-2)
    lb.Restarts(mlp, optimizer, lb.Phases(2, start=lb.Default()))
    steps(mlp, optimizer, task, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 0}, "every must be a positive number"),
        ({"every": 2.5}, "every must be a positive number"),
        ({"every": 5, "forget": 0.0}, "forget must lie"),
        ({"every": 5, "momentum": 1.0}, "momentum must lie"),
        ({"every": 5, "layers": 0}, "layers must be positive"),
    ],
)
def test_phases_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        lb.Phases(**wrong)


def test_bad_input(mlp):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        lb.Restarts(mlp, lb.optimizer(mlp), lb.relora(5), name="other")
    with pytest.raises(ValueError, match="layers must be at most"):
        lb.Restarts(mlp, lb.optimizer(mlp), lb.xgblora(5, layers=9))
    with pytest.raises(TypeError, match="must be one of torch"):
        lb.Restarts(mlp, "adam", lb.relora(5))
    with pytest.raises(ValueError, match="does not begin at zero"):
        lb.Restarts(mlp, lb.optimizer(mlp), lb.Phases(5, start=lb.Principal()))
    optimizer = lb.optimizer(mlp)
    lb.activate(mlp)
    with pytest.raises(ValueError, match="is not active"):
        lb.Restarts(mlp, optimizer, lb.relora(5))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_second_moments_in_half_precision_are_refused(share, mlp):
    lb.adapt(mlp, "lora", rank=2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"layers\.0\.up are in float16, in which the second moments of AdamW vanish"):
        lb.Restarts(mlp, lb.optimizer(mlp), lb.relora(5, share))
    assert list(setups(mlp)) == ["default"]


@pytest.mark.parametrize("recipe, dtype", [("lora", torch.bfloat16), ("reflora", torch.float16)])
def test_other_moments_restart_in_half_precision(recipe, dtype, mlp, task):
    optimizer, _ = restarted(mlp, lb.relora(8, 0.5), recipe, lr=3e-2, rank=2, dtype=dtype)
    before = ((mlp(task[0]) - task[1]) ** 2).mean().item()
    steps(mlp, optimizer, task, 30)
    assert ((mlp(task[0]) - task[1]) ** 2).mean().item() < 0.7 * before


def test_what_is_refused_leaves_model_and_optimizer(mlp):
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    lb.adapt(attention, "lora", rank=2)
    optimizer = lb.optimizer(attention)
    with pytest.raises(ValueError, match="part of a parameter of its module"):
        lb.Restarts(attention, optimizer, lb.relora(5, keep=lb.InWeights()))
    lb.Restarts(attention, optimizer, lb.relora(5))
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(TypeError, match="must be one of torch"):
        lb.Restarts(mlp, "adam", lb.relora(5))
    assert list(setups(mlp)) == ["default"]


def test_attention_restarts_beside_its_weights():
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}), torch.randn(5, 3, 8)
    lb.adapt(model, "lora", rank=1)
    optimizer, attention = lb.optimizer(model, lr=1e-2), model["attention"]
    restarts = lb.Restarts(model, optimizer, lb.chain_of_lora(3))
    assert "attention.q_proj" in restarts.paths
    for _ in range(6):
        optimizer.zero_grad()
        attention(x, x, x)[0].square().mean().backward()
        optimizer.step()
    assert [max(report.ranks.values()) for report in restarts.reports] == [1, 2]
    expected = attention(x, x, x)[0]
    lb.merge(model)
    assert torch.allclose(attention(x, x, x)[0], expected, atol=1e-5)


def test_a_diverged_phase_is_not_kept(mlp, task):
    optimizer, restarts = restarted(mlp, lb.relora(1))
    with torch.no_grad():
        restarts.adapter("layers.0.up").left.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"layers\.0\.up is not finite"):
        steps(mlp, optimizer, task, 1)


@pytest.mark.parametrize("keep", [lb.Beside(), lb.InWeights()])
def test_layers_that_did_not_train_add_nothing(keep, mlp, task):
    """Where a start is subtracted, factors that have not moved make up a product that is zero but for rounding."""
    optimizer, restarts = restarted(mlp, lb.xgblora(2, layers=1, keep=keep), "pissa", targets=["up", "down"])
    steps(mlp, optimizer, task, 2)
    (report,) = restarts.reports
    assert len(report.errors) == 2
    assert all(error < 1e-3 for error in report.errors.values())
    assert all(rank <= 2 for rank in report.ranks.values())


def test_moved_weights_are_those_of_all_adapters(mlp, tmp_path):
    lb.adapt(mlp, "lora", rank=1, name="other")
    restarted(mlp, lb.relora(5, keep=lb.InWeights()))
    with pytest.raises(ValueError, match="adapter 'other' cannot be saved on its own: earlier phases of training 'def"):
        lb.save(mlp, tmp_path, name="other")
