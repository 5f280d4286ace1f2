"""docs/coverage.md is current, and every inventory ID in use exists."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

import pytest

import lowrank_sp
from lowrank_sp.coverage import COVERED, covers

ROOT = Path(__file__).parents[1]


def load(path: Path):
    """Import a script that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_coverage = load(ROOT / "docs/make_coverage.py")


def project(root: Path, **files: str) -> Path:
    """Write a small project: paths with __ for the slashes and _dot_ for the last dot."""
    (root / "docs").mkdir()
    inventory = '[P]\ntitle = "Forms"\nP01 = "one"\nP02 = "two"\nP03 = "three"\n'
    (root / "docs/inventory.toml").write_text(inventory)
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_page_is_current():
    stored = (ROOT / make_coverage.TARGET).read_text(encoding="utf-8")
    assert stored == make_coverage.page(), "run `make docs`"


def test_every_id_in_use_exists():
    known = set(make_coverage.identifiers())
    code, proofs = make_coverage.coverage()
    assert set(code) | set(proofs) <= known


def test_reading_the_code_agrees_with_running_it():
    for module in pkgutil.walk_packages(lowrank_sp.__path__, "lowrank_sp."):
        importlib.import_module(module.name)
    run = {i: sorted(n for n in names if n.startswith("lowrank_sp.")) for i, names in COVERED.items()}
    read, _ = make_coverage.coverage()
    read = {i: [n for n in names if n.startswith("lowrank_sp.")] for i, names in read.items()}
    assert {i: n for i, n in read.items() if n} == {i: n for i, n in run.items() if n}


@pytest.mark.parametrize("ids", [(), ("Q01",), ("P1",), ("P01", "o04"), ("P01 ",)])
def test_malformed_ids_are_refused(ids):
    with pytest.raises(ValueError, match=r"inventory\.toml"):
        covers(*ids)


def test_a_subclass_does_not_cover_what_its_base_covers():
    @covers("P01")
    class Base: ...

    @covers("P24")
    class Derived(Base): ...

    assert Base.__covers__ == ("P01",)  # pyright: ignore[reportAttributeAccessIssue]
    assert Derived.__covers__ == ("P24",)  # pyright: ignore[reportAttributeAccessIssue]


def test_code_is_named_by_what_carries_the_ids(tmp_path):
    code = (
        "@covers('P01')\nclass Form:\n    @covers('P02')\n    def dense(self): ...\n"
        "solver = covers('P03')(make)\n"
        "register(Recipe('lora', covers=('P01',)))\n"
        "register(BASE.but(name='rslora', covers=['P02']))\n"
    )
    found = make_coverage.code_uses(project(tmp_path, lowrank_sp__forms_dot_py=code))
    assert {(use.where, use.ids) for use in found} == {
        ("lowrank_sp.forms.Form", ("P01",)),
        ("lowrank_sp.forms.Form.dense", ("P02",)),
        ("lowrank_sp.forms.solver", ("P03",)),
        ("lowrank_sp.forms.lora", ("P01",)),
        ("lowrank_sp.forms.rslora", ("P02",)),
    }


def test_proofs_come_from_marks_names_and_studies(tmp_path):
    root = project(
        tmp_path,
        lowrank_sp__forms_dot_py="@covers('P01', 'P02')\nclass Form: ...\n",
        tests__test_forms_dot_py=(
            "pytestmark = pytest.mark.covers('P03')\n"
            "@pytest.mark.covers('lowrank_sp.forms.*')\ndef test_contract(): ...\n"
        ),
        studies__rates__config_dot_toml='covers = ["P01"]\n[[claims]]\ncovers = "P02"\n',
    )
    assert make_coverage.coverage(root)[1] == {
        "P01": ["studies/rates", "tests/test_forms.py::test_contract"],
        "P02": ["studies/rates", "tests/test_forms.py::test_contract"],
        "P03": ["tests/test_forms.py"],
    }


def test_code_without_proof_is_said_to_be_so(tmp_path):
    root = project(tmp_path, lowrank_sp__forms_dot_py="@covers('P02')\nclass Form: ...\n")
    page = make_coverage.page(root)
    assert "| P02 | two | `lowrank_sp.forms.Form` | not yet proved |" in page
    assert "| P | Forms | 1 | 2 |" in page
    assert "three" not in page


def test_ids_that_only_running_would_reveal_are_refused(tmp_path):
    root = project(tmp_path, lowrank_sp__forms_dot_py="@covers(*IDS)\nclass Form: ...\n")
    with pytest.raises(ValueError, match="literal"):
        make_coverage.code_uses(root)
