"""A simulated accelerator for machines without a GPU: device ``sim`` computes on the host, and counts what would wait.

Its tensors wrap ordinary ones. Every operation runs on those, after the checks that a CUDA device makes: operands on
one device, generators of that device, no integer matrix products. What makes the host wait for a CUDA device is
recorded while `watch` is on. Registering a device is for the rest of a process: `register` belongs into processes
started for it, as ``pytest -m gpu --simulate`` does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

__all__ = ["NAME", "Waits", "available", "never_waits", "register", "watch"]

NAME = "sim"


def available() -> bool:
    """Whether this version of torch takes devices that are written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


# what is counted ------------------------------------------------------------------------------------------------
@dataclass
class Waits:
    """Operations after which the host has waited for the device, each with the line of the project that asked.

    ``reads`` bring values to the host: numbers, copies, shapes that depend on data, factorizations that report
    failures. ``uploads`` are copies from pageable memory of the host, for which torch waits too.
    """

    reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploads: Counter[tuple[str, str]] = field(default_factory=Counter)


_WATCHING: list[Waits] = []


@contextmanager
def watch() -> Iterator[Waits]:
    """Record what waits inside the block."""
    waits = Waits()
    _WATCHING.append(waits)
    try:
        yield waits
    finally:
        _WATCHING.remove(waits)


@contextmanager
def never_waits(device: str) -> Iterator[None]:
    """Fail where the host waits for the device inside the block: torch tells of CUDA, the record of the other."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with watch() as waits:
        yield
    if waits.reads or waits.uploads:
        raise RuntimeError(f"the host has waited for {device}: {waits}")


def _record(kind: str, name: str) -> None:
    for waits in _WATCHING:
        getattr(waits, kind)[name, _place()] += 1


def _place() -> str:
    """The innermost line of the packages that is being executed."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        for package in ("lowrank_sp", "llm_bridge"):
            if f"/{package}/" in path:
                return f"{package}/{path.rpartition(f'/{package}/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# Factorizations whose CUDA kernels read a status, or a count of iterations, back to the host.
_READS = {
    "_linalg_eigh", "_linalg_eigvals", "linalg_eig", "linalg_eigvals", "_linalg_svd", "linalg_lstsq",
    "linalg_matrix_exp", "_linalg_check_errors", "cholesky", "multinomial",
}  # fmt: skip
# Operations besides the pointwise ones that take numbers of the host, as tensors without axes.
_TAKE_NUMBERS = {"fill_", "fill", "masked_fill", "masked_fill_", "index_put_", "index_put", "_index_put_impl_"}
_PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "mv", "addmv", "dot", "vdot"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Facts(NamedTuple):
    """What there is to know of an operation; ``checks`` is the place of the argument that asks for a status."""

    name: str
    reads: bool
    checks: int | None
    takes_numbers: bool
    writes: bool
    reshapes: bool


@cache
def _facts(func: Any) -> Facts:
    name, tags, arguments = func.overloadpacket.__name__, func.tags, [a.name for a in func._schema.arguments]
    shapes = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
    return Facts(
        name,
        name in _READS or (shapes and name not in _INDEXED),
        arguments.index("check_errors") if "check_errors" in arguments else None,
        torch.Tag.pointwise in tags or name in _TAKE_NUMBERS,
        func._schema.is_mutable,
        torch.Tag.inplace_view in tags,
    )


def _reads(facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the CUDA kernel of an operation makes the host wait for a value."""
    if facts.name in _INDEXED:
        masks = any(_is_mask(i) and i.device.type == NAME for i in args[1])
        # A mask with one value to put becomes a select; with several it becomes a list of places.
        return masks and not (facts.name != "index" and args[2].numel() == 1 and not any(args[3:4]))
    if facts.name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    asked = facts.checks is not None and (kwargs.get("check_errors") or any(args[facts.checks : facts.checks + 1]))
    return facts.reads or asked


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


# the tensor -----------------------------------------------------------------------------------------------------
class Simulated(Tensor):
    """A tensor of the device; its values lie in ``inner``, on the host."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @staticmethod
    def of(values: Tensor) -> Simulated:
        """A tensor with these values; the marks of conjugation and negation go from them to it."""
        conjugate, negative = values.is_conj(), values.is_neg()
        values = torch._conj(values) if conjugate else values
        made = Simulated(torch._neg_view(values) if negative else values)
        torch._C._set_conj(made, conjugate)
        torch._C._set_neg(made, negative)
        return made

    @property
    def values(self) -> Tensor:
        """The values on the host, with its marks."""
        values = torch._conj(self.inner) if self.is_conj() else self.inner
        return torch._neg_view(values) if self.is_neg() else values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Simulated.of(self.values)

    @data.setter
    def data(self, value: Simulated) -> None:
        vars(torch._C.TensorBase)["data"].__set__(self, value)
        self.inner = value.inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.values!r} on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulated:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            vars(copied).update({key: value for key, value in vars(self).items() if key != "inner"})
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"tensors on {self.device} do not travel; move them to the host first")


_Guard = torch._C._SetExcludeDispatchKeyGuard


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the wrapped tensors."""
    facts = _facts(func)
    if facts.name == "_fused_sdp_choice":
        return 0  # no fused attention: from matrix products
    # On the way here torch has switched off that operations look at the marks of conjugation and negation.
    with _Guard(torch._C.DispatchKey.Conjugate, False), _Guard(torch._C.DispatchKey.Negative, False):
        if facts.name == "copy_":
            return _copy(*args, **kwargs)
        if facts.name == "_to_copy" and kwargs.get("device") is not None and kwargs["device"].type != NAME:
            _record("reads", str(func))
            return func(args[0].values, **kwargs)
        return _compute(func, facts, args, kwargs)


def _compute(func: Any, facts: Facts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    own: dict[int, Simulated] = {}

    def lower(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            if not isinstance(value, Simulated):
                return value
            values = value.values
            own[id(values)] = value
            return values
        if isinstance(value, (list, tuple)):
            return type(value)(map(lower, value))
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    def lift(value: Any) -> Any:
        if isinstance(value, Tensor):
            return own[id(value)] if id(value) in own else Simulated.of(value)
        return type(value)(map(lift, value)) if isinstance(value, (list, tuple)) else value

    lowered = tuple(map(lower, args)), {key: lower(value) for key, value in kwargs.items()}
    _check(func, facts, tensors, kwargs)
    if _WATCHING and _reads(facts, args, kwargs):
        _record("reads", str(func))
    out = lift(func(*lowered[0], **lowered[1]))
    if facts.reshapes:
        with no_dispatch():
            func(*args, **kwargs)  # the wrapper has a shape of its own
    if facts.writes and any(t.shape != t.inner.shape for t in own.values()):
        raise NotImplementedError(f"{func} changes the shape of a tensor on {NAME}, which the simulation lacks")
    return out


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``copy_`` between and on devices."""
    if not isinstance(target, Simulated):
        _record("reads", "copy_")
        return target.copy_(source.values)
    if not isinstance(source, Simulated) and not non_blocking and source.numel():
        _record("uploads", "copy_")
    target.values.copy_(source.values if isinstance(source, Simulated) else source)
    return target


def _check(func: Any, facts: Facts, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
    """Refuse what a CUDA device refuses."""
    for number, t in enumerate(tensors):
        if isinstance(t, Simulated):
            continue
        if facts.name in _INDEXED and number and t.dtype in (torch.bool, torch.uint8, torch.int64):
            _record("uploads", facts.name)
        elif t.ndim or not facts.takes_numbers or (facts.writes and number == 0):
            found = " and ".join(sorted({str(t.device) for t in tensors}, reverse=True))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {found}! "
                f"(when checking {func})"
            )
    if facts.name in _PRODUCTS and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        raise NotImplementedError(f'"{facts.name}" not implemented for {tensors[0].dtype} on {NAME}, as on CUDA')
    _check_generator(kwargs.get("generator"))


# the device -----------------------------------------------------------------------------------------------------
_GENERATORS: set[int] = set()
_KEPT: list[torch.Generator] = []


def _address(generator: Any) -> int:
    """What tells generators apart: torch makes new objects of Python for them."""
    return generator._cdata


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and _address(generator) not in _GENERATORS:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


class _Generator(torch._C.Generator):
    """A generator of the host that remembers for which device it was made."""

    made_for: torch.device

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made.made_for = torch.device(device)
        if made.made_for.type == NAME:
            _GENERATORS.add(_address(made))
            _KEPT.append(made)  # so that no other one gets its address
        return made

    def __init__(self, device: Any = "cpu"):
        super().__init__()

    @property
    def device(self) -> torch.device:
        return self.made_for


class _Module:
    """What stands at ``torch.sim``, and torch asks of it."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Generators of the host draw for the device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


# Makers of tensors that torch would otherwise compose from an empty tensor of another shape.
_MAKERS = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "logspace", "randperm", "randperm.generator", "tril_indices", "triu_indices",
)  # fmt: skip


def _maker(overload: Any) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        _check_generator(kwargs.get("generator"))
        return Simulated.of(overload(*args, **{**kwargs, "device": torch.device("cpu"), "pin_memory": None}))

    return make


_LIBRARIES: list[torch.library.Library] = []


def register() -> None:
    """Make ``torch.device("sim")`` a device, for the rest of the process."""
    if _LIBRARIES:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    for maker in _MAKERS:
        packet, _, overload = maker.partition(".")
        library.impl(maker, _maker(getattr(getattr(torch.ops.aten, packet), overload or "default")), "PrivateUse1")
    library.impl("_copy_from", lambda source, target, late=False: _copy(target, source, late), "PrivateUse1")
    _LIBRARIES.append(library)
    torch.Generator = _Generator
