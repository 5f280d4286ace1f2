"""The report, the command line and the look of figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from matplotlib.figure import Figure

from studies import load, style
from studies.claims import NOT_EVALUATED, NOT_REPRODUCED, REPRODUCED
from studies.report import report
from studies.runner import run_study

if TYPE_CHECKING:
    from .conftest import Toy

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
    (other / "config.toml").write_text(toy.config.read_text())
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
