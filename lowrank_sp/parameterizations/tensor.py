"""What forms of tensors have beside `Factors`: sampled gradients, slices, and conversion through tensor trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from .. import trains
from ..factors import Configured, Factors, factorization
from ..spaces import Space
from ..tensors import SampledTensor, TensorPattern, in_blocks
from .tensor_fibers import fiber_grams, fiber_partials

__all__ = ["ByOrder", "TensorFactors", "check_order"]

Array = Any


def check_order(order: Any) -> int:
    """The number of modes, an integer of at least two."""
    if isinstance(order, bool) or int(order) != order or order < 2:
        raise ValueError(f"a tensor form needs at least 2 modes, got {order!r}")
    return int(order)


class TensorFactors(Factors):
    """A point of a form of tensors ``(..., n_1, ..., n_d)``; products are plain, without conjugates.

    Every array is linear in the entries it takes part in: ``design`` gives the coefficients, from which follow
    sampled gradients here and the normal equations of alternating least squares elsewhere.
    """

    @classmethod
    @abstractmethod
    def from_tensor(cls, tensor: Array, rank: Any) -> Self:
        """A point near a dense tensor (..., n_1, ..., n_d): equal to it where the rank is large enough."""

    @abstractmethod
    def train(self) -> list[Array]:
        """Cores (..., r, n, r') of a tensor train equal to F(x)."""

    @abstractmethod
    def embedded(self, factors: Any) -> Self:
        """``F(x) x_1 U_1 ... x_d U_d`` for matrices U_k (..., N_k, n_k), by the arrays alone."""

    @abstractmethod
    def matrix(self, *index: Any, modes: tuple[int, int] = (-2, -1)) -> Any:
        """The slice with the two ``modes`` free, as a point of a matrix form, without forming the tensor.

        ``index`` holds one integer for every other mode, in order. For adapters whose layers are modes.
        """

    @abstractmethod
    def balanced(self) -> Self:
        """The same tensor with arrays of comparable norms."""

    @abstractmethod
    def mode_of(self, index: int) -> int | None:
        """The mode whose places number the rows of array ``index``; None if it has no mode."""

    @abstractmethod
    def design(self, index: int, indices: tuple[Array, ...]) -> Array:
        """(..., N, width): ``F(x)[indices]`` is the row times the row of the array, see `as_rows`."""

    @abstractmethod
    def as_rows(self, index: int, array: Array) -> Array:
        """An array like number ``index`` as a matrix (..., n_mode, width), or (..., 1, size) without a mode."""

    @abstractmethod
    def from_rows(self, index: int, rows: Array) -> Array:
        """The inverse of `as_rows`."""

    @abstractmethod
    def contract(self, index: int, g: Array) -> Array:
        """`partial` for a dense tensor ``g``."""

    def entries(self, *indices):
        return in_blocks(self._entries, indices)

    def _entries(self, indices: tuple[Array, ...]) -> Array:
        last = len(self.names) - 1
        rows, places = self.as_rows(last, self.arrays()[last]), indices[self.mode_of(last)]
        return (self.design(last, indices) * rows[..., places, :]).sum(-1)

    def partial(self, index, g):
        return self._sampled_partials(g, (index,))[0] if isinstance(g, SampledTensor) else self.contract(index, g)

    def pullback(self, g):
        every = range(len(self.names))
        if isinstance(g, SampledTensor):
            return type(self)(*self._sampled_partials(g, every))
        return type(self)(*[self.contract(i, g) for i in every])

    def _sampled_partials(self, g: SampledTensor, wanted: Sequence[int]) -> list[Array]:
        """Through fibers where the samples fill them, else sample by sample."""
        parts = fiber_partials([(self, i) for i in wanted], g)
        return [self._sampled_partial(i, g) for i in wanted] if parts is None else parts

    def _sampled_partial(self, index: int, g: SampledTensor) -> Array:
        rows = g.accumulate(self.mode_of(index), lambda indices: self.design(index, indices).conj())
        return self.from_rows(index, rows)

    def grams(self, index: int, pattern: TensorPattern) -> Array:
        """``D_i F^* P D_i F`` for samples P, row by row of `as_rows`: (n_mode, width, width); no batch."""
        found = None if self.mode_of(index) is None else fiber_grams(self, index, pattern)
        return pattern.grams(self.mode_of(index), lambda i: self.design(index, i)) if found is None else found

    def frobenius(self) -> Any:
        """``||F(x)||_F`` without forming the tensor; exact to rounding."""
        return trains.frobenius(self.train())

    def distance(self, other: TensorFactors) -> Any:
        """``||F(x) - F(other)||_F`` without forming a tensor; exact to rounding."""
        return trains.frobenius(trains.difference(other.train(), self.train()))

    def to(self, form: Any, rank: Any) -> Any:
        """The tensor in another tensor form, by way of the dense one; exact where ``rank`` is large enough."""
        return form.for_shape(self.shape).from_tensor(self.dense(), rank)


class ByOrder(Configured):
    """A form whose arrays depend on the number of modes of the tensor: one class per order, made when needed.

    ``Form.of(3)`` is the class for three modes; ``Form(*arrays)`` and ``Form.for_shape(shape)`` find it by
    themselves, so that users rarely name it. A point of it is an instance of ``Form`` too.
    """

    def __new__(cls, *arrays: Array) -> Self:
        return object.__new__(cls if cls.names else cls._of_arrays(arrays))

    @classmethod
    def of(cls, order: int) -> type[Self]:
        """The form for tensors with ``order`` modes."""
        order = check_order(order)
        return cls.configured(f"{cls._base().__name__}{order}", order)

    @classmethod
    @abstractmethod
    def _of_arrays(cls, arrays: tuple[Array, ...]) -> type[Self]:
        """The form whose points have these arrays."""

    @classmethod
    @abstractmethod
    def _fields(cls, order: int, *settings: Any) -> dict[str, int]:
        """Names of the arrays, and the number of core axes of each; the order is the first setting."""

    @classmethod
    def _spaces(cls, order: int, *settings: Any) -> tuple[Space, ...]:
        """Where the arrays live; nothing means flat."""
        return ()

    @classmethod
    def for_shape(cls, shape):
        form = cls if cls.names else cls.of(len(shape))
        if form.settings[:1] != (len(shape),):
            raise ValueError(f"{form.__name__} holds tensors with {form.settings[0]} modes, got shape {tuple(shape)}")
        return form

    @classmethod
    def _completed(cls, form):
        fields = cls._fields(*form.settings)
        form.__annotations__ = dict.fromkeys(fields, Any)
        form.ndims, form.spaces = tuple(fields.values()), cls._spaces(*form.settings)
        return factorization(form)
