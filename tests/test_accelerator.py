"""What is marked gpu, on a simulated accelerator where there is no CUDA; and what the simulation claims of CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.accelerator import available, never_waits, watch

ROOT = Path(__file__).parents[1]

# No device may be registered in this process: other tests would see an accelerator.
SIMULATED = pytest.mark.skipif(
    torch.cuda.is_available() or not available(),
    reason="there is a CUDA device, or this version of torch takes no devices written in Python",
)


def run(marks):
    """The tests with these marks, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, "--simulate"]
    files = ["tests/test_accelerator.py", "tests/test_gpu.py", "tests/bridge/test_gpu.py"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@SIMULATED
@pytest.mark.timeout(900)
def test_the_code_runs_on_an_accelerator():
    run("gpu and not slow")


@SIMULATED
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rest_of_the_code_runs_on_an_accelerator():
    run("gpu and slow")


# What CUDA does too, where there is one -------------------------------------------------------------------------
def square(device):
    return torch.tensor([[2.0, 1.0], [1.0, 3.0]], device=device)


REFUSED = {
    "matrices apart": lambda a: a @ torch.ones(2, 2),
    "vectors apart": lambda a: a + torch.ones(2),
    "a number in a product": lambda a: torch.stack((a[0, 0], torch.ones(()))),
    "into the host": lambda a: torch.ones(2, 2).add_(a),
    "a number of the host, written": lambda a: torch.ones(()).add_(a[0, 0]),
    "integer products": lambda a: a.long() @ a.long(),
    "a generator of the host": lambda a: torch.rand(2, device=a.device, generator=torch.Generator()),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_device_refuses(name, device):
    with pytest.raises(RuntimeError, match=r"same device|not implemented|device type for generator"):
        REFUSED[name](square(device))


WAITING = {
    "a number": lambda a: float(a.sum()),
    "a branch": lambda a: bool(a.sum() > 0),
    "a copy": lambda a: a.cpu(),
    "a copy into": lambda a: torch.ones(2, 2).copy_(a),
    "a list": lambda a: a.tolist(),
    "places": lambda a: a.nonzero(),
    "a mask": lambda a: a[a > 1],
    "values for a mask": lambda a: a.index_put_((a > 1,), a[:, 0]),
    "different values": lambda a: a.unique(),
    "equality": lambda a: torch.equal(a, a),
    "a checked inverse": torch.linalg.inv,
    "a checked factor": torch.linalg.cholesky,
    "a checked solution": lambda a: torch.linalg.solve(a, a),
    "eigenvectors": torch.linalg.eigh,
    "singular vectors": torch.linalg.svd,
    "an upload": lambda a: torch.tensor([1.0, 2.0], device=a.device),
    "an upload of a number": lambda a: torch.as_tensor(0.5, device=a.device),
    "a move": lambda a: torch.ones(3).to(a.device),
    "places of the host": lambda a: a[[0, 1]],
    "a number with an upload": lambda a: torch.maximum(a, torch.tensor(0.5, device=a.device)),
}

FREE = {
    "products": lambda a: (a @ a + 2.0 * a).square().sum().sqrt(),
    "numbers of the host": lambda a: a * torch.tensor(2.0),
    "a written number": lambda a: a.masked_fill_(a > 1, 0.0),
    "a choice": lambda a: torch.where(a > 1, a, 0.0),
    "an unchecked inverse": lambda a: torch.linalg.inv_ex(a).inverse,
    "an unchecked factor": lambda a: torch.linalg.cholesky_ex(a).L,
    "an unchecked solution": lambda a: torch.linalg.solve_ex(a, a).result,
    "a triangle": lambda a: torch.linalg.solve_triangular(a, a, upper=True),
    "an orthonormal factor": lambda a: torch.linalg.qr(a).Q,
    "made there": lambda a: torch.eye(2, device=a.device)[torch.arange(2, device=a.device)],
    "drawn there": lambda a: torch.rand(2, device=a.device, generator=torch.Generator(a.device).manual_seed(0)),
    "a late upload": lambda a: torch.ones(3).to(a.device, non_blocking=True),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_seen(name, device):
    a = square(device)
    with pytest.raises(RuntimeError, match=r"[sS]ynchroniz|waited"), never_waits(device):
        WAITING[name](a)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_free(name, device):
    a = square(device)
    with never_waits(device):
        FREE[name](a)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_values_gradients_and_views_are_those_of_the_host(dtype, device):
    def values(where):
        a = torch.randn(4, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(where).requires_grad_()
        b = a.mH.clone()
        b[0] += 1  # through a view
        b.mT[1].mul_(2)
        out = torch.linalg.qr(b.mH)[0].conj().abs() @ (a.conj().imag if a.is_complex() else a).mT @ abs(a)
        return [t.detach().cpu() for t in (b, out, torch.autograd.grad(out.sum(), a)[0])]

    for ours, theirs in zip(values(device), values("cpu"), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.gpu
def test_the_record_names_the_line(device):
    if device == "cuda":
        pytest.skip("only the simulation keeps a record")
    from lowrank_sp import xp

    with watch() as waits:
        xp.to_numpy(square(device))
        torch.ones(1, device=device).item()
    (first, place), (second, elsewhere) = waits.reads
    assert first == "aten._to_copy.default"
    assert second == "aten._local_scalar_dense.default"
    assert place.startswith("lowrank_sp/")
    assert elsewhere == ""


@pytest.mark.gpu
def test_tensors_of_the_device_do_not_travel(device, tmp_path):
    if device == "cuda":
        pytest.skip("those of CUDA do")
    with pytest.raises(TypeError, match="do not travel"):
        torch.save(square(device), tmp_path / "tensor.pt")
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        square(device).numpy()
