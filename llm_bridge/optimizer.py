"""One torch optimizer that runs the update rule of every adapter, and AdamW for all other parameters."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_sp.coverage import covers
from lowrank_sp.rules import Adam, Chain, Landing, Rule, check_needs, retract, translate

from .adapter import Adapter
from .bucket import Bucket, Job, blocks, counters, step_together
from .distributed import placements, unwrapped
from .fused import kernel_takes
from .inject import setups
from .life import require_unmerged, trained_adapters

__all__ = ["LowRankOptimizer", "optimizer"]


@covers("O30", "O51")
def optimizer(
    model: nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    rule: Rule | None = None,
    move: Callable[..., Any] | None = None,
    other_lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> LowRankOptimizer:
    """An optimizer for everything that trains in a model: adapters by their recipe's rule, the rest by AdamW.

    Parameters
    ----------
    model : Module
        With adapters.
    lr : float
        Of the adapters.
    weight_decay : float
        Decoupled; for flat factors and for weights of the model with two or more axes.
    rule, move : optional
        In place of those of the recipe, for all adapters. Where the recipe moves orthonormal factors along straight
        lines and the rule has no `Landing` that leads back, they are retracted instead.
    other_lr : float, optional
        Of the parameters that are no factors; by default ``lr``.
    betas, eps
        Of AdamW, wherever that is used.

    Returns
    -------
    LowRankOptimizer
        A ``torch.optim.Optimizer``; schedulers, gradient clipping and ``state_dict`` work as ever.

    Raises
    ------
    ValueError
        If nothing trains, the adapters are merged into the weights, or a number is out of range.
    TypeError
        If the rule cannot act on a form, naming what it needs.

    >>> import llm_bridge as lb
    >>> model = lb.adapt(nn.Sequential(nn.Linear(6, 4)), "reflora", rank=2)
    >>> steps = lb.optimizer(model, lr=1e-2)
    >>> model(torch.ones(3, 6)).square().mean().backward()
    >>> steps.step()
    """
    model = unwrapped(model)
    require_unmerged(model)
    found = [entry for entry in trained_adapters(model) if any(True for _ in entry[2].parameters())]
    buckets, plain = {}, []
    for _, name, adapter in found:
        made = setups(model)[name].recipe
        how = (rule or made.rule, move or _way(rule, made.move), None if rule else made.blocks)
        if how[0] == Adam() and how[2] is None and how[1] is retract and _all_flat(adapter):
            plain += [p for p in adapter.parameters() if p.requires_grad]
        else:
            check_needs(how[0], adapter.point())
            _check_private(adapter, made.name, made.shares)
            buckets.setdefault((*_shape_key(adapter), how), []).append(adapter)
    plain = list({id(p): p for p in plain}.values())  # once each, where layers share them
    made_buckets = [
        Bucket(part, *key[-1], group=n) for n, (key, whole) in enumerate(buckets.items()) for part in blocks(whole)
    ]
    factors = {id(p) for b in made_buckets for i in range(len(b.adapters)) for p in b.parameters(i)}
    factors |= {id(p) for p in plain}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in factors]
    extras = {id(p) for _, _, adapter in found for p in adapter.parameters()}
    adamw, decayed = {"lr": lr, "betas": betas, "eps": eps}, {"lr": lr, "weight_decay": weight_decay}
    groups = [
        {"role": "factors", "params": plain, **adamw, **decayed},
        *({"role": "bucket", "params": _group_parameters(made_buckets, n), **decayed} for n in range(len(buckets))),
        {"role": "extras", "params": [p for p in others if id(p) in extras], **adamw, "weight_decay": 0.0},
        *_other_groups([p for p in others if id(p) not in extras], adamw | {"lr": other_lr or lr}, weight_decay),
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing in the model trains; adapt(model, ...) first, or activate an adapter")
    if not setups(model):
        warnings.warn(
            "the model has no adapters, so that what trains does so in full; call lb.adapt(model, ...) first",
            stacklevel=2,
        )
    return LowRankOptimizer(groups, made_buckets, model)


def _expect_all(moved: set[int], model: nn.Module) -> None:
    """Raise if adapters came after the optimizer, which would leave them where they are."""
    late = [
        path
        for path, _, adapter in trained_adapters(model)
        if any(p.requires_grad and id(p) not in moved for p in adapter.parameters())
    ]
    if late:
        raise ValueError(
            f"the optimizer does not move the adapters of {_few(late)}, which came, or became active, after it; "
            "call lb.optimizer(model) after lb.adapt"
        )


def _way(rule: Rule | None, move: Callable[..., Any]) -> Callable[..., Any]:
    """How to move by another rule than that of the recipe, whose straight lines count on its landing field."""
    parts = rule.rules if isinstance(rule, Chain) else (rule,)
    lands = rule is None or any(isinstance(part, Landing) for part in parts)
    return retract if move is translate and not lands else move


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _other_groups(parameters: list[Tensor], adamw: dict[str, Any], decay: float) -> Iterable[dict[str, Any]]:
    """Parameters of the model itself: matrices decay, biases and norms do not."""
    yield {"role": "others", "params": [p for p in parameters if p.ndim > 1], **adamw, "weight_decay": decay}
    yield {"role": "others", "params": [p for p in parameters if p.ndim < 2], **adamw, "weight_decay": 0.0}


def _check_private(adapter: Adapter, name: str, shares: tuple[tuple[str, Any], ...]) -> None:
    """Rules look at all factors of one layer; what moves a shared one must not."""
    trained = [array for array, _ in shares if array in adapter.trains]
    if trained:
        raise TypeError(
            f"recipe {name!r} shares {', '.join(trained)} between layers; only Adam() moves shared arrays, "
            "each once for all layers"
        )


def _all_flat(adapter: Adapter) -> bool:
    return all(space.linear for space in adapter.form.spaces)


def _shape_key(adapter: Adapter) -> tuple[Any, ...]:
    arrays = adapter.point().arrays()
    return (adapter.form, adapter.trains, *((tuple(a.shape), a.dtype, a.device, placements(a)) for a in arrays))


def _group_parameters(buckets: list[Bucket], group: int) -> list[Tensor]:
    return [p for b in buckets if b.group == group for i in range(len(b.adapters)) for p in b.parameters(i)]


class LowRankOptimizer(torch.optim.Optimizer):
    """Update rules of `lowrank_sp` on adapters in buckets of equal shape; AdamW for everything else.

    Made by `optimizer`. One pass of a rule serves all layers of a bucket. Learning-rate schedulers, gradient
    scaling, clipping and accumulation work as with any optimizer of torch; so do ``state_dict`` and its loading,
    exactly. Recipes that let groups of factors take turns (``blocks``) evaluate the closure once for each
    group, and without a closure move one group a step.
    """

    def __init__(self, groups: list[dict[str, Any]], buckets: list[Bucket], model: nn.Module):
        for group in groups:
            if not group["lr"] > 0:
                raise ValueError(f"lr must be positive, got {group['lr']}")
            if group["weight_decay"] < 0:
                raise ValueError(f"weight_decay must not be negative, got {group['weight_decay']}")
        self.buckets = buckets
        self._unseen: Any = weakref.ref(model)  # until the first step
        super().__init__(groups, {"lr": groups[0]["lr"], "weight_decay": 0.0})
        self._adamw = _fused_adamw()
        defaults = self._adamw.defaults
        for group in self._plain_groups():
            for key, value in defaults.items():
                group.setdefault(key, value)

    def __getstate__(self) -> dict[str, Any]:
        """For copies, alone or together with the model, in one ``deepcopy`` or file."""
        from .steps.companion import refuse_companions

        refuse_companions(self)
        return {**super().__getstate__(), "buckets": self.buckets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_unseen": None, "_adamw": _fused_adamw()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Further parameters, which get AdamW, as those that are no factors do."""
        settings = self._adamw.defaults if "_adamw" in self.__dict__ else {}
        rates = {key: self.defaults[key] for key in ("lr", "weight_decay")}
        super().add_param_group({"role": "others", **settings, **rates, **param_group})

    def _plain_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["role"] != "bucket"]

    def _bucket_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["role"] == "bucket"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of everything; returns the loss of the first evaluation of ``closure``.

        Raises
        ------
        ValueError
            If a gradient is not finite where a rule needs its singular vectors (on a GPU nothing looks), or none of its
            parameters trains now, as when another adapter is active; at the first step also if the
            model has adapters that train and came after the optimizer.
        """
        self._expect_training()
        loss = None if closure is None else _evaluate(closure)
        first = loss
        self.buckets = [part for bucket in self.buckets for part in bucket.split_idle()]
        turns = max((len(b.groups) for b in self.buckets), default=1)
        for turn in range(1 if closure is None else turns):
            if turn and closure is not None:
                loss = _evaluate(closure)
            groups = self._bucket_groups()
            moving = [b for b in self.buckets if turn < len(b.groups) and not b.idle]
            jobs = [Job(b, groups[b.group]["lr"], groups[b.group]["weight_decay"]) for b in moving]
            with _without_autocast(self.param_groups[0]["params"][0].device.type), _finite(moving):
                step_together(jobs, None if loss is None else loss.detach())
            if turn == 0:
                self._step_plain()
        return first

    def _expect_training(self) -> None:
        """Raise where a step would move nothing, or at the first one leave adapters out."""
        mine = [p for group in self.param_groups for p in group["params"]]
        model, self._unseen = self._unseen and self._unseen(), None
        if model is not None:
            _expect_all({id(p) for p in mine}, model)
        if not any(p.requires_grad for p in mine):
            raise ValueError(
                "nothing that this optimizer moves trains now; activate(model, ...) the adapters that it was made for, "
                "or make another one"
            )

    def _step_plain(self) -> None:
        """AdamW of torch on the groups that are no buckets, with the state kept here."""
        self._adamw.param_groups, self._adamw.state = self._plain_groups(), self.state
        for group in self._adamw.param_groups:
            # For good: the fused step keeps its counters elsewhere. None leaves torch the choice of another one.
            group["fused"] = all(map(kernel_takes, group["params"])) or None
            for p in group["params"]:
                _order(p)
        if self._adamw.param_groups:
            self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """As any optimizer's: tensors and numbers by parameter, nothing executable."""
        for bucket in self.buckets:
            for i in range(len(bucket.adapters)):
                first, *rest = bucket.parameters(i)
                self.state[first] = {"bucket": bucket.unstack(i)}
                for p in rest:
                    self.state[p] = {}  # torch.distributed.checkpoint asks for an entry of everything that trains
        packed = super().state_dict()
        self._leave_states_in_buckets()
        return packed

    def _leave_states_in_buckets(self) -> None:
        """Drop the copies by parameter, which only files need: kept, they would double the memory of the moments."""
        for bucket in self.buckets:
            for i in range(len(bucket.adapters)):
                self.state[bucket.parameters(i)[0]] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken.

        Raises
        ------
        ValueError
            If the groups or the state are those of other parameters or rules, or the state holds what companions
            remember that this optimizer lacks.
        """
        from .steps.companion import expect_companions

        expect_companions(self, state_dict)
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        number_of = {id(p): n for p, n in zip(parameters, numbers, strict=True)}
        fresh = []
        for bucket in self.buckets:
            owners = [bucket.parameters(i)[0] for i in range(len(bucket.adapters))]
            # From the original dictionary: the loader above has cast the tensors to the type of the parameters.
            parts = [state_dict["state"].get(number_of[id(p)], {}).get("bucket") for p in owners]
            if any(part is None for part in parts):
                raise ValueError("the state holds nothing for some of the adapters; it is that of another model")
            fresh += _with_state(bucket, parts)
        self.buckets = fresh
        self._leave_states_in_buckets()


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


@contextmanager
def _finite(moving: list[Bucket]) -> Iterator[None]:
    """Say what is wrong where eigenvectors or singular vectors were not found because of what came in."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        arrays = [p for bucket in moving for i in range(len(bucket.adapters)) for p in bucket.parameters(i)]
        tensors = [*arrays, *(p.grad for p in arrays if p.grad is not None)]
        if all(bool(torch.isfinite(t).all()) for t in tensors):
            raise
        raise ValueError("a gradient or a factor is not finite; a smaller learning rate may help") from error


def _fused_adamw() -> torch.optim.AdamW:
    """Without parameters of its own: it is lent those of the groups that are no buckets."""
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)


def _order(parameter: Tensor) -> None:
    """Lay a dense gradient out as its parameter: torch's fused step takes its memory to be in that order."""
    grad = parameter.grad
    if grad is not None and grad.layout == torch.strided and grad.stride() != parameter.stride():
        parameter.grad = torch.empty_like(parameter).copy_(grad.detach())


def _with_state(bucket: Bucket, parts: list[dict[str, Any]]) -> list[Bucket]:
    """The adapters of a bucket with the states that belong to them, apart where their counters differ."""
    alike: dict[Any, list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(counters(part), []).append(i)
    made = []
    for numbers in alike.values():
        same = bucket if len(alike) == 1 else bucket.part(numbers)
        same.restack([parts[i] for i in numbers])
        made.append(same)
    return made


def _evaluate(closure: Callable[[], Any]) -> Any:
    with torch.enable_grad():
        return closure()
