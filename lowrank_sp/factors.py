"""Factors: a frozen dataclass of arrays with a forward map, a differential and an adjoint."""

from __future__ import annotations

import copyreg
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, ClassVar, Self, dataclass_transform
from weakref import WeakValueDictionary

from . import xp
from .spaces import FIXED, FLAT, Space, retract_all

__all__ = [
    "ByFactor",
    "Configured",
    "Factors",
    "Gauged",
    "MatrixFactors",
    "Multilinear",
    "factorization",
    "sum_dense",
]

Array = Any


@dataclass_transform(frozen_default=True, eq_default=False)
def factorization(cls):
    """Make a class of arrays a frozen dataclass and cache its field names, so that tracing sees constants."""
    cls = dataclass(frozen=True, eq=False)(cls)
    cls.names = tuple(f.name for f in fields(cls))
    # Written out, as dataclasses write their methods: nothing is faster, and torch.compile cannot trace attrgetter.
    cls.arrays = eval(f"lambda self: ({' '.join(f'self.{name},' for name in cls.names)})")
    if not cls.spaces:
        cls.spaces = (FLAT,) * len(cls.names)
    if not cls.ndims:
        cls.ndims = (2,) * len(cls.names)
    cls.flat = issubclass(cls, ByFactor) and all(space is FLAT for space in cls.spaces)
    return cls


class Factors(ABC):
    """A point of a parameterization ``F`` of matrices or tensors, and equally a tangent, a gradient or a momentum.

    Subclasses declare arrays (leading axes are batch), the ``spaces`` they live in and the number of core
    axes ``ndims`` of each; they supply ``dense``, ``entries``, ``partial``, ``pullback``, ``whiten`` and
    ``expansion``. Everything else is here; what only matrices have is in `MatrixFactors`, what only tensors
    have in `TensorFactors`.

    ``zeros`` names the arrays that vanish in the usual start at ``F = 0``: the others are free there, and the
    gradient of the named ones is not zero. ``polynomial`` says that ``expansion`` is the whole series; else it
    is the term of first order. Arrays in the space `FIXED` are carried along: gradients hold zeros there.
    """

    names: ClassVar[tuple[str, ...]] = ()
    spaces: ClassVar[tuple[Space, ...]] = ()
    ndims: ClassVar[tuple[int, ...]] = ()
    flat: ClassVar[bool] = True
    polynomial: ClassVar[bool] = True
    zeros: ClassVar[tuple[str, ...]] = ("right",)
    arrays: ClassVar[Callable[[Any], tuple[Array, ...]]]

    # the form itself --------------------------------------------------------------------------
    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of F(x) without batch axes: ``(m, n)``, or one number per mode of a tensor."""

    @property
    @abstractmethod
    def rank(self) -> Any:
        """Largest rank that F can reach with these arrays: of a tensor, whatever ranks its form has."""

    @abstractmethod
    def dense(self) -> Array:
        """F(x), an array (..., m, n) or (..., n_1, ..., n_d)."""

    @abstractmethod
    def entries(self, *indices: Array) -> Array:
        """The entries ``F(x)[indices]``, one index array (N,) per axis: (..., N), without forming F(x)."""

    @abstractmethod
    def partial(self, index: int, g: Any) -> Array:
        """``D_i F(x)^* [G]``: the gradient of ``Re <G, F>`` in the array number ``index`` alone."""

    @abstractmethod
    def pullback(self, g: Any) -> Self:
        """``DF(x)^* [G]`` for a gradient G: an array, or what stands for one.

        For matrices anything with ``@`` and an adjoint will do: a sparse matrix, a linear operator; for tensors
        a `SampledTensor`.
        """

    @abstractmethod
    def whiten(self, grad: Self, damping: Any = 0.0) -> Self:
        """Block by block ``(D_i F^* D_i F + damping)^{-1}`` of a gradient: ScaledGD for this form."""

    @abstractmethod
    def expansion(self, direction: Self, wrt: Sequence[int]) -> list[list[Self]]:
        """Taylor terms of ``F(x + t d)``: entry k-1 lists points whose images add up to the t^k coefficient.

        Only the arrays in ``wrt`` move.
        """

    # the manifold it lives on -------------------------------------------------------------------
    @abstractmethod
    def project(self, direction: Self) -> Self:
        """Orthogonal projection of ``direction`` on the tangent space at this point."""

    @abstractmethod
    def retract(self, direction: Self, lr: Any, wrt: Sequence[int] | None = None) -> Self:
        """Move by ``-lr * direction`` and come back to the manifold; only the arrays in ``wrt`` move."""

    @abstractmethod
    def transport(self, new: Self, vector: Self) -> Self:
        """Carry the tangent ``vector`` of this point to the point ``new``."""

    @classmethod
    @abstractmethod
    def shapes(cls, shape: tuple[int, ...], rank: Any) -> tuple[tuple[int, ...], ...]:
        """Core shapes of the arrays for the ``shape`` of F(x) and a size ``rank``.

        The size is what the form counts: columns, columns of a block, terms; for some tensor forms one number
        per mode or bond. The property ``rank`` is what F(x) reaches with it. A size that the shape cannot hold
        is a ``ValueError``.
        """

    @classmethod
    def for_shape(cls, shape: tuple[int, ...]) -> type[Self]:
        """This form for F(x) of that shape: the form itself, unless its arrays depend on the number of axes."""
        return cls

    # what follows from it -----------------------------------------------------------------------
    @classmethod
    def random(cls, shape: tuple[int, ...], rank: Any, rng: Any, batch: tuple[int, ...] = ()) -> Self:
        """A NumPy point with every array drawn from the natural distribution of its space."""
        form = cls.for_shape(shape)
        chosen = form.constants(shape, rank, rng, batch)
        parts = zip(form.names, form.spaces, form.shapes(shape, rank), strict=True)
        return form(*(chosen[k] if k in chosen else space.random(rng, (*batch, *core)) for k, space, core in parts))

    @classmethod
    def constants(cls, shape: tuple[int, ...], rank: Any, rng: Any, batch: tuple[int, ...]) -> dict[str, Any]:
        """The arrays that are drawn in another way, such as indices: NumPy arrays by name, with the batch axes."""
        return {}

    @classmethod
    def parameter_count(cls, shape: tuple[int, ...], rank: Any) -> int:
        """Number of scalars that can move: all but those of fixed arrays."""
        total = 0
        form = cls.for_shape(shape)
        for space, core in zip(form.spaces, form.shapes(shape, rank), strict=True):
            if space is FIXED:
                continue
            size = 1
            for k in core:
                size *= k
            total += size
        return total

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes shared by all arrays."""
        first = self.arrays()[0]
        return tuple(first.shape[: first.ndim - self.ndims[0]])

    def map(self, fn: Callable[..., Array], *others: Self) -> Self:
        """Apply ``fn`` array by array: the only vector-space machinery there is."""
        if len(others) == 1:
            pairs = zip(self.arrays(), others[0].arrays(), strict=True)
            return type(self)(*[fn(a, b) for a, b in pairs])
        return type(self)(*[fn(*a) for a in zip(self.arrays(), *(o.arrays() for o in others), strict=True)])

    def __add__(self, other: Self) -> Self:
        return self.map(lambda a, b: a + b, other)

    def __sub__(self, other: Self) -> Self:
        return self.map(lambda a, b: a - b, other)

    def __neg__(self) -> Self:
        return self.map(lambda a: -a)

    def scale(self, factor: Any) -> Self:
        """Multiply by a number or by one number per batch element."""
        return type(self)(*[xp.expand(factor, k) * a for a, k in zip(self.arrays(), self.ndims, strict=True)])

    def with_array(self, index: int, array: Array) -> Self:
        """The same point with array number ``index`` replaced."""
        arrays = list(self.arrays())
        arrays[index] = array
        return type(self)(*arrays)

    def inner(self, other: Self) -> Any:
        """Real inner product over all arrays, one value per batch element."""
        total = 0.0
        for a, b, k in zip(self.arrays(), other.arrays(), self.ndims, strict=True):
            total = total + xp.inner(a, b, k)
        return total

    def norm(self) -> Any:
        """Euclidean norm over all arrays."""
        return self.inner(self) ** 0.5

    def pushforward(self, tangent: Self) -> Array:
        """``DF(x)[t]`` as a dense array with the axes of ``dense``."""
        first = self.expansion(tangent, range(len(self.names)))[0]
        return sum_dense(first)


class MatrixFactors(Factors):
    """What forms of matrices have beside `Factors`: products with vectors, and conversion through thin factors.

    ``universal`` says that arrays of size r hold every matrix of rank r, so that ``from_product`` is exact;
    elsewhere it gives the nearest matrix, or where ``converts`` is false a ``TypeError``. ``thin`` says that
    ``product`` costs no more than rank-sized products, so that a layer may apply the form through it.
    """

    universal: ClassVar[bool] = True
    converts: ClassVar[bool] = True
    thin: ClassVar[bool] = False

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """``x F(x)^T`` for rows ``x`` (..., k, n), without forming F(x)."""

    @classmethod
    @abstractmethod
    def from_product(cls, left: Array, right: Array, rank: int | None = None) -> Self:
        """The point of size ``rank`` (by default the number of columns) whose image is ``left right^H``.

        Exact for a `universal` form with at least as large a size as there are columns, else an approximation:
        the nearest matrix of the form for one that is not universal, and a truncated one for too small a size.
        """

    @abstractmethod
    def product(self) -> tuple[Array, Array]:
        """Thin factors ``(left, right)`` with ``F(x) = left right^H``."""

    def to(self, form: Any, rank: int | None = None) -> Any:
        """The same matrix in another form; approximated where the form, or its size ``rank``, cannot hold it."""
        if type(self) is form and rank is None:
            return self
        return form.from_product(*self.product(), rank)


def sum_dense(points: Sequence[Any]) -> Array:
    """The sum of the images of several points, as one dense array."""
    total = points[0].dense()
    for point in points[1:]:
        total = total + point.dense()
    return total


class ByFactor(Factors):
    """A form whose manifold is the product of the spaces of its arrays."""

    def project(self, direction):
        if self.flat:
            return direction
        parts = zip(self.spaces, self.arrays(), direction.arrays(), strict=True)
        return type(self)(*[s.project(x, d) for s, x, d in parts])

    def retract(self, direction, lr, wrt=None):
        arrays, moves = list(self.arrays()), direction.arrays()
        wrt = range(len(arrays)) if wrt is None else wrt
        parts = ((self.spaces[i], arrays[i], moves[i], xp.expand(lr, self.ndims[i])) for i in wrt)
        new = [space.retract(x, d, rate) for space, x, d, rate in parts] if self.flat else retract_all([*parts])
        for i, array in zip(wrt, new, strict=True):
            arrays[i] = array
        return type(self)(*arrays)

    def transport(self, new, vector):
        return new.project(vector)


class Multilinear(ByFactor):
    """A form that is linear in each of its arrays; the Taylor expansion follows from that."""

    def expansion(self, direction, wrt):
        arrays, moves = self.arrays(), direction.arrays()
        wrt = wrt if self.flat else [i for i in wrt if self.spaces[i] is not FIXED]
        orders = []
        for size in range(1, len(wrt) + 1):
            orders.append([self._substitute(arrays, moves, subset) for subset in combinations(wrt, size)])
        return orders

    def _substitute(self, arrays: tuple[Array, ...], moves: tuple[Array, ...], subset: Iterable[int]) -> Self:
        mixed = list(arrays)
        for i in subset:
            mixed[i] = moves[i]
        return type(self)(*mixed)


class Gauged(ABC):
    """A form on which a group acts without changing the matrix."""

    @abstractmethod
    def gauge(self, q: Array) -> Self:
        """The point moved along its orbit by the group element ``q`` (..., r, r)."""

    @abstractmethod
    def random_gauge(self, rng: Any) -> Array:
        """A random group element, in the library of the data."""


class _Form(ABCMeta):
    """The type of forms with settings: a class made at run time has no name in a module for pickles to find."""


class Configured(Factors, metaclass=_Form):
    """A form with settings that are not arrays, such as a grid of blocks or the support of a sparse part.

    The settings belong to the class: a form says which set of matrices is meant, a point says which of them.
    So whatever builds a new point from arrays keeps them, and ``shapes`` knows them. Equal settings give the
    same class, and forms and points can be pickled.
    """

    settings: ClassVar[tuple[Any, ...]] = ()
    _classes: ClassVar[WeakValueDictionary[Any, type]] = WeakValueDictionary()

    @classmethod
    def configured(cls, name: str, *settings: Any) -> type[Self]:
        """The form with these settings, which are hashable."""
        base = cls._base()
        key = (base, settings)
        form = cls._classes.get(key)
        if form is None:
            body = {"settings": settings, "__doc__": base.__doc__, "__module__": base.__module__}
            form = cls._classes[key] = base._completed(type(name, (base,), body))
        return form

    @classmethod
    def _completed(cls, form: type[Self]) -> type[Self]:
        """The new class ``form``, with whatever else follows from its settings."""
        return form

    @classmethod
    def _base(cls) -> type[Self]:
        """The class without settings of its own."""
        return next(c for c in cls.__mro__ if not vars(c).get("settings"))


def _made(form: type[Configured]) -> str | tuple[Any, ...]:
    """How a pickle says which form is meant: by its name in a module, or by the call that makes it."""
    base = form._base()
    return form.__qualname__ if form is base else (base.configured, (form.__name__, *form.settings))


copyreg.pickle(_Form, _made)
