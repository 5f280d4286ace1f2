"""The code blocks of the pages run, and what the pages quote exists."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lowrank_sp as lr
from studies.__main__ import main
from studies.catalogue import names

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


PAGES = ("guide", "data", "bridge", "choosing", "coming_from", "troubleshooting", "extending")


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in PAGES)])
def test_code_blocks_run(page):
    if "import torch" in (ROOT / page).read_text():
        pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 30))
    namespace = {"M": np.where(rng.random(a.shape) < 0.7, a, np.nan), "A": a}
    found = blocks(page)
    assert found
    for number, code in enumerate(found, start=1):
        exec(compile(code, f"{page} block {number}", "exec"), namespace)


def test_the_study_of_the_page_on_extending_runs(tmp_path):
    folder = tmp_path / "studies" / "small"
    folder.mkdir(parents=True)
    folder.joinpath("config.toml").write_text(blocks("docs/extending.md", "toml")[0])
    folder.joinpath("study.py").write_text(blocks("docs/extending.md")[-1])
    assert main(["run", "small", "--root", str(folder.parent), "--out", str(tmp_path / "results")]) == 0
    claims = json.loads((tmp_path / "results" / "small" / "claims.json").read_text())["claims"]
    assert [claim["verdict"] for claim in claims] == ["reproduced"]


def test_messages_that_the_pages_quote_are_those_of_the_code():
    tables = (ROOT / "docs/troubleshooting.md").read_text().split("| message |")[1:]
    quoted = [text for table in tables for text in re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)]
    code = "".join(path.read_text() for name in ("lowrank_sp", "llm_bridge") for path in (ROOT / name).rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)  # literals over several lines
    assert len(quoted) > 10
    assert not [text for text in quoted if text not in joined]


def test_names_of_the_packages_on_all_pages_exist():
    lb = pytest.importorskip("llm_bridge")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name in set(re.findall(r"\b(?:lr|lb)(?:\.[A-Za-z_]\w*)+", page.read_text())):
            package, *parts = name.split(".")
            value = {"lr": lr, "lb": lb}[package]
            for part in parts:
                assert hasattr(value, part), f"{page.name}: {name}"
                value = getattr(value, part)


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lr.__version__ == project["version"]
    assert f"\nversion: {lr.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {lr.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_table_of_studies_agrees_with_the_published_verdicts():
    rows = re.findall(r"^\| \[(\w+)\].* \| (\d+) of (\d+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert {name for name, *_ in rows} == set(names())
    for name, reproduced, total in rows:
        published = json.loads((ROOT / "studies" / name / "results" / "claims.json").read_text())
        verdicts = [claim["verdict"] for claim in published["claims"]]
        assert (verdicts.count("reproduced"), len(verdicts)) == (int(reproduced), int(total)), name
