"""Files of adapters: tensors and JSON, written whole or not at all, and read with errors that say what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["checksum", "read_header", "read_json", "read_tensors", "write_json", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file in place of the one that may be there, in one step.

    Parameters
    ----------
    path : Path
    tensors : mapping of str to tensor
    header : mapping of str to str
        Text that travels in the same file.
    """
    # Not by save_file, whose files only their owner may read.
    _replace(path, lambda part: part.write_bytes(save(portable(tensors), {"format": "pt", **header})))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file in place of the one that may be there, in one step."""
    text = json.dumps(document, indent=2, allow_nan=False)
    _replace(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside the file, flush to the disk, then rename: a crash leaves the old file or the new one."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        write(part)
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory: what the file format wants."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, t in sorted(portable(tensors).items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, str]:
    """The text in a safetensors file.

    Raises
    ------
    ValueError
        If there is no such file, or it is no whole safetensors file.
    """
    return _opened(path, lambda f: f.metadata() or {})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; errors as in `read_header`."""
    return _opened(path, lambda f: {name: f.get_tensor(name) for name in f.keys()})  # noqa: SIM118  no mapping


def _opened(path: Path, read: Callable[[Any], Any]) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no file {path.name} in {path.parent}")
    try:
        with safe_open(path, "pt") as f:
            return read(f)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated, corrupt or no safetensors file ({error})") from error


def read_json(path: Path) -> Any:
    """A JSON document.

    Raises
    ------
    ValueError
        If there is no such file, or it is no whole JSON document.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path.name} in {path.parent}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is truncated, corrupt or no JSON file ({error})") from error
