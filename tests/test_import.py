"""Importing the package is light, and its table of contents is true."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import lowrank_sp as lr

HEAVY = (
    "torch",
    "matplotlib",
    "scipy.stats",
    "scipy.optimize",
    "sklearn",
    "tensorly",
    "tqdm",
    "pymanopt",
    "geoopt",
)


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running the code."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["lowrank_sp", "lowrank_sp.testing"])
def test_import_loads_nothing_heavy(module):
    assert not modules_after(f"import {module}") & set(HEAVY)


def test_a_solve_in_numpy_does_not_load_torch():
    code = "import numpy as np, lowrank_sp as lr\nlr.factorize(np.ones((4, 3)), rank=1)"
    assert "torch" not in modules_after(code)


@pytest.mark.parametrize(
    "module, extra, package",
    [("llm_bridge", "llm", "torch"), ("llm_bridge", "llm", "transformers"), ("studies", "studies", "matplotlib")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, extra, package):
    script = f"import sys\nsys.modules['{package}'] = None\nimport {module}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ModuleNotFoundError: {module} needs {package}: pip install 'lowrank-sp[{extra}]'" in done.stderr


def test_names_of_every_module_exist():
    names = ["lowrank_sp", *(m.name for m in pkgutil.walk_packages(lr.__path__, "lowrank_sp."))]
    for name in names:
        module = importlib.import_module(name)
        missing = [n for n in module.__all__ if not hasattr(module, n)]
        assert not missing, f"{name}.__all__ lists {missing}"
        assert len(set(module.__all__)) == len(module.__all__)


def test_registries_name_their_entries():
    assert all(form.__name__ == name for name, form in lr.FORMS.items())
    assert all(solver.__name__ == name for name, solver in lr.SOLVERS.items())
    assert all(init.__name__ == name for name, init in lr.inits.INITS.items())
    assert all(solver is getattr(lr, name) for name, solver in lr.SOLVERS.items())
