"""What a card is about: a registered form or rule, or a class in a module or file of the user's own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from lowrank_sp.factors import Factors
from lowrank_sp.parameterizations import FORMS
from lowrank_sp.rules import RULES, Rule
from studies.config import ConfigError

__all__ = ["resolve"]


def resolve(text: str) -> tuple[str, Any]:
    """Name and object: a subclass of `Factors`, or a `Rule`.

    Parameters
    ----------
    text : str
        A registered name (``polar``, ``scaled+adam``), ``package.module:Name`` or ``path/to/file.py:Name``.

    Raises
    ------
    ConfigError
        If there is no such thing, with the names that come close, or it is neither a form nor a rule.
    """
    if ":" in text:
        return _checked(text, _load(text))
    known = {_plain(name): (name, thing) for name, thing in (FORMS | RULES).items()}
    if _plain(text) in known:
        return known[_plain(text)]
    close = difflib.get_close_matches(_plain(text), known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(known[key][0] for key in close)}?" if close else f"there are {_list(known)}"
    raise ConfigError(f"card: no form or rule is called {text!r}; {hint}; a class of your own is module:Name")


def _list(known: dict[str, tuple[str, Any]]) -> str:
    return ", ".join(name for name, _ in known.values())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _load(text: str) -> Any:
    source, _, name = text.rpartition(":")
    try:
        module = _file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (ImportError, OSError) as error:
        raise ConfigError(f"card: cannot import {source}: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"card: {source} has no {name!r}")
    return getattr(module, name)


def _file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"card: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that dataclasses in the file find their module
    spec.loader.exec_module(module)
    return module


def _checked(text: str, thing: Any) -> tuple[str, Any]:
    name = text.rpartition(":")[2]
    if isinstance(thing, type) and issubclass(thing, Rule):
        thing = thing()
    if isinstance(thing, Rule) or (isinstance(thing, type) and issubclass(thing, Factors)):
        return name, thing
    raise ConfigError(
        f"card: {name} is neither a subclass of lowrank_sp.factors.MatrixFactors nor a lowrank_sp.rules.Rule"
    )
