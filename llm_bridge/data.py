"""Data files for fine-tuning: rows of text read with errors that name the line, and datasets of tokens."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

__all__ = ["Tokens", "classes_of", "classification", "language", "read_rows", "split_rows"]

Row = dict[str, Any]


# rows ---------------------------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending: .jsonl, .csv (with a header), .txt (a row a line) or .parquet.

    Every row holds ``where``, its place in the file, for messages.

    Raises
    ------
    ValueError
        For a file that is missing, empty, of another kind, or malformed; with the line.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(_READERS)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        rows = [{**row, "where": f"{path}:{number}"} for number, row in _READERS[path.suffix](path)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    if not rows:
        raise ValueError(f"{path}: the file holds no rows")
    return rows


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not a JSON object: {error.msg} at column {error.colno}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a line must be a JSON object, got {type(row).__name__}")
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"{path}:{reader.line_num}: the row has not as many fields as the header")
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: malformed CSV: {error}") from error


def _txt(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8") as lines:
        yield from ((number, {"text": line.rstrip("\n")}) for number, line in enumerate(lines, start=1) if line.strip())


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs pyarrow; pip install pyarrow, or convert to .jsonl") from error
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error
    yield from enumerate(table.to_pylist(), start=1)


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".txt": _txt,
    ".parquet": _parquet,
}


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and a random fraction of them to evaluate on.

    Raises
    ------
    ValueError
        If the fraction is not in [0, 1), or leaves one side empty.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"eval_fraction must lie in [0, 1), got {fraction}")
    count = round(fraction * len(rows))
    if fraction and not 0 < count < len(rows):
        raise ValueError(
            f"eval_fraction={fraction} of {len(rows)} rows leaves nothing to train or to evaluate on; take another "
            "one, 0 to evaluate on nothing, or a file for eval_data"
        )
    held = set(np.random.default_rng(seed).permutation(len(rows))[:count].tolist())
    return [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]


def _text(row: Row, column: str) -> str:
    """The text in a column of a row."""
    if column not in row:
        there = ", ".join(repr(key) for key in row if key != "where")
        raise ValueError(
            f"{row['where']}: no column {column!r}; the row has {there or 'none'}; text_column names another one"
        )
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{row['where']}: column {column!r} must hold text, got {value!r}")
    return value


# labels -------------------------------------------------------------------------------------------------------


def classes_of(rows: Sequence[Row], column: str) -> list[str]:
    """The different labels, in order: by value if all are integers, else by name.

    Raises
    ------
    ValueError
        If a label is missing or is no string, integer or truth value; or there are fewer than two classes.
    """
    found = {_label(row, column) for row in rows}
    if len(found) < 2:
        raise ValueError(
            f"{rows[0]['where']}: classification needs two classes, column {column!r} holds {sorted(found)}"
        )
    numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return sorted(found, key=int) if numbers else sorted(found)


def _label(row: Row, column: str) -> str:
    value = row.get(column)
    if column not in row:
        there = ", ".join(repr(key) for key in row if key != "where")
        raise ValueError(
            f"{row['where']}: no column {column!r} with the label; the row has {there}; label_column names another one"
        )
    if not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{row['where']}: a label must be a word or an integer, got {value!r}")
    return str(value)


# tokens -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens(Dataset):
    """Examples of unequal length, and how to make a batch of them.

    Attributes
    ----------
    examples : tuple of dict
        ``input_ids`` and ``labels`` (a list for language, a number for classes).
    pad : int
        Token that fills up.
    """

    examples: tuple[dict[str, Any], ...]
    pad: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch: ``input_ids`` (b, n), ``attention_mask`` and ``labels``, filled up on the right."""
        width = max(len(example["input_ids"]) for example in examples)
        ids = [_fill(example["input_ids"], width, self.pad) for example in examples]
        mask = [_fill([1] * len(example["input_ids"]), width, 0) for example in examples]
        labels = [e["labels"] if isinstance(e["labels"], int) else _fill(e["labels"], width, -100) for e in examples]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }


def _fill(values: list[int], width: int, value: int) -> list[int]:
    return [*values, *[value] * (width - len(values))]


def classification(
    rows: Sequence[Row], tokenizer: Any, classes: Sequence[str], text: str, label: str, max_length: int
) -> Tokens:
    """Texts cut to so many tokens, and the number of their class.

    Raises
    ------
    ValueError
        For a row without text or label, or a label that is not among the classes.
    """
    number = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if _label(row, label) not in number:
            raise ValueError(f"{row['where']}: label {row[label]!r} does not occur in the training data")
    texts = [_text(row, text) for row in rows]
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    examples = ({"input_ids": i, "labels": number[str(row[label])]} for i, row in zip(ids, rows, strict=True))
    return Tokens(tuple(examples), tokenizer.pad_token_id)


def language(rows: Sequence[Row], tokenizer: Any, text: str, max_length: int) -> Tokens:
    """Blocks of tokens to predict.

    Rows with ``prompt`` and ``completion`` stay by themselves and only the completion is predicted. Other rows
    are put one after the other, an end of text between them, and cut into blocks of ``max_length`` tokens.

    Raises
    ------
    ValueError
        For a row without text, or where nothing is left to predict.
    """
    paired = [row for row in rows if "prompt" in row and "completion" in row]
    if paired and len(paired) < len(rows):
        odd = next(row for row in rows if not ("prompt" in row and "completion" in row))
        raise ValueError(f"{odd['where']}: other rows have 'prompt' and 'completion', this one has not")
    examples = _pairs(rows, tokenizer, max_length) if paired else _blocks(rows, tokenizer, text, max_length)
    if not examples:
        raise ValueError(f"{rows[0]['where']}: nothing is left to predict with max_length={max_length}")
    return Tokens(tuple(examples), tokenizer.pad_token_id)


def _pairs(rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    examples = []
    for row in rows:
        prompt = tokenizer(_text(row, "prompt"))["input_ids"]
        answer = tokenizer(_text(row, "completion"), add_special_tokens=False)["input_ids"] + _end(tokenizer)
        ids, labels = prompt + answer, [-100] * len(prompt) + answer
        if len(prompt) < max_length:
            examples.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return examples


def _blocks(rows: Sequence[Row], tokenizer: Any, text: str, max_length: int) -> list[dict[str, Any]]:
    stream: list[int] = []
    for row in rows:
        ids = tokenizer(_text(row, text), verbose=False)["input_ids"]  # long texts are cut here, without a warning
        stream += ids + _end(tokenizer)
    blocks = [stream[i : i + max_length] for i in range(0, len(stream), max_length)]
    return [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
