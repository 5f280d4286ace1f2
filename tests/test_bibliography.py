"""Every citation resolves: the keys that the code and the studies cite are in docs/bibliography.bib, once."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", re.MULTILINE | re.DOTALL)
CITATION = re.compile(r":cite:`([^`]*)`")
TEXTS = (
    "lowrank_sp/**/*.py",
    "llm_bridge/**/*.py",
    "studies/**/*.py",
    "studies/**/README.md",
    "benchmarks/**/*.py",
)

# What BibTeX asks of each type, less the year, which is left out where it is not known.
REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "book": {"author", "title", "publisher", "year"},
    "misc": {"title"},
}


def entries() -> list[tuple[str, str, set[str]]]:
    """Return type, key and field names of every entry."""
    text = (ROOT / "docs/bibliography.bib").read_text(encoding="utf-8")
    found = ENTRY.findall(text)
    assert len(found) == len(re.findall(r"^@", text, re.MULTILINE)), "an entry is malformed"
    return [(kind, key, set(re.findall(r"^\s*(\w+)\s*=", body, re.MULTILINE))) for kind, key, body in found]


def toml_values(value: object, key: str):
    """Yield the strings under `key`, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield from [inner] if isinstance(inner, str) else inner
            else:
                yield from toml_values(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from toml_values(inner, key)


def citations() -> list[tuple[str, str]]:
    """Return (key, file) for every citation."""
    found = []
    for pattern in TEXTS:
        for path in sorted(ROOT.glob(pattern)):
            for keys in CITATION.findall(path.read_text(encoding="utf-8")):
                found += [(key.strip(), path.relative_to(ROOT).as_posix()) for key in keys.split(",")]
    for path in sorted(ROOT.glob("studies/*/config.toml")):
        config = path.read_text(encoding="utf-8")
        keys = [*toml_values(tomllib.loads(config), "cite"), *CITATION.findall(config)]
        found += [(key, path.relative_to(ROOT).as_posix()) for key in keys]
    return found


def test_keys_are_unique():
    repeated = [key for key, count in Counter(key for _, key, _ in entries()).items() if count > 1]
    assert not repeated


def test_every_citation_resolves():
    known = {key for _, key, _ in entries()}
    unknown = sorted({(key, where) for key, where in citations() if key not in known})
    assert not unknown


@pytest.mark.parametrize(
    ("kind", "key", "fields"), entries(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_entry_is_complete(kind, key, fields):
    assert fields >= REQUIRED[kind]
