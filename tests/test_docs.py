"""The code blocks of the README and the guide run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from studies import names

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/data.md", "docs/bridge.md"])
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


def test_the_table_of_studies_agrees_with_the_published_verdicts():
    rows = re.findall(r"^\| \[(\w+)\].* \| (\d+) of (\d+) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert {name for name, *_ in rows} == set(names())
    for name, reproduced, total in rows:
        published = json.loads((ROOT / "studies" / name / "results" / "claims.json").read_text())
        verdicts = [claim["verdict"] for claim in published["claims"]]
        assert (verdicts.count("reproduced"), len(verdicts)) == (int(reproduced), int(total)), name
