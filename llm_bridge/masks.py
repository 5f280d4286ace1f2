"""Dropout that draws its mask again in backward and shares it among the users of one tensor."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from threading import local

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

__all__ = ["dropout"]

_LAST = local()


def dropout(x: Tensor, rate: float, user: object) -> Tensor:
    """Inverted dropout whose mask is drawn again in backward, from a seed, and is shared by users of one tensor.

    Neither mask nor input is kept. Different users that come one after another with the same tensor object, such
    as the query, key and value projections, get the same mask and the same dropped copy; a user that comes back
    gets a new one. The seed comes from the default generator of the CPU, which gradient checkpointing restores;
    nothing waits for a GPU.

    Parameters
    ----------
    x : Tensor
        Of a floating type.
    rate : float
        Probability of a zero, in [0, 1), rounded to a multiple of 2^-16; survivors are divided by the exact
        probability to survive.
    user : object
        Who asks, by identity.
    """
    if torch.compiler.is_compiling() or x.is_inference():  # the latter has no version
        return F.dropout(x, rate)
    # Drawn in every call, so that the generator moves in the same way whether or not a copy is at hand.
    seed = int(torch.randint(2**62, ()))
    state, last = (x._version, rate, torch.is_grad_enabled()), getattr(_LAST, "entry", None)
    if last is not None and last.source() is x and last.state == state and id(user) not in last.users:
        last.users.add(id(user))
        seed, copy = last.seed, last.copy()
        if copy is not None:
            return copy
        users = last.users
    else:
        users = {id(user)}
    out: Tensor = _Dropout.apply(x, rate, seed)
    _LAST.entry = _Shared(weakref.ref(x), state, seed, weakref.ref(out), users)
    return out


@dataclass
class _Shared:
    """The last dropped copy, its source, its seed and who has used it; both tensors may be gone."""

    source: weakref.ref[Tensor]
    state: tuple[int, float, bool]
    seed: int
    copy: weakref.ref[Tensor]
    users: set[int]


def _mask(like: Tensor, rate: float, seed: int) -> Tensor:
    """Zeros and reciprocals of the probability to survive, from 16 random bits each."""
    generator = torch.Generator(like.device).manual_seed(seed)
    count = like.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    zeros = min(round(rate * 2**16), 2**16 - 1)
    kept = words.view(torch.int16)[:count].float().ge_(zeros - 2**15)
    return kept.to(like.dtype).mul_(2**16 / (2**16 - zeros)).view(like.shape)


class _Dropout(Function):
    @staticmethod
    def forward(x, rate, seed):
        return x * _mask(x, rate, seed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.rate, ctx.seed = inputs

    @staticmethod
    def backward(ctx, grad):
        return _Dropout.apply(grad, ctx.rate, ctx.seed), None, None
