"""The optimizer: buckets, groups, schedulers, scaling, closures, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import llm_bridge as lb
from llm_bridge import bucket
from lowrank_sp.rules import Adam, Landing, LossDamped, Plain, Scaled, chain


def gradients(model, task):
    model.zero_grad()
    loss = ((model(task[0]) - task[1]) ** 2).mean()
    loss.backward()
    return loss


def test_equal_shapes_share_a_bucket(mlp):
    lb.adapt(mlp, "reflora", rank=2)
    opt = lb.optimizer(mlp)
    assert sorted(len(bucket.adapters) for bucket in opt.buckets) == [1, 2, 2]


def test_plain_adam_is_that_of_torch(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp, lr=1e-2, weight_decay=0.1)
    reference = [p.detach().clone().requires_grad_() for p in mlp.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(reference, lr=1e-2, weight_decay=0.1, fused=True)
    for _ in range(5):
        gradients(mlp, task)
        trained = [p for p in mlp.parameters() if p.requires_grad]
        for r, p in zip(reference, trained, strict=True):
            r.grad = p.grad.clone()
        opt.step()
        adamw.step()
    assert all(torch.equal(r, p) for r, p in zip(reference, trained, strict=True))
    assert not opt.buckets


def test_other_parameters_train_in_the_same_object(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, targets=["up"], also_train=["head"])
    opt = lb.optimizer(mlp, lr=1e-2, other_lr=1e-1)
    before = mlp.head.weight.detach().clone()
    gradients(mlp, task)
    opt.step()
    assert torch.allclose((mlp.head.weight - before).abs(), torch.tensor(1e-1), rtol=1e-3)


def test_schedulers_reach_every_group(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, also_train=["head.bias"])
    opt = lb.optimizer(mlp, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    gradients(mlp, task)
    opt.step()
    scheduler.step()
    assert {group["lr"] for group in opt.param_groups} == {5e-3}


def test_scaled_gradients_are_unscaled(mlp, task):
    lb.adapt(mlp, "riemannian", rank=2)
    state = {k: v.clone() for k, v in mlp.state_dict().items()}
    opt = lb.optimizer(mlp, lr=1e-2)
    gradients(mlp, task)
    opt.step()
    plain = {k: v.clone() for k, v in mlp.state_dict().items()}
    mlp.load_state_dict(state)
    opt = lb.optimizer(mlp, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    mlp.zero_grad()
    scaler.scale(((mlp(task[0]) - task[1]) ** 2).mean()).backward()
    scaler.step(opt)
    scaler.update()
    assert all(torch.allclose(plain[k], v, atol=1e-6) for k, v in mlp.state_dict().items())


def test_a_loss_reaches_rules_that_damp_by_it(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp, lr=1e-3, rule=chain(Scaled(damping=0.1), LossDamped(0.5)))
    first = opt.step(lambda: gradients(mlp, task)).item()
    for _ in range(20):
        last = opt.step(lambda: gradients(mlp, task)).item()
    assert last < first


def test_layers_without_gradient_stay_where_they_are(mlp, task):
    lb.adapt(mlp, "reflora", rank=2, targets=["up"])
    opt = lb.optimizer(mlp, lr=1e-2)
    adapters = [layer.adapter("default") for layer in lb.adapted(mlp).values()]
    gradients(mlp, task)
    opt.step()
    before = [p.detach().clone() for p in adapters[0].parameters()]
    for _ in range(2):
        gradients(mlp, task)
        for p in adapters[0].parameters():
            p.grad = None
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, adapters[0].parameters(), strict=True))

    # Two buckets now, with counters of their own: both come back from the state.
    resumed = lb.optimizer(mlp, lr=1e-2)
    resumed.load_state_dict(opt.state_dict())
    kept = {path: array.clone() for path, array in mlp.state_dict().items()}
    ends = []
    for continued in (opt, resumed):
        mlp.load_state_dict(kept)
        gradients(mlp, task)
        continued.step()
        ends.append({path: array.clone() for path, array in mlp.state_dict().items()})
    assert all(torch.equal(ends[0][path], ends[1][path]) for path in kept)


def ends(model, task, name, **options):
    """All arrays after some steps from one start, and the optimizer."""
    torch.manual_seed(1)
    lb.adapt(model, name, rank=2, **options)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape)
    opt = lb.optimizer(model, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        gradients(model, task)
        opt.step()
    return [p.detach() for p in model.parameters() if p.requires_grad], opt


@pytest.mark.parametrize("name", ["riemannian", "reflora", "lora-pro", "polar", "stella", "lora-rite", "lora+"])
def test_the_size_of_blocks_changes_nothing(name, mlp, task, monkeypatch):
    monkeypatch.setattr(bucket, "BLOCK", 1)
    twin = copy.deepcopy(mlp)
    alone, opt = ends(twin, task, name)
    assert len(opt.buckets) == 5
    monkeypatch.undo()
    together, opt = ends(mlp, task, name)
    assert len(opt.buckets) == 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, together, strict=True))


@dataclasses.dataclass(frozen=True)
class Witness(Plain):
    """Plain descent that notes with what precision products would be computed, and may fail."""

    seen: list[str] = dataclasses.field(default_factory=list, hash=False)
    fails: bool = False

    def update(self, grad, state, point, loss=None):
        self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        if self.fails:
            raise FloatingPointError("on purpose")
        return super().update(grad, state, point, loss)


@pytest.mark.parametrize("fails", [False, True])
def test_rules_compute_in_full_precision_and_leave_the_setting(fails, mlp, task):
    """Three digits, which training may content itself with, are too few for Gram matrices and orthonormal bases."""
    lb.adapt(mlp, "lora", rank=2)
    rule = Witness(fails=fails)
    opt = lb.optimizer(mlp, lr=1e-2, rule=rule)
    gradients(mlp, task)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext():
            opt.step()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(rule.seen) == {"ieee"}


class Launches(TorchDispatchMode):
    """Counts operations that are more than another view of the same memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and not func._schema.name.startswith("profiler")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lora", "lora+", "riemannian", "reflora", "lora-pro", "polar", "stella", "lora-rite"])
def test_a_step_takes_as_many_operations_for_many_layers_as_for_few(name):
    counts = []
    for layers in (2, 6):
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])
        lb.adapt(model, name, rank=2, targets=[str(i) for i in range(layers)])
        opt = lb.optimizer(model)
        for _ in range(2):
            model(torch.ones(3, 8)).square().sum().backward()
            opt.step()
        with Launches() as launches:
            opt.step()
        counts.append(launches.count)
    assert counts[0] == counts[1] > 0


def test_gradients_in_another_order_of_memory(mlp, task):
    """The kernel behind a fused step would misread them."""
    for name in ("lora", "lora+"):
        twin = copy.deepcopy(mlp)
        finals = []
        for net in (copy.deepcopy(mlp), twin):
            torch.manual_seed(2)
            lb.adapt(net, name, rank=2)
            opt = lb.optimizer(net, lr=1e-2)
            for _ in range(2):
                gradients(net, task)
                if net is twin:
                    for p in net.parameters():
                        if p.requires_grad:
                            p.grad = p.grad.T.contiguous().T
                opt.step()
            finals.append([p.detach() for p in net.parameters() if p.requires_grad])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*finals, strict=True))


def test_the_kernel_stays_the_same_whatever_the_gradients(mlp, task):
    """Its counters lie elsewhere than those of other steps."""
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp)
    for turned in (False, True):
        gradients(mlp, task)
        for p in mlp.parameters():
            if p.requires_grad and turned:
                p.grad = p.grad.T.contiguous().T
        opt.step()
        assert all(group["fused"] for group in opt.param_groups)


@pytest.mark.parametrize("name", ["lora", "lora+", "reflora", "polar", "lora-rite"])
def test_a_factor_that_is_frozen_later_stays(name, mlp, task):
    lb.adapt(mlp, name, rank=2)
    opt = lb.optimizer(mlp, weight_decay=0.1)
    gradients(mlp, task)
    opt.step()
    frozen = [layer.adapter("default").right.requires_grad_(False) for layer in lb.adapted(mlp).values()]
    old = [p.clone() for p in frozen]
    others = [layer.adapter("default").left for layer in lb.adapted(mlp).values()]
    before = [p.detach().clone() for p in others]
    gradients(mlp, task)
    opt.step()
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(frozen, old, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(others, before, strict=True))


def test_sparse_gradients_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4))
    lb.adapt(model, "lora", rank=2, targets=["1"])
    model[0].weight.requires_grad_()
    opt = lb.optimizer(model)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        opt.step()


@pytest.mark.parametrize("name", ["lora+", "riemannian", "polar"])
def test_factors_in_half_precision_move_as_precise_ones_do(name, mlp, task):
    precise, _ = ends(copy.deepcopy(mlp), task, name)
    rough, opt = ends(mlp.bfloat16(), tuple(t.bfloat16() for t in task), name, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in rough)
    states = opt.state_dict()["state"].values()
    assert all(t.dtype == torch.float32 for s in states for t in s.get("bucket", {}).values() if isinstance(t, Tensor))
    assert all(torch.allclose(a, b.float(), atol=0.05) for a, b in zip(precise, rough, strict=True))


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}])
def test_bad_numbers(mlp, options):
    lb.adapt(mlp, "lora", rank=2)
    with pytest.raises(ValueError, match=next(iter(options))):
        lb.optimizer(mlp, **options)


def test_nothing_to_train(mlp):
    mlp.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in the model trains"):
        lb.optimizer(mlp)


def test_a_model_without_adapters_trains_in_full(mlp):
    with pytest.warns(UserWarning, match="the model has no adapters, so that what trains does so in full"):
        lb.optimizer(mlp)


def test_adapters_that_come_after_the_optimizer(mlp, task):
    with pytest.warns(UserWarning, match="no adapters"):
        early = lb.optimizer(mlp)
    lb.adapt(mlp, "polar", rank=2, also_train=["head"], targets=["up", "down"])
    (mlp(task[0]) - task[1]).square().mean().backward()
    says = r"does not move the adapters of layers.0.up, layers.0.down, layers.1.up and 1 more.* after lb.adapt"
    with pytest.raises(ValueError, match=says):
        early.step()
    fitting = lb.optimizer(mlp)
    fitting.step()
    lb.adapt(mlp, "lora", rank=2, name="second", targets=["up"])
    with pytest.raises(ValueError, match="nothing that this optimizer moves trains now"):
        fitting.step()


@pytest.mark.parametrize("rule", [Scaled(), chain(Scaled(damping=1e-2), Adam()), Adam(), chain(Landing(), Adam())])
def test_another_rule_keeps_factors_orthonormal(rule, mlp, task):
    lb.adapt(mlp, "polar", rank=4)
    opt = lb.optimizer(mlp, lr=1e-2, rule=rule)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = (mlp(task[0]) - task[1]).square().mean()
        losses.append(loss.item())
        loss.backward()
        opt.step()
    assert losses[-1] < losses[0]
    for layer in lb.adapted(mlp).values():
        x = layer.adapter("default").left
        off = (x.mT @ x - torch.eye(4)).norm()
        assert off < (0.3 if any(isinstance(part, Landing) for part in getattr(rule, "rules", ())) else 1e-4)


class Unsolvable(Plain):
    """As a decomposition that does not converge."""

    def update(self, grad, state, point, loss=None):
        raise torch.linalg.LinAlgError("did not converge")


def test_gradients_that_are_not_finite_are_named(mlp, task):
    lb.adapt(mlp, "lora", rank=2)
    opt = lb.optimizer(mlp, rule=Unsolvable())
    gradients(mlp, task)
    with pytest.raises(torch.linalg.LinAlgError):
        opt.step()
    mlp.head.adapter("default").left.grad.fill_(float("nan"))
    with pytest.raises(ValueError, match="a gradient or a factor is not finite"):
        opt.step()


def test_a_rule_that_does_not_fit_the_form_says_what_it_needs(mlp):
    lb.adapt(mlp, "polar", rank=2)
    with pytest.raises(TypeError, match="needs a BurerMonteiro"):
        lb.optimizer(mlp, rule=lb.recipe("reflora").rule)


def test_state_of_another_model_is_refused(mlp):
    lb.adapt(mlp, "reflora", rank=2)
    opt = lb.optimizer(mlp)
    other = nn.Sequential(nn.Linear(5, 5))
    lb.adapt(other, "reflora", rank=2)
    with pytest.raises(ValueError):
        opt.load_state_dict(lb.optimizer(other).state_dict())


def test_taking_and_loading_states_leaves_no_second_copy():
    model = lb.adapt(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)), "reflora", rank=2)
    opt = lb.optimizer(model, lr=1e-2)
    model(torch.ones(3, 6)).square().mean().backward()
    opt.step()

    def held(state):
        return sum(leaf.numel() for leaf in tree_leaves(list(state.values())) if torch.is_tensor(leaf))

    saved = opt.state_dict()
    assert held(saved["state"]) > 0 == held(opt.state)
    opt.load_state_dict(saved)
    assert held(opt.state) == 0
    again = opt.state_dict()
    assert held(again["state"]) == held(saved["state"])
