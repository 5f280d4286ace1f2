"""The demo at toy size: clean texts, splits that share nothing, and rows and figure from a run."""

from __future__ import annotations

import json

import pytest

from llm_bridge.demo.classifier import Classifier, accuracy
from llm_bridge.demo.docstrings import clean, docstrings, splits
from llm_bridge.demo.runs import Budget, run_all, train
from llm_bridge.demo.show import draw, findings

TOY = Budget(
    train=12, validation=4, test=6, steps=2, batch=4, rank=2, max_length=12, seeds=1, packages=("numpy", "networkx")
)


@pytest.fixture(scope="module")
def chosen():
    return splits(12, 4, 6, TOY.packages)


def test_cleaning_takes_away_what_names_the_package():
    text = clean(
        """Return the :class:`~scipy.sparse.csr_matrix` of a numpy array, see `np.linalg.norm`.

        .. versionadded:: 1.2.0
        >>> import numpy as np

        Parameters
        ----------
        x : array
        """
    )
    assert text == "Return the csr_matrix of a array, see norm."


@pytest.mark.slow
def test_splits_share_no_module_and_no_text(chosen):
    for key in ("module", "text"):
        parts = [{getattr(e, key).lower() for e in chosen[name]} for name in ("train", "validation", "test")]
        assert not (parts[0] & parts[1])
        assert not (parts[0] & parts[2])
        assert not (parts[1] & parts[2])
    assert [len(chosen[name]) for name in ("train", "validation", "test")] == [24, 8, 12]
    assert chosen == splits(12, 4, 6, TOY.packages)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="no_such_package, which is not installed"):
        list(docstrings("no_such_package"))
    with pytest.raises(ValueError, match=r"tqdm has .* docstrings for train, fewer than 100000"):
        splits(100000, 1, 1, ("tqdm",))


@pytest.mark.slow
def test_the_head_starts_at_the_probe(chosen):
    from llm_bridge.demo.classifier import encode, probe

    parts = encode(chosen, TOY.packages, TOY.max_length)
    start = probe(parts, 2, strengths=(1e-2,))
    model = Classifier(2).eval()
    start.start(model)
    assert accuracy(model, parts["test"]) == pytest.approx(start.test)
    row = train("polar", 0, TOY, parts, start)
    assert len(row["losses"]) == 2
    assert len(row["sites"]) == 36


@pytest.mark.slow
@pytest.mark.covers("X04")
def test_a_run_leaves_rows_and_a_figure_and_is_not_repeated(tmp_path):
    found = run_all(TOY, tmp_path, jobs=1, methods=("lora", "polar"))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["budget"]["steps"] == 2
    shown = findings(found)
    assert set(shown["methods"]) == {"lora", "polar"}
    assert len(shown["verdict"]) == 3
    draw(tmp_path, found)
    assert (tmp_path / "finetune-demo.png").is_file()
    again = run_all(TOY, tmp_path, jobs=1, methods=("lora", "polar"))
    assert again["rows"] == json.loads(json.dumps(found["rows"]))
