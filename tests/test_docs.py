"""The code blocks of the README and the guide run."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
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
