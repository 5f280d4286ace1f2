"""What a step needs, counted: bytes alive, bytes moved, operations and kernels, of tensors that hold no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["BANDWIDTH", "RATES", "Ledger"]

# Printed in the data sheet of an H200: operations a second on dense matrices, by type, and bytes a second.
RATES = {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 67e12}
BANDWIDTH = 4.8e12

# These write without reading what was there before.
FILLING = ("copy_", "fill_", "zero_", "normal_", "uniform_")
# These only name memory, or ask for it.
SILENT = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach")


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# Torch counts these under the names they have on a GPU.
_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
ATTENTION = {_FLASH: _attention, f"{_FLASH}_backward": _attention_backward}


def _operations(name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Multiplications and additions of a product, counted as two; none of anything else."""
    if name in ATTENTION:
        return ATTENTION[name](*args, **kwargs)
    count = flop_registry.get(getattr(torch.ops.aten, name.rstrip("_"), None))  # in place as out of place
    return count(*args, **kwargs, out_val=out) if count else 0


class Ledger(TorchDispatchMode):
    """Counts while it is entered.

    Attributes
    ----------
    alive, peak : int
        Bytes of the storages that exist, and the most of them at any time.
    kernels, operations, moved : int
        Calls that read or write arrays, multiplications and additions in products, bytes read and written: both for
        arrays that are changed in place.
    least : float
        Seconds if every kernel ran at the rates of the data sheet, one after the other and without any delay.
    """

    def __init__(self, held: Iterable[Tensor] = ()):
        super().__init__()
        self.alive = self.peak = self.kernels = self.operations = self.moved = 0
        self.least = 0.0
        self._sizes: dict[int, int] = {}
        self._hold(held)

    def _hold(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._release, key)
        self.peak = max(self.peak, self.alive)

    def _release(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._hold(made)
        namespace, name = func._schema.name.split("::")
        if namespace == "aten" and not func.is_view and name not in SILENT:
            read = _read(func._schema, args, kwargs)
            if read or made:
                self._enter(_operations(name, args, kwargs, out), read, made)
        return out

    def _enter(self, operations: int, read: list[Tensor], made: list[Tensor]) -> None:
        moved = _bytes(read) + _bytes(made)
        rate = RATES.get(made[0].dtype, RATES[torch.float32]) if made else RATES[torch.float32]
        self.kernels += 1
        self.operations += operations
        self.moved += moved
        self.least += max(operations / rate, moved / BANDWIDTH)


def _read(schema: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Arrays that are read: what an operation changes in place is, and what it only fills is not."""
    filled = {a.name for a in schema.arguments if a.kwarg_only and a.alias_info is not None and a.alias_info.is_write}
    first = 1 if schema.name.split("::")[1] in FILLING else 0
    given = args[first:], {key: value for key, value in kwargs.items() if key not in filled}
    return [t for t in tree_leaves(given) if isinstance(t, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.nbytes for t in {id(t): t for t in tensors}.values())
