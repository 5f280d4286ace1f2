"""Convergence studies: a folder each, with a grid, a few lines of code and claims as inequalities."""

from studies.catalogue import Study, load, names
from studies.config import ConfigError

__all__ = ["ConfigError", "Study", "load", "names"]
