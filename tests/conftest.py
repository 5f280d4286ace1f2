"""The problems of the tests are small: one thread each, whatever starts them; and the device of those marked gpu."""

import os

import pytest

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--simulate",
        action="store_true",
        help="run what is marked gpu on a simulated accelerator, for which a process should do nothing else",
    )


@pytest.fixture(scope="session")
def device(request) -> str:
    """The accelerator of this run: CUDA, or the simulated one where that is asked for."""
    torch = pytest.importorskip("torch")
    if not request.config.getoption("--simulate"):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device; tests/test_accelerator.py runs this on a simulated one")
        return "cuda"
    from llm_bridge import fused
    from tests import accelerator

    accelerator.register()
    fused.DEVICES.add(accelerator.NAME)
    return accelerator.NAME
