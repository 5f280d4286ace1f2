"""What adapters cost at least: flops and numbers moved by the cheapest order of products, counted from the shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations

__all__ = ["FORMS", "Choice", "Schedule", "Site", "Work", "frozen_work", "least", "sites_of"]


@dataclass(frozen=True)
class Work:
    """Operations and numbers read and written, of one product or one pass."""

    flops: int
    numbers: int


def times(p: int, q: int, s: int) -> Work:
    """A product of matrices (p, q) and (q, s)."""
    return Work(2 * p * q * s, p * q + q * s + p * s)


@dataclass(frozen=True)
class Site:
    """Equal layers of a block that see one input: ``share`` of them, each (m, n).

    ``input_kept`` says whether others keep the input for backward already, ``outputs_kept`` of how many of these layers
    the frozen model keeps the output.
    """

    m: int
    n: int
    share: int = 1
    input_kept: bool = False
    outputs_kept: int = 0


@dataclass(frozen=True)
class Schedule:
    """What an adapter adds to the frozen layers of a site, and the numbers that it keeps for backward."""

    works: tuple[Work, ...]
    kept: int

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.works)


def sites_of(size: Mapping[str, int]) -> tuple[Site, ...]:
    """The adapted layers of one block of a Llama of these sizes: all but the head."""
    h, f = size["hidden_size"], size["intermediate_size"]
    kv = h * size["num_key_value_heads"] // size["num_attention_heads"]
    # Queries and keys are turned after their projection; values go into the attention, which keeps them, as they are.
    if kv == h:
        attention = (Site(h, h, 3, outputs_kept=1),)
    else:
        attention = (Site(h, h), Site(kv, h, 2, input_kept=True, outputs_kept=1))
    return (*attention, Site(h, h, input_kept=True), Site(f, h, 2, outputs_kept=2), Site(h, f))


def frozen_work(size: Mapping[str, int], batch: int, length: int) -> list[Work]:
    """Products of one step of the frozen model, forward and back to its input embeddings, without other passes."""
    k, h = batch * length, size["hidden_size"]
    layers = [(s.m, s.n) for s in sites_of(size) for _ in range(s.share)]
    # Two products forward and five back for every head, of all tokens with all.
    attention = [Work(7 * 2 * k * length * h, 0)]
    block = [w for m, n in layers for w in (times(k, n, m), times(k, m, n))] + attention
    head = [times(k, h, size["vocab_size"]), times(k, size["vocab_size"], h)]
    return block * size["num_hidden_layers"] + head


# forms ------------------------------------------------------------------------------------------------------------
#
# Each gives the schedules of a site that are worth a look, for k tokens and r ranks, columns or the side of a block.
# Inputs and channels that the layers of a site share are made and kept once.

Form = Callable[[Site, int, int], list[Schedule]]


def _input(site: Site, k: int) -> int:
    """Numbers of the input, where nobody else keeps it."""
    return 0 if site.input_kept else k * site.n


def lora(site: Site, k: int, r: int) -> list[Schedule]:
    """Two thin products forward, and two each for the input and the factors, of which one serves for both."""
    m, n, c = site.m, site.n, site.share
    works = [times(r, n, k), times(k, r, m), times(r, m, k), times(k, r, n), times(r, k, m), times(r, k, n)]
    return [Schedule(tuple(works) * c, _input(site, k) + c * k * r)]


def dora(site: Site, k: int, r: int) -> list[Schedule]:
    """As LoRA, with ``W Y`` and Gram matrices for the norms, and with outputs for the magnitude, kept or made again."""
    m, n, c = site.m, site.n, site.share
    (base,) = lora(site, k, r)
    norms = (times(m, n, r), times(r, n, r), times(m, r, r)) * c
    outputs = (c - site.outputs_kept) * k * m
    kept = Schedule(base.works + norms, base.kept + outputs)
    return [kept, Schedule(base.works + norms + (times(k, n, m),) * c, base.kept)]


def formed(site: Site, k: int, r: int) -> list[Schedule]:
    """A new matrix of full rank from thin factors, entry by entry: HiRA, SineLoRA, LoRAN.

    Formed twice, each time in one pass over the weight; its gradient is one more product of the size of the layer, and
    is pulled back to both factors in one pass over it and the weight.
    """
    m, n, c = site.m, site.n, site.share
    form, pull = Work(2 * m * n * r, 2 * m * n), Work(4 * m * n * r, 2 * m * n)
    return [Schedule((form, form, times(m, k, n), pull) * c, _input(site, k))]


def formed_beside(site: Site, k: int, r: int) -> list[Schedule]:
    """As `formed`, with the change as a matrix of its own in the forward pass.

    In half precision most of a small change is lost in a sum that is rounded to the type of the weight.
    """
    (base,) = formed(site, k, r)
    return [Schedule(base.works + (times(k, site.n, site.m),) * site.share, base.kept)]


def rotated(site: Site, k: int, b: int) -> list[Schedule]:
    """Blocks of side b on the input, on its gradient, and the products of both, and of blocks for angles: OFT.

    Or blocks on the weight, twice, instead of the input and its gradient; then the blocks also turn their gradient.
    """
    each = Work(2 * k * site.n * b, 2 * k * site.n + site.n * b)
    weight = Work(2 * site.m * site.n * b, 2 * site.m * site.n + site.n * b)
    angles, turn = Work(4 * site.n * b**2, 3 * site.n * b), Work(2 * site.n * b**2, 3 * site.n * b)
    ways = [(each, each, each, angles), (weight, weight, each, angles, turn)]
    return [Schedule(works * site.share, _input(site, k)) for works in ways]


def fixed_right(site: Site, k: int, r: int) -> list[Schedule]:
    """``L R^T`` with a fixed R, which the layers of a site share, and a side L with few free numbers: VeRA.

    The gradient of L takes the channels and one product. The sum of the weights is formed, and kept or formed again, or
    the channels are widened; with ``x R B^T`` kept, its products with the gradient serve for both vectors.
    """
    m, n, c = site.m, site.n, site.share
    narrow, back = times(k, n, r), times(k, r, n)
    form, pull, widen, inner = times(m, r, n), times(m, k, r), times(k, r, m), times(k, m, r)
    ways = [
        ((form, pull), m * n, False),
        ((form, form, pull), 0, False),
        ((widen, form, pull), 0, False),
        ((widen, inner, pull), 0, True),
        ((widen, inner), k * m, True),
    ]
    return [Schedule((narrow, *works * c, *([back] if thin else [])), k * r + c * kept) for works, kept, thin in ways]


def random_bases(site: Site, k: int, r: int) -> list[Schedule]:
    """``L R^T`` with the longer side fixed and full ranks, r columns in all: RandLoRA."""
    m, n, c = site.m, site.n, site.share
    if m < n:
        return fixed_right(site, k, r)[:4]
    form, inner, pull = times(m, r, n), times(k, m, r), times(n, k, r)
    narrow, widen, back = times(k, n, r), times(k, r, m), times(k, r, n)
    whole = times(m, k, n), times(n, m, r)
    ways = [
        ((form, inner, pull), m * n), ((form, form, inner, pull), 0), ((form, inner, pull, back), 0),
        ((narrow, widen, inner, pull, back), 0), ((form, *whole), m * n), ((form, form, *whole), 0),
    ]  # fmt: skip
    return [Schedule(works * c, _input(site, k) + c * kept) for works, kept in ways]


FORMS: dict[str, Form] = {
    "lora": lora,
    "dora": dora,
    "formed": formed,
    "formed beside": formed_beside,
    "rotated": rotated,
    "fixed right": fixed_right,
    "random bases": random_bases,
}


# the least --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """One schedule for every site of a block."""

    schedules: tuple[Schedule, ...]

    @property
    def works(self) -> list[Work]:
        return [work for schedule in self.schedules for work in schedule.works]

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.works)

    @property
    def kept(self) -> int:
        return sum(schedule.kept for schedule in self.schedules)


def least(form: Form, sites: Sequence[Site], k: int, r: int, most: float | None = None) -> Choice | None:
    """The choice with fewest flops that keeps at most so many numbers; None where there is none.

    Parameters
    ----------
    form : callable
        One of `FORMS`.
    sites : sequence of Site
        Of a block.
    k, r : int
        Tokens, and the size of the form.
    most : float, optional
        By default as many as it likes.
    """
    options = [_useful(form(site, k, r)) for site in sites]
    choices = [Choice(chosen) for chosen in combinations(*options)]
    allowed = [choice for choice in choices if most is None or choice.kept <= most]
    return min(allowed, key=lambda choice: (choice.flops, choice.kept), default=None)


def _useful(schedules: list[Schedule]) -> list[Schedule]:
    """Those that no other one beats in both counts."""
    found: list[Schedule] = []
    for schedule in sorted(schedules, key=lambda s: (s.flops, s.kept)):
        if not found or schedule.kept < found[-1].kept:
            found.append(schedule)
    return found
