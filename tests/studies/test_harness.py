"""Rows are computed once, stored at once, and survive whatever ends a run."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from studies import ConfigError, load
from studies.runner import execute_study, flatten, run_study
from studies.store import Store

if TYPE_CHECKING:
    from .conftest import Toy

# rows -------------------------------------------------------------------------------------------


def test_rows_are_stored_once_and_a_second_run_executes_nothing(toy: Toy):
    study = load("toy", toy.root)
    rows = run_study(study, toy.out)
    assert len(rows) == len(toy.executed()) == 8
    assert rows[0] == {"part": "squares", "m": 8, "power": 2, "x": 1, "seed": 0, "y": 1.0, "curve": [0, 1, 2]}
    assert run_study(study, toy.out) == rows
    assert len(toy.executed()) == 8
    stored = [json.loads(line) for line in (toy.out / "toy" / "rows.jsonl").read_text().splitlines()]
    assert {"key", "cell", "result", "seconds", "commit", "versions", "machine"} == stored[0].keys()
    assert not list((toy.out / "toy" / "rows").iterdir())
    assert study.module.measures(rows)["squares"] == [1, 1, 4, 4, 9, 9]


def test_quick_run_and_full_run_share_the_folder(toy: Toy):
    study = load("toy", toy.root)
    assert len(run_study(study, toy.out, quick=True)) == 2
    assert len(run_study(study, toy.out)) == 8
    assert len(run_study(study, toy.out, quick=True)) == 2
    assert len(toy.executed()) == 10


def test_changed_code_runs_again_but_changed_figures_do_not(toy: Toy):
    run_study(load("toy", toy.root), toy.out)
    toy.study.write_text(toy.study.read_text().replace("Values of <y>", "Other") + "\n# a comment\n")
    run_study(load("toy", toy.root), toy.out)
    assert len(toy.executed()) == 8
    toy.write(extra="cell = {**cell, 'x': 0}")
    assert {row["y"] for row in run_study(load("toy", toy.root), toy.out)} == {0.0}
    assert len(toy.executed()) == 16


def test_truncated_line_is_a_missing_row(toy: Toy):
    study = load("toy", toy.root)
    rows = run_study(study, toy.out)
    merged = toy.out / "toy" / "rows.jsonl"
    lines = merged.read_bytes().splitlines(keepends=True)
    merged.unlink()
    (toy.out / "toy" / "rows" / "host-1-ab.jsonl").write_bytes(b"".join(lines[:3]))
    (toy.out / "toy" / "rows" / "host-2-cd.jsonl").write_bytes(b"".join(lines[3:])[:-9])
    assert run_study(study, toy.out) == rows
    assert len(toy.executed()) == 9
    assert len(merged.read_text().splitlines()) == 8


def test_damaged_line_in_the_middle_is_reported(toy: Toy):
    run_study(load("toy", toy.root), toy.out)
    merged = toy.out / "toy" / "rows.jsonl"
    merged.write_text("garbage\n" + merged.read_text())
    with pytest.warns(UserWarning, match=r"rows.jsonl:1: not a row"):
        assert len(Store(toy.out / "toy").load()) == 8


def test_row_written_while_files_are_merged_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    rows = [{"key": str(index), "cell": {}, "result": {}} for index in range(2)]
    with store.exclusive():
        store.append(rows[0])
        real, merges = os.write, []

        def merge_before_writing(descriptor: int, line: bytes) -> int:
            if not merges:
                merges.append(True)
                monkeypatch.setattr(os, "write", real)
                store.compact()
            return real(descriptor, line)

        monkeypatch.setattr(os, "write", merge_before_writing)
        store.append(rows[1])
    assert merges
    assert Store(tmp_path).load().keys() == {"0", "1"}


@pytest.mark.parametrize("step", ["unlink", "replace"])
def test_interrupted_merge_loses_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch, step: str):
    study, store = load("toy", toy.root), Store(toy.out / "toy")

    real_unlink, real_replace = Path.unlink, os.replace

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if step == "unlink" and path.name.endswith("sealed.jsonl"):
            raise KeyboardInterrupt
        real_unlink(path, missing_ok)

    def replace(source: Path, target: Path) -> None:
        if step == "replace" and target.name == "rows.jsonl":
            raise KeyboardInterrupt
        real_replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        patched.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, toy.out)
    assert len(store.load()) == 8
    assert len(run_study(study, toy.out)) == len(toy.executed()) == 8
    assert [path.name for path in store.folder.glob("*.jsonl")] == ["rows.jsonl"]
    assert not list(store.workers.iterdir())


def test_a_cell_that_swallows_an_interrupt_is_not_stored(toy: Toy):
    """As cells do that call `lowrank_sp.solve`, which returns what it has."""
    swallow = "\n    ".join(
        [
            "import signal",
            "try:",
            "    if cell['x'] == 2 and not os.path.exists(LOG + '.go'): signal.raise_signal(signal.SIGINT)",
            "except KeyboardInterrupt:",
            "    return {'y': -1.0}",
        ]
    )
    toy.write(extra=swallow)
    study, before = load("toy", toy.root), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
            run_study(study, toy.out)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "squares 2 0" not in toy.saved().values()
    Path(f"{toy.log}.go").touch()
    assert all(row["y"] == row["x"] ** row["power"] for row in run_study(study, toy.out))


def test_two_runs_in_one_folder_are_refused(toy: Toy):
    with Store(toy.out / "toy").exclusive(), pytest.raises(ConfigError, match="another run"):
        run_study(load("toy", toy.root), toy.out)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_parallel_rows_equal_sequential_rows(toy: Toy, backend: str):
    study = load("toy", toy.root)
    rows = run_study(study, toy.out / "parallel", jobs=2, backend=backend)
    assert rows == run_study(study, toy.out / "sequential")


def test_failed_cell_is_reported_not_stored_and_tried_again(toy: Toy):
    toy.write(extra="assert cell['x'] != 2 or os.path.exists(LOG + '.go'), 'x is two'")
    study = load("toy", toy.root)
    outcome = execute_study(study, toy.out)
    assert [failure.cell["x"] for failure in outcome.failures] == [2, 2, 2]
    assert "x is two" in outcome.failures[0].traceback
    assert len(outcome.rows) == 5
    with pytest.raises(RuntimeError, match="and 2 more cells with the same error"):
        run_study(study, toy.out)
    Path(f"{toy.log}.go").touch()
    assert len(run_study(study, toy.out)) == 8
    assert len(toy.executed()) == 8 + 3 + 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("return 3", "return a dict"),
        ("return {'y': object()}", "result.y: got object"),
        ("return {'x': -1}", "other values than the cell"),
        ("return {1: 2}", "the key 1 is not a string"),
    ],
)
def test_unusable_results_fail_their_cell(toy: Toy, extra: str, message: str):
    toy.write(extra)
    with pytest.raises(RuntimeError, match=message):
        run_study(load("toy", toy.root), toy.out, quick=True)


def test_list_results_and_infinities_survive_storage(toy: Toy):
    toy.write(extra="return [{'i': i, 'y': float('inf')} for i in range(2)]")
    rows = run_study(load("toy", toy.root), toy.out, quick=True)
    assert [(row["i"], row["y"]) for row in rows] == [(0, math.inf), (1, math.inf)] * 2
    assert flatten(Store(toy.out / "toy").load().values()) == rows


# killed runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [True, False], ids=["with-workers", "runner-only"])
def test_killed_run_resumes_without_losing_or_repeating_a_row(long_toy: Toy, group: bool):
    toy = long_toy
    with toy.running("run", "toy", "--jobs", "2") as process:
        toy.wait_for_rows(6)
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        time.sleep(0.5)  # workers that lost their runner end within this time
        saved, started = toy.saved(), Counter(toy.executed())
        assert 6 <= len(saved) < 42
        assert len(run_study(load("toy", toy.root), toy.out)) == 42
    executed = Counter(toy.executed())
    assert len(executed) == 42
    assert saved.items() <= toy.saved().items()
    assert all(executed[cell] == 1 for cell in saved.values())
    assert all(started[cell] for cell, count in executed.items() if count > 1)
    lines = (toy.out / "toy" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 42


def test_interrupted_run_says_what_is_saved(long_toy: Toy):
    toy = long_toy
    with toy.running("run", "toy") as process:
        toy.wait_for_rows(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    errors = toy.errors.read_text()
    assert f"interrupted: {len(toy.saved())} of 42 rows of toy are saved" in errors
    assert "Traceback" not in errors
