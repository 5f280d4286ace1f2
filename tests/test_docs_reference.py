"""Every public name is on one page of the API reference, and every name there is public."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

import lowrank_sp as lr

pytest.importorskip("torch")

PAGES = Path(__file__).parent.parent / "docs" / "reference"
MODULES = (
    *("lowrank_sp", "lowrank_sp.baselines", "lowrank_sp.inits", "lowrank_sp.metrics", "lowrank_sp.rules"),
    *("lowrank_sp.rules.step", "lowrank_sp.sklearn", "lowrank_sp.spaces", "lowrank_sp.streaming", "lowrank_sp.testing"),
    *("llm_bridge", "llm_bridge.starts"),
)


def listed() -> Counter[str]:
    """What the tables of the reference list, and the registries that it describes, by their dotted names."""
    found: Counter[str] = Counter()
    for path in PAGES.glob("*.rst"):
        text = path.read_text()
        module = re.search(r"currentmodule:: (\S+)", text)[1]  # pyright: ignore[reportOptionalSubscript]
        for table in re.findall(r"autosummary::\n   :toctree: generated\n\n((?:   \S+\n)+)", text):
            found.update(f"{module}.{name}" for name in table.split())
        for name in re.findall(r"\.\. data:: (\S+)", text):
            found[name if name.startswith(("lowrank_sp", "llm_bridge")) else f"{module}.{name}"] += 1
    return found


def resolve(name: str) -> object:
    """The object of a dotted name: attributes of the longest part that is a module."""
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


def test_a_name_is_listed_once():
    assert not [name for name, count in listed().items() if count > 1]


def test_what_is_listed_exists():
    for name in listed():
        assert resolve(name) is not None


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_listed(module):
    elsewhere = {id(resolve(name)) for name in listed()}  # such as a step under the name that the package gives it
    public = importlib.import_module(module)
    modules = {name for name in public.__all__ if isinstance(getattr(public, name), type(lr))}
    missing = [name for name in public.__all__ if name not in modules and id(getattr(public, name)) not in elsewhere]
    assert not missing, f"put {missing} of {module} on a page of docs/reference"


def test_synthetic_instances_are_listed():
    missing = [name for name in lr.synthetic.__all__ if f"lowrank_sp.synthetic.{name}" not in listed()]
    assert not missing
