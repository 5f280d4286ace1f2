"""Where cells run: one context manager per joblib backend, with one BLAS thread per worker."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import joblib

from studies.config import ConfigError

__all__ = ["BACKENDS", "LOCAL", "pool"]

LOCAL = ("loky", "threading")


def pool(backend: str, jobs: int) -> AbstractContextManager[Any]:
    """The joblib configuration of a backend; `jobs` is a positive number, or -1 for all cores."""
    if backend not in _POOLS:
        raise ConfigError(f"backend: got {backend!r}; choose one of {', '.join(_POOLS)}")
    if jobs == 0 or jobs < -1:
        raise ConfigError(f"jobs: got {jobs}; give a positive number, or -1 for all cores")
    if jobs == 1 and backend in LOCAL:
        return joblib.parallel_config(backend="sequential")
    return _POOLS[backend](jobs)


def _loky(jobs: int) -> AbstractContextManager[Any]:
    return joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1)


@contextmanager
def _threading(jobs: int) -> Iterator[None]:
    with _one_blas_thread(), joblib.parallel_config(backend="threading", n_jobs=jobs):
        yield


@contextmanager
def _dask(jobs: int) -> Iterator[None]:
    distributed = _module("distributed", "dask", "dask[distributed]")
    configured = _module("dask", "dask", "dask[distributed]").config.get("scheduler-address", None)
    local = {"threads_per_worker": 1} | ({"n_workers": jobs} if jobs > 0 else {})
    with (
        distributed.Client(**({} if configured else local)),
        joblib.parallel_config(backend="dask", n_jobs=jobs),
    ):
        yield


@contextmanager
def _ray(jobs: int) -> Iterator[None]:
    _module("ray.util.joblib", "ray", "ray").register_ray()
    with joblib.parallel_config(backend="ray", n_jobs=jobs):
        yield


def _one_blas_thread() -> AbstractContextManager[Any]:
    try:
        return importlib.import_module("threadpoolctl").threadpool_limits(limits=1)
    except ImportError:
        return nullcontext()


def _module(name: str, backend: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"backend: {backend!r} needs the package {package!r}, which cannot be imported ({error}); "
            f"install it or choose one of {', '.join(LOCAL)}"
        ) from error


_POOLS: dict[str, Callable[[int], AbstractContextManager[Any]]] = {
    "loky": _loky,
    "threading": _threading,
    "dask": _dask,
    "ray": _ray,
}
BACKENDS = tuple(_POOLS)
