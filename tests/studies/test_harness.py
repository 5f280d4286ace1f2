"""The study harness on a toy study: grids, claims, stored rows, killed runs, report and command line."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from studies import ConfigError, load, names, style
from studies.__main__ import main
from studies.claims import NOT_EVALUATED, NOT_REPRODUCED, REPRODUCED, Claim, Expectation, judge
from studies.config import read_config
from studies.grid import Grid
from studies.report import report
from studies.runner import execute_study, flatten, run_study
from studies.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]

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
        self.root, self.out, self.log = folder / "root", folder / "out", folder / "log"
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

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "studies",
            *arguments,
            "--root",
            str(self.root),
            *self._out(arguments),
        ]
        return subprocess.Popen(
            command, cwd=REPOSITORY, start_new_session=True, text=True, stdout=-1, stderr=-1
        )

    def saved(self) -> dict[str, str]:
        """Executed cells by key, as the log spells them, among the stored rows."""
        rows = Store(self.out / "toy").load()
        return {key: "{part} {x} {seed}".format(**{"seed": None, **row["cell"]}) for key, row in rows.items()}

    def _out(self, arguments: tuple[str, ...]) -> list[str]:
        return [] if arguments[0] == "list" else ["--out", str(self.out)]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


# grid -------------------------------------------------------------------------------------------


def test_grid_is_the_product_of_the_axes_of_each_part():
    grid = Grid({"m": 8, "k": 0}, {"a": {"k": 1, "x": [1, 2], "s": [[3, 4], [5, 6]]}, "b": {}})
    assert grid.cells() == [
        {"part": "a", "m": 8, "k": 1, "x": 1, "s": [3, 4]},
        {"part": "a", "m": 8, "k": 1, "x": 1, "s": [5, 6]},
        {"part": "a", "m": 8, "k": 1, "x": 2, "s": [3, 4]},
        {"part": "a", "m": 8, "k": 1, "x": 2, "s": [5, 6]},
        {"part": "b", "m": 8, "k": 0},
    ]


def test_quick_overrides_single_keys_and_drops_parts(toy: Toy):
    config = read_config(toy.config)
    assert len(config.cells()) == 8
    assert config.cells(quick=True) == [
        {"part": "squares", "m": 4, "power": 2, "x": 2, "seed": seed} for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[fixed]", "[fixed", "not valid TOML"),
        ("[fixed]", "[fixd]", "unknown key 'fixd'"),
        ("[study]", "[study]\nauthor = 'x'", "unknown key 'author'"),
        ('title = "A toy <study>"', "", "'title' is missing"),
        ('title = "A toy <study>"', "title = 3", "study.title: got 3"),
        ("x = [1, 2, 3]", "x = []", "grid.squares.x: the axis is empty"),
        ("x = [1, 2, 3]", "x = [1, 2, 1]", "repeats a value"),
        ("x = [1, 2, 3]", "part = 1", "'part' is taken"),
        ("x = [1, 2, 3]", "x = [1979-05-27]", "a value is a number"),
        ("m = 8", "m = [8]", "fixed.m: got the list"),
        ("m = 4", "n = 4", "quick.fixed: 'n' is not in the full grid"),
        ("x = [2]", "z = [2]", "quick.grid.squares: 'z'"),
        ("x = [2]", "x = []", "quick: grid.squares.x: the axis is empty"),
        ('skip = ["cubes"]', 'skip = ["spheres"]', "quick.skip: 'spheres'"),
        ('skip = ["cubes"]', 'skip = ["cubes", "squares"]', "no part is left"),
        ('expect = "<= 9"', 'expect = "=< 9"', r"claims\[0\] \(small\): expect: got '=< 9'"),
        ('expect = "<= 9"', 'expect = "between 2 and 1"', "empty interval"),
        ('expect = "<= 9"', 'expect = "<= 9"\ntolerance = 1', "only '==' takes a tolerance"),
        ('expect = "<= 9"', 'expect = "<= 9"\nover = "most"', "choose one of all, median"),
        ('kind = "corrected"', 'kind = "wrong"', "choose one of source, corrected"),
        ('id = "tiny"', 'id = "small"', "the id 'small' is used twice"),
        ('measure = "nothing"', "", "'measure' is missing"),
    ],
)
def test_configuration_errors_name_the_file_and_the_key(toy: Toy, old: str, new: str, message: str):
    assert old in CONFIG
    toy.config.write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(toy.config)
    assert str(caught.value).startswith(str(toy.config))


def test_unusable_studies_are_refused_with_a_reason(toy: Toy):
    with pytest.raises(ConfigError, match=r"unknown study 'tyo'; did you mean toy\? studies: toy"):
        load("tyo", toy.root)
    toy.study.write_text("def run(cell): return {}\ndef measures(rows): return {}\n")
    with pytest.raises(ConfigError, match="'figures' is missing"):
        load("toy", toy.root)
    toy.study.write_text("import nonexistent_module\n")
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        load("toy", toy.root)
    toy.study.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load("toy", toy.root)


def test_every_study_of_the_project_has_a_valid_configuration():
    for name in names():
        assert load(name).config.cells(quick=True)


# claims -----------------------------------------------------------------------------------------


def claim(expect: str, over: str = "all", tolerance: float | None = None) -> Claim:
    return Claim("id", "statement", "source", "y", Expectation.parse(expect, tolerance), over)


@pytest.mark.parametrize(
    ("expect", "over", "values", "status"),
    [
        ("<= 2", "all", [1, 2], REPRODUCED),
        ("< 2", "all", [1, 2], NOT_REPRODUCED),
        ("> -1e-3", "all", 0.0, REPRODUCED),
        (">= 2", "max", [1, 2], REPRODUCED),
        (">= 2", "min", [1, 2], NOT_REPRODUCED),
        ("< 2", "median", [1, 1, 9], REPRODUCED),
        ("< 2", "mean", [1, 1, 9], NOT_REPRODUCED),
        ("between 1 and 2", "all", np.array([1.0, 2.0]), REPRODUCED),
        ("between 1 and 2", "all", [0.9], NOT_REPRODUCED),
        ("== 3", "all", [3], REPRODUCED),
        ("<= 2", "all", [math.inf], NOT_REPRODUCED),
        ("<= 2", "all", [1, math.nan], NOT_EVALUATED),
        ("<= 2", "all", [], NOT_EVALUATED),
        ("<= 2", "all", "many", NOT_EVALUATED),
        ("<= 2", "all", [None], NOT_EVALUATED),
    ],
)
def test_verdicts(expect: str, over: str, values: object, status: str):
    verdict = judge(claim(expect, over), {"y": values})
    assert verdict.status == status
    assert bool(verdict.reason) == (status == NOT_EVALUATED)


def test_equality_has_a_tolerance_and_measured_values_are_always_given():
    assert judge(claim("== 1", tolerance=0.1), {"y": 1.05}).status == REPRODUCED
    assert judge(claim("== 1", tolerance=0.1), {"y": 1.2}).status == NOT_REPRODUCED
    verdict = judge(claim("< 0"), {"y": [3, 1, 2]})
    assert verdict.summary == {"median": 2, "min": 1, "max": 3, "n": 3}
    assert verdict.measured == "2 [1, 3] n=3"
    assert judge(claim("< 0"), {"z": 1}).reason == "measure 'y' is missing; measured: z"


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
    with pytest.raises(RuntimeError, match="and 1 more cells|and 2 more cells"):
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


def wait_for_rows(toy: Toy, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(toy.saved()) < count:
        assert time.monotonic() < deadline, "the run did not store rows"
        time.sleep(0.01)


@pytest.mark.parametrize("group", [True, False], ids=["with-workers", "runner-only"])
def test_killed_run_resumes_without_losing_or_repeating_a_row(tmp_path: Path, group: bool):
    many = CONFIG.replace("x = [1, 2, 3]", f"x = {list(range(20))}", 1)
    toy = Toy(tmp_path, many, pause=0.05)
    process = toy.spawn("run", "toy", "--jobs", "2")
    wait_for_rows(toy, 6)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
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


def test_interrupted_run_says_what_is_saved(tmp_path: Path):
    toy = Toy(tmp_path, CONFIG.replace("x = [1, 2, 3]", f"x = {list(range(40))}", 1), pause=0.05)
    process = toy.spawn("run", "toy")
    wait_for_rows(toy, 3)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted: {len(toy.saved())} of 82 rows of toy are saved" in errors
    assert "Traceback" not in errors


# report and command line ------------------------------------------------------------------------


def test_report_shows_verdicts_and_escapes_text(toy: Toy):
    run_study(load("toy", toy.root), toy.out)
    executed = toy.executed()
    [section] = report(toy.out, ["toy"], toy.root)
    assert toy.executed() == executed
    assert [verdict.status for verdict in section.verdicts] == [REPRODUCED, NOT_REPRODUCED, NOT_EVALUATED]
    page = (toy.out / "report.html").read_text()
    for text in (*(verdict.status for verdict in section.verdicts), "A toy &lt;study&gt;", "corrected"):
        assert text in page
    assert "Squares are &lt;b&gt;small&lt;/b&gt;." in page
    assert "Values of &lt;y&gt;" in page
    assert not any(raw in page for raw in ("<b>small", "<i>", "<study>", "<y>", "http"))
    assert 'src="toy/values.png"' in page
    assert (toy.out / "toy" / "values.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (toy.out / "toy" / "values.svg").read_text()
    record = json.loads((toy.out / "toy" / "claims.json").read_text())
    assert [entry["verdict"] for entry in record["claims"]] == [REPRODUCED, NOT_REPRODUCED, NOT_EVALUATED]
    assert record["claims"][1]["values"] == [1, 1, 4, 4, 9, 9]


def test_errors_of_measures_and_figures_are_shown_in_the_report(toy: Toy, capsys: pytest.CaptureFixture[str]):
    source = toy.study.read_text()
    toy.study.write_text(source.replace('"squares"', '"squares" + 1').replace("Figure()", "Figure() + 1"))
    assert toy.cli("run", "toy", "--quick") == 1
    printed = capsys.readouterr()
    assert "3 claims: 0 reproduced, 0 not reproduced, 3 not evaluated" in printed.out
    assert "measures raised TypeError" in printed.out
    assert "figures could not be made: TypeError" in printed.err
    assert "figures could not be made: TypeError" in (toy.out / "report.html").read_text()


def test_run_report_and_publish_from_the_command_line(toy: Toy, capsys: pytest.CaptureFixture[str]):
    assert toy.cli("list") == 0
    assert "8 / 2" in capsys.readouterr().out
    assert toy.cli("run", "toy") == 0
    printed = capsys.readouterr().out
    assert "3 claims: 1 reproduced, 1 not reproduced, 1 not evaluated" in printed
    assert max(map(len, printed[: printed.index("report:")].splitlines())) <= 100
    assert toy.cli("report") == 0
    assert toy.cli("publish") == 0
    published = {path.name for path in (toy.folder / "results").iterdir()}
    assert published == {"rows.jsonl", "claims.json", "values.png"}
    assert len(toy.executed()) == 8


def test_failed_cells_give_exit_code_one_and_their_traceback(toy: Toy, capsys: pytest.CaptureFixture[str]):
    toy.write(extra="assert cell['x'] != 3, 'x is three'")
    assert toy.cli("run", "toy") == 1
    printed = capsys.readouterr()
    assert "AssertionError: x is three" in printed.err
    assert "2 failed" in printed.err
    assert "6 of 8 cells" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "tyo"), "did you mean toy"),
        (("run",), "give the names of studies, or --all"),
        (("run", "toy", "--jobs", "0"), "jobs: got 0"),
        (("report",), "no study has rows"),
    ],
)
def test_wrong_usage_gives_exit_code_two(
    toy: Toy, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
):
    assert toy.cli(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_broken_study_does_not_spoil_the_report_of_another(toy: Toy, capsys: pytest.CaptureFixture[str]):
    other = toy.root / "other"
    other.mkdir()
    (other / "config.toml").write_text(CONFIG)
    (other / "study.py").write_text(toy.study.read_text())
    assert toy.cli("run", "--all", "--quick") == 0
    (other / "config.toml").write_text("broken")
    capsys.readouterr()
    assert toy.cli("run", "toy", "--quick") == 0
    assert "left out of the report" in capsys.readouterr().err
    assert toy.cli("list") == 2


# style ------------------------------------------------------------------------------------------


def test_a_method_looks_the_same_in_every_figure_and_methods_differ():
    assert style.line("ScaledGD") == style.line("scaled-gd")
    assert style.line("something new") == style.line("Something New")
    drawn = style.lines(["GD", "ScaledGD", "one", "two", "three"])
    assert drawn["GD"] == style.line("GD")
    assert len({(line.color, line.linestyle) for line in drawn.values()}) == 5


def test_figures_are_saved_identically(tmp_path: Path):
    def draw() -> Figure:
        figure, axes = style.figure("Heading")
        style.band(axes, [1, 2], [[1, 2], [3, 4]], "GD")
        return figure

    for name in ("a", "b"):
        style.save(draw(), tmp_path, name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert style.title(draw(), "name") == "Heading"
