"""The studies that exist: folders with a config.toml, found by name and loaded with their code."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from studies.config import Config, ConfigError, read_config
from studies.grid import Cell, cell_key

__all__ = ["ROOT", "Study", "code_hash", "find", "import_study", "load", "names"]

ROOT = Path(__file__).resolve().parent
_NEEDED = ("run", "measures", "figures")
_REPORTING = ("measures", "figures", "tables")
_REPORTING_FILES = ("analysis.py", "plots.py")


@dataclass(frozen=True)
class Study:
    """A study ready to run: name, folder, checked configuration, module and the hash of its code."""

    name: str
    folder: Path
    config: Config
    module: ModuleType
    code: str

    def cells(self, quick: bool = False) -> dict[str, Cell]:
        """Cells of the full or the reduced grid by key, in the order of the grid."""
        return {cell_key(self.name, cell, self.code): cell for cell in self.config.cells(quick)}


def names(root: Path | None = None) -> list[str]:
    """Names of all studies: the subfolders that hold a config.toml."""
    root = root or ROOT
    if not root.is_dir():
        raise ConfigError(f"{root}: not a folder; give the folder that holds the studies")
    return sorted(path.parent.name for path in root.glob("*/config.toml"))


def find(name: str, root: Path | None = None) -> Path:
    """The folder of a study; an unknown name is an error that lists the closest names and all names."""
    known = names(root)
    if name in known:
        return (root or ROOT) / name
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ConfigError(f"unknown study {name!r}; {hint}studies: {', '.join(known) or 'none'}")


def load(name: str, root: Path | None = None) -> Study:
    """Load a study by name; raises ConfigError when it is unknown or its files are unusable."""
    folder = find(name, root)
    config = read_config(folder / "config.toml")
    code = code_hash(folder / "study.py")
    module = import_study(folder, code)
    for function in _NEEDED:
        if not callable(vars(module).get(function)):
            raise ConfigError(
                f"{folder / 'study.py'}: the function {function!r} is missing; a study defines "
                "run(cell), measures(rows) and figures(rows), and may define tables(rows)"
            )
    return Study(name, folder, config, module, code)


def code_hash(path: Path) -> str:
    """Hash of what can change a row: study.py and its helpers, without comments, docstrings and reporting.

    Reporting is the functions `measures`, `figures` and `tables`, and the files analysis.py and plots.py.
    """
    others = sorted(p for p in path.parent.glob("*.py") if p.name not in (path.name, *_REPORTING_FILES))
    text = "\n".join(_essence(p) for p in (path, *others))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _essence(path: Path) -> str:
    """The code of a file without comments, docstrings and reporting functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as Python: {error}") from error
    tree.body = [node for node in tree.body if not _reports(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@lru_cache(maxsize=64)
def import_study(folder: Path, code: str) -> ModuleType:
    """Import study.py at the version named by its hash: by name inside this package, by path elsewhere."""
    path = folder / "study.py"
    if code_hash(path) != code:
        raise ConfigError(f"{path}: changed since the run started; run the same command again")
    try:
        if folder.parent == ROOT:
            return importlib.import_module(f"studies.{folder.name}.study")
        return _import_path(path, f"_study_{folder.name}_{code}")
    except Exception as error:
        raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error


def _import_path(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reports(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name in _REPORTING
