"""What a study's config.toml may say, and how its claims are judged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from studies import ConfigError, load, names
from studies.claims import NOT_EVALUATED, NOT_REPRODUCED, REPRODUCED, Claim, Expectation, judge
from studies.config import read_config
from studies.grid import Grid

if TYPE_CHECKING:
    from .conftest import Toy

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
    text = toy.config.read_text()
    assert old in text
    toy.config.write_text(text.replace(old, new, 1))
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


def test_rows_belong_to_the_code_that_computes_them(toy: Toy):
    keys = [set(load("toy", toy.folder.parent).cells())]
    for name in ("plots.py", "analysis.py", "helper.py"):
        (toy.folder / name).write_text("VALUE = 1\n")
        keys.append(set(load("toy", toy.folder.parent).cells()))
    (toy.folder / "helper.py").write_text("VALUE = 1  # a comment\n")
    keys.append(set(load("toy", toy.folder.parent).cells()))
    assert keys[0] == keys[1] == keys[2]  # reporting
    assert keys[3] == keys[4]
    assert not keys[3] & keys[2]


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
