"""Convergence studies: a folder each, with a grid, a few lines of code and claims as inequalities."""

from lowrank_sp.extras import require as _require

_require("studies", "studies", "matplotlib", "joblib", "tqdm", "threadpoolctl")

from studies.catalogue import Study, load, names
from studies.config import ConfigError

__all__ = ["ConfigError", "Study", "load", "names"]
