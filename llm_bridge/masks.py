"""Dropout that keeps one bit of its mask a number and shares it among the users of one tensor."""

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
    """Inverted dropout that keeps its mask as bits, and is shared by users of one tensor.

    The input is not kept. Different users that come one after another with the same tensor object, such as the
    query, key and value projections, get the same mask and the same dropped copy; a user that comes back gets a new
    one. The seed of a mask comes from the default generator of the CPU, which gradient checkpointing restores;
    nothing waits for a GPU. To draw a mask again in backward would keep nothing and take four times as long, on CPUs,
    as to unpack its bits.

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
    out: Tensor = _Dropout.apply(x, rate, _draw(x, rate, seed))
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


# A mask is made of 64-bit words, each of four lanes of 16 bits: random ones first, then zeros and ones. Sixteen such
# words pack into one, lane by lane, in a few operations that run over whole words.
LANES = 16
ONES = 0x0001_0001_0001_0001


def _zeros(rate: float) -> int:
    """How many of the 2^16 values of a lane stand for a zero."""
    return min(round(rate * 2**16), 2**16 - 1)


def _draw(like: Tensor, rate: float, seed: int) -> Tensor:
    """Words (16, k) with a lane for every number, 1 where it survives."""
    generator = torch.Generator(like.device).manual_seed(seed)
    words = torch.empty(LANES, -(-like.numel() // (4 * LANES)), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    words.view(torch.int16).ge_(_zeros(rate) - 2**15)
    return words


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(LANES, device=like.device)[:, None]


def _packed(words: Tensor) -> Tensor:
    """One bit a lane (k,); overwrites the words."""
    return words.bitwise_left_shift_(_shifts(words)).sum(0)


def _unpacked(bits: Tensor) -> Tensor:
    return (bits >> _shifts(bits)).bitwise_and_(ONES)


class _Dropout(Function):
    # In place on fresh copies: on CPUs, memory that is new costs more than these passes over it.

    @staticmethod
    def forward(ctx, x, rate, words):
        lanes = words.view(torch.int16).view(-1)[: x.numel()].view(x.shape)
        zeros = _zeros(rate)
        out = lanes.to(x.dtype).mul_(2**16 / (2**16 - zeros)).mul_(x)
        ctx.rate = rate
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_packed(words))
        return out

    @staticmethod
    def backward(ctx, grad):
        (bits,) = ctx.saved_tensors
        return _Dropout.apply(grad, ctx.rate, _unpacked(bits)), None, None
