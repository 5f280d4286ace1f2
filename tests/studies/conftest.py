"""A toy study in a folder of its own, run in this process or from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from studies.__main__ import main
from studies.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]

# `python -m studies`, but listening to interrupts also where the tests themselves run in the background without them.
START = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('studies', run_name='__main__', alter_sys=True)"
)

CONFIG = """
[study]
title = "A toy <study>"
summary = "Squares & cubes."
source = "nobody"
[fixed]
m = 8
[grid.squares]
power = 2
x = [1, 2, 3]
seed = [0, 1]
[grid.cubes]
power = 3
x = [1, 2]
[quick]
skip = ["cubes"]
[quick.fixed]
m = 4
[quick.grid.squares]
x = [2]
[[claims]]
id = "small"
statement = "Squares are <b>small</b>."
source = "Euclid"
measure = "squares"
expect = "<= 9"
[[claims]]
id = "tiny"
statement = "Squares are tiny."
source = "Euclid"
kind = "corrected"
measure = "squares"
expect = "< 9"
over = "max"
unit = "units"
[[claims]]
id = "absent"
statement = "Nobody measures this."
source = "Euclid"
measure = "nothing"
expect = "== 1"
"""

STUDY = '''
"""A toy."""
import os, time
import numpy as np
from matplotlib.figure import Figure

LOG = {log!r}
PAUSE = {pause}

def note(text):
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (text + "\\n").encode())
    os.close(descriptor)

def run(cell):
    note(f"{{cell['part']}} {{cell['x']}} {{cell.get('seed')}}")
    time.sleep(PAUSE)
    {extra}
    return {{"y": np.float64(cell["x"]) ** cell["power"], "curve": np.arange(3)}}

def measures(rows):
    return {{"squares": [row["y"] for row in rows if row["part"] == "squares"]}}

def figures(rows):
    figure = Figure()
    figure.subplots().plot([row["y"] for row in rows])
    figure.suptitle("Values of <y>")
    return {{"values": figure}}

def tables(rows):
    return {{"Values & all": [{{"x": row["x"], "y": row["y"], "who": "<i>"}} for row in rows]}}
'''


class Toy:
    """A toy study in a folder of its own, with a log of the cells that were executed."""

    def __init__(self, folder: Path, config: str = CONFIG, extra: str = "pass", pause: float = 0.0) -> None:
        self.root, self.out = folder / "root", folder / "out"
        self.log, self.errors = folder / "log", folder / "errors"
        self.folder = self.root / "toy"
        self.folder.mkdir(parents=True)
        self.config, self.study = self.folder / "config.toml", self.folder / "study.py"
        self.config.write_text(config)
        self.write(extra, pause)

    def write(self, extra: str = "pass", pause: float = 0.0) -> None:
        self.study.write_text(STUDY.format(log=str(self.log), extra=extra, pause=pause))

    def executed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def cli(self, *arguments: str) -> int:
        return main([*arguments, "--root", str(self.root), *self._out(arguments)])

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command line in a process group of its own, which ends with the block; errors go to a file."""
        command = [
            sys.executable,
            "-c",
            START,
            *arguments,
            "--root",
            str(self.root),
            *self._out(arguments),
        ]
        with open(self.errors, "wb") as errors:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)

    def wait_for_rows(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.saved()) < count:
            assert time.monotonic() < deadline, "the run did not store rows"
            time.sleep(0.01)

    def saved(self) -> dict[str, str]:
        """Executed cells by key, as the log spells them, among the stored rows."""
        rows = Store(self.out / "toy").load()
        return {key: "{part} {x} {seed}".format(**{"seed": None, **row["cell"]}) for key, row in rows.items()}

    def _out(self, arguments: tuple[str, ...]) -> list[str]:
        return [] if arguments[0] == "list" else ["--out", str(self.out)]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def long_toy(tmp_path: Path) -> Toy:
    """A toy with 42 cells of a twentieth of a second."""
    return Toy(tmp_path, CONFIG.replace("x = [1, 2, 3]", f"x = {list(range(20))}", 1), pause=0.05)
