"""Rows on disk: each worker appends to a file of its own, and a finished run merges the files into one."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder are then not detected
    fcntl = None

__all__ = ["Row", "Store", "compact_json", "write_atomic"]

Row = dict[str, Any]
_writing = threading.Lock()
_own_files: dict[tuple[int, Path], Path] = {}


@dataclass(frozen=True)
class Store:
    """The rows of one study under one output folder."""

    folder: Path

    @property
    def merged(self) -> Path:
        """The file of a finished run."""
        return self.folder / "rows.jsonl"

    @property
    def workers(self) -> Path:
        """The folder where each worker keeps its own file until the run is finished."""
        return self.folder / "rows"

    def load(self) -> dict[str, Row]:
        """All rows by key; a truncated last line is what a killed worker leaves, and is skipped."""
        rows: dict[str, Row] = {}
        for path in (self.merged, *self._worker_files()):
            rows.update((row["key"], row) for row in _read(path))
        return rows

    def append(self, row: Row) -> None:
        """Add one finished row durably to the file of this process."""
        line = (compact_json(row) + "\n").encode()
        with _writing:
            # A file that was merged between opening and writing took the row with it: write it again.
            while not self._append_line(line):
                continue

    def compact(self) -> None:
        """Merge all rows into one file, then remove the worker files; safe to interrupt at any point."""
        for leftover in self.folder.glob(".rows.jsonl.*.tmp"):
            leftover.unlink(missing_ok=True)
        # Sealing by renaming first means that a late worker starts a new file instead of losing a row.
        sealed = [_seal(path) for path in self._worker_files()]
        if not sealed:
            return
        write_atomic(self.merged, "".join(compact_json(row) + "\n" for row in self.load().values()))
        for path in sealed:
            path.unlink(missing_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder for one run; the system lets go of it however the process ends."""
        try:
            self.workers.mkdir(parents=True, exist_ok=True)
            handle = open(self.folder / ".lock", "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be written: {error.strerror}; choose another --out") from error
        with handle:
            if fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError(
                        f"{self.folder}: another run is writing here; wait for it, or choose another --out"
                    ) from error
            yield

    def _worker_files(self) -> list[Path]:
        return sorted(self.workers.glob("*.jsonl"))

    def _append_line(self, line: bytes) -> bool:
        owner = (os.getpid(), self.workers)
        path = _own_files.setdefault(owner, self.workers / _file_name())
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _write_all(descriptor, line)
            return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
        except OSError:
            # The line may be cut short, so nothing may follow it in that file.
            _own_files.pop(owner, None)
            raise
        finally:
            os.close(descriptor)


def compact_json(value: Any) -> str:
    """JSON without spaces; NaN and infinities keep Python's spelling, so that rows read back unchanged."""
    return json.dumps(value, separators=(",", ":"))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            yield row
        elif line.strip():
            warnings.warn(f"{path}:{number}: not a row, skipped; its cell will run again", stacklevel=3)
    row = _parse(last)
    if row is not None:
        yield row


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"key", "cell", "result"} <= row.keys() else None


def _seal(path: Path) -> Path:
    if path.name.endswith(".sealed.jsonl"):
        return path
    return path.rename(path.with_name(f"{path.stem}.{secrets.token_hex(4)}.sealed.jsonl"))


def _file_name() -> str:
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname()) or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"


def _write_all(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)
