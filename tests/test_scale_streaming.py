"""Entries on disk: the same numbers as in memory, in any order and any chunks, and nothing lost by an interruption."""

import json
import shutil

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp import entries as entry_files
from lowrank_sp import kernels, streaming

SHAPE = (30, 24)


def sample(seed=0, noise=0.01):
    return lr.synthetic.completion(*SHAPE, rank=3, observed=0.6, condition_number=5.0, noise=noise, seed=seed)


def triples(problem, seed=1):
    """The entries of a problem in random order."""
    order = np.random.default_rng(seed).permutation(problem.data.size)
    return problem.pattern.rows[order], problem.pattern.cols[order], problem.data[order]


def chunked(arrays, size):
    return [tuple(a[k : k + size] for a in arrays) for k in range(0, len(arrays[0]), size)]


@pytest.fixture
def stored(tmp_path):
    """A problem in memory and its entries on disk."""
    problem = sample()
    return problem, streaming.write_entries(tmp_path / "entries", chunked(triples(problem), 50), SHAPE)


@pytest.mark.parametrize("most", [1, 7, 10**6])
@pytest.mark.parametrize("size", [1, 50, 10**6])
def test_both_orders_hold_all_entries(tmp_path, monkeypatch, size, most):
    monkeypatch.setattr(entry_files, "ENTRIES", 40)  # many buckets
    problem = sample()
    files = streaming.write_entries(tmp_path / "entries", chunked(triples(problem), size), SHAPE)
    dense = np.zeros(SHAPE)
    dense[problem.pattern.rows, problem.pattern.cols] = problem.data
    for order, expected in enumerate((dense, dense.T)):
        found, end = np.zeros_like(expected), 0
        for block in files.blocks(order, most):
            assert block.low == end
            assert block.values.size <= most or block.high == block.low + 1
            for i in range(block.low, block.high):
                part = slice(block.indptr[i - block.low], block.indptr[i - block.low + 1])
                assert (np.diff(block.others[part]) > 0).all()
                found[i, block.others[part]] = block.values[part]
            end = block.high
        assert end == expected.shape[0]
        assert np.array_equal(found, expected)
    assert np.isclose(files.square, problem.scale)
    assert files.count == problem.data.size
    assert not list(tmp_path.glob(".*"))  # no partial files


def test_memory_maps_and_generators_can_be_given(tmp_path):
    problem = sample()
    names = []
    for name, array in zip("rcv", triples(problem), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        names.append(tmp_path / f"{name}.npy")
    maps = tuple(np.load(f, mmap_mode="r") for f in names)
    files = [
        streaming.write_entries(tmp_path / "a", [maps], SHAPE),
        streaming.write_entries(tmp_path / "b", (c for c in chunked(triples(problem), 9)), SHAPE),
    ]
    for order in (0, 1):
        a, b = (list(f.blocks(order)) for f in files)
        assert all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("work", [0, 10**18], ids=["compiled", "numpy"])
@pytest.mark.parametrize("block", [None, 25])
@pytest.mark.parametrize("ridge", ["auto", 0.01])
def test_alternating_least_squares_is_that_in_memory(stored, monkeypatch, block, ridge, work):
    monkeypatch.setattr(kernels, "WORK", work)
    problem, files = stored
    streamed = streaming.StreamedCompletion(files, problem.truth, block)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    a, b = (lr.solve(p, start, lr.ALS(ridge), max_iter=12, tol=0) for p in (problem, streamed))
    for key in ("loss", "gradient_norm", "error"):
        assert np.allclose(a.history[key], b.history[key], rtol=1e-8, equal_nan=True), key
    assert np.allclose(a.point.dense(), b.point.dense(), atol=1e-10)


@pytest.mark.parametrize("name", ["ScaledGD", "ScaledCG", "AltScaledGD", "RiemannianCG"])
def test_other_solvers_run_on_streams(stored, name):
    problem, files = stored
    streamed = streaming.StreamedCompletion(files, block=40)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    a, b = (lr.solve(p, start, lr.SOLVERS[name](), max_iter=6, tol=0) for p in (problem, streamed))
    assert np.allclose(a.history["loss"], b.history["loss"], rtol=1e-6)


@pytest.mark.parametrize("form", [lr.PoLAR, lr.Hadamard, lr.SymmetricBurerMonteiro])
def test_any_form_can_be_fitted_by_blocks(tmp_path, form):
    """Blocks of other forms go through conjugate gradients on streams, as they do in memory."""
    problem = lr.synthetic.completion(20, 20, rank=2, observed=0.8, seed=0, symmetric=True)
    files = streaming.write_entries(tmp_path / "entries", [triples(problem)], (20, 20))
    streamed = streaming.StreamedCompletion(files, block=31)
    point = form.random((20, 20), 2, np.random.default_rng(0))
    a, b = (p.gradient(point) for p in (problem, streamed))
    assert all(np.allclose(x, y) for x, y in zip(a.arrays(), b.arrays(), strict=True))
    if point.flat:
        steps = [p.sweep_block(point, 0, 0.1)[0] for p in (problem, streamed)]
        assert np.allclose(*steps, atol=1e-10)


def test_the_one_liner(stored):
    problem, files = stored
    found = streaming.complete(files.folder, rank=3, tol=1e-8)
    assert found.success
    reference = lr.solve(problem, lr.inits.spectral(problem, lr.BurerMonteiro, 3), lr.ALS(), tol=1e-8)
    assert np.allclose(found.point.dense(), reference.point.dense(), atol=1e-6)


def test_single_precision(tmp_path):
    problem = sample(noise=0.0)
    files = streaming.write_entries(tmp_path / "entries", [triples(problem)], SHAPE, dtype="float32")
    found = streaming.complete(files, rank=3, max_iter=60)
    assert found.point.left.dtype == np.float32
    assert float(problem.error(found.point)) < 1e-4


# interruption ---------------------------------------------------------------------------------------------


def interrupt_at(count):
    def callback(iteration, point, loss):
        if iteration == count:
            raise KeyboardInterrupt

    return callback


def identical(a, b):
    return (
        a.status is b.status
        and a.fun == b.fun
        and all(np.array_equal(x, y) for x, y in zip(a.point.arrays(), b.point.arrays(), strict=True))
        and all(np.array_equal(a.history[k], b.history[k], equal_nan=True) for k in a.history if k != "seconds")
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_interrupted_runs_end_with_the_identical_result(tmp_path, dtype):
    files = streaming.write_entries(tmp_path / "entries", [triples(sample())], SHAPE, dtype)
    kept = tmp_path / "run.npz"
    whole = streaming.complete(files, rank=3, tol=1e-6)
    assert whole.nit > 9
    for count in (1, 4, 8):
        part = streaming.complete(files, rank=3, tol=1e-6, checkpoint=kept, callback=interrupt_at(count))
        assert part.status is lr.Status.INTERRUPTED
        assert part.nit == count
    resumed = streaming.complete(files, rank=3, tol=1e-6, checkpoint=kept)
    assert identical(resumed, whole)
    assert identical(streaming.complete(files, rank=3, tol=1e-6, checkpoint=kept), whole)  # a finished one stays
    assert [f.name for f in tmp_path.iterdir() if f.suffix != ".npz"] == ["entries"]


@pytest.mark.parametrize("ridge", ["auto", 0.01])
def test_problems_in_memory_resume_too(tmp_path, ridge):
    problem, kept = sample(), tmp_path / "run.npz"
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    run = {"solver": lr.ALS(ridge), "max_iter": 30, "tol": 1e-9}
    whole = lr.solve(problem, start, **run)
    lr.solve(problem, start, **run, checkpoint=kept, callback=interrupt_at(5))
    assert identical(lr.solve(problem, start, **run, checkpoint=kept), whole)


def test_more_iterations_continue_a_finished_run(tmp_path):
    problem, kept = sample(), tmp_path / "run.npz"
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    lr.solve(problem, start, lr.ALS(), max_iter=4, tol=0, checkpoint=kept)
    more = lr.solve(problem, start, lr.ALS(), max_iter=9, tol=0, checkpoint=kept)
    assert identical(more, lr.solve(problem, start, lr.ALS(), max_iter=9, tol=0))


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def chunks():
        yield triples(sample())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.write_entries(tmp_path / "entries", chunks(), SHAPE)
    assert not list(tmp_path.iterdir())


# bad input and damaged files --------------------------------------------------------------------------------


def damage(path, how):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"x" * len(data))


NAMES = [f"{o}.{p}.npy" for o in ("by_row", "by_col") for p in ("indptr", "others", "values")]


@pytest.mark.parametrize("how", ["truncated", "overwritten", "missing"])
@pytest.mark.parametrize("name", [*NAMES, "facts.json"])
def test_damaged_files_are_refused(stored, name, how):
    path = stored[1].folder / name
    path.unlink() if how == "missing" else damage(path, how)
    with pytest.raises(ValueError, match=rf"{name}.* (is|missing|damaged)"):
        streaming.EntryFiles(stored[1].folder)


@pytest.mark.parametrize(("part", "value"), [("others", 24), ("others", -1), ("values", np.nan), ("indptr", -5)])
def test_wrong_contents_are_found_when_they_are_read(stored, part, value):
    path = stored[1].folder / f"by_row.{part}.npy"
    array = np.load(path)
    array[3] = value
    np.save(path, array)
    with pytest.raises(ValueError, match=r"by_row.* is damaged"):
        streaming.complete(stored[1].folder, rank=2)


@pytest.mark.parametrize("key", ["shape", "count", "format", "dtype"])
def test_facts_that_do_not_fit_are_refused(stored, key):
    path = stored[1].folder / "facts.json"
    facts = json.loads(path.read_text())
    for value in (None, {"shape": [3, 3], "count": 5, "format": "other", "dtype": "float32"}[key]):
        path.write_text(json.dumps({**facts, key: value}))
        with pytest.raises(ValueError, match=r"write the entries again|holds no entries"):
            streaming.EntryFiles(stored[1].folder)


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_damaged_checkpoint_is_refused(stored, tmp_path, how):
    kept = tmp_path / "run.npz"
    streaming.complete(stored[1], rank=3, max_iter=2, checkpoint=kept)
    damage(kept, how)
    with pytest.raises(ValueError, match=r"run\.npz is damaged or no checkpoint"):
        streaming.complete(stored[1], rank=3, checkpoint=kept)


def test_the_checkpoint_of_another_run_is_refused(stored, tmp_path):
    problem, files = stored
    kept = tmp_path / "run.npz"
    streaming.complete(files, rank=3, max_iter=2, checkpoint=kept)
    with pytest.raises(ValueError, match=r"belongs to another run: its sizes"):
        streaming.complete(files, rank=2, checkpoint=kept)
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    with pytest.raises(ValueError, match=r"belongs to another run: its solver"):
        lr.solve(problem, start, lr.ALS(0.1), checkpoint=kept)
    with pytest.raises(ValueError, match=r"belongs to another run: its first loss"):
        lr.solve(problem, start.scale(2.0), lr.ALS(), checkpoint=kept)
    np.savez(kept, other=np.ones(3))
    with pytest.raises(ValueError, match="no checkpoint"):
        streaming.complete(files, rank=3, checkpoint=kept)


def test_solves_that_cannot_be_kept(tmp_path):
    problem = sample()
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    with pytest.raises(TypeError, match=r"such as lr\.ALS\(\), not ScaledCG"):
        lr.solve(problem, start, lr.ScaledCG(), checkpoint=tmp_path / "run.npz")
    batch = lr.inits.gaussian(problem, lr.BurerMonteiro, 3, seed=0, batch=2)
    with pytest.raises(TypeError, match="checkpoint keeps single solves"):
        lr.solve(problem, batch, lr.ALS(), checkpoint=tmp_path / "run.npz")


R, C, V = triples(sample())
BAD_CHUNKS = {
    "no chunks": ([], ValueError, "no entries"),
    "torch": ([(torch.tensor([0]), np.array([0]), np.ones(1))], TypeError, "chunks must hold NumPy arrays"),
    "pairs": ([(R, C)], TypeError, "must yield"),
    "no tuple": ([3], TypeError, "must yield"),
    "lengths": ([(R, C, V[:-1])], ValueError, "one length"),
    "scalars": ([(1, 2, 3.0)], ValueError, "one axis"),
    "row out of range": ([(R + 1, C, V)], ValueError, r"rows must lie in \[0, 30\)"),
    "negative column": ([(R, C - 1, V)], ValueError, r"cols must lie in \[0, 24\)"),
    "floating rows": ([(R * 1.0, C, V)], TypeError, "rows must hold integers"),
    "NaN": ([(R, C, V * np.nan)], ValueError, "values holds"),
    "text": ([(R, C, np.full(V.size, "a"))], TypeError, "values must be numeric"),
    "duplicates": ([(R, C, V), (R[:1], C[:1], V[:1])], ValueError, rf"repeat .*\({R[0]}, {C[0]}\)"),
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_bad_chunks(tmp_path, case):
    chunks, kind, message = BAD_CHUNKS[case]
    with pytest.raises(kind, match=message):
        streaming.write_entries(tmp_path / "entries", chunks, SHAPE)
    assert not list(tmp_path.iterdir())


def test_other_bad_arguments(stored, tmp_path):
    _, files = stored
    with pytest.raises(ValueError, match="exists; give a new folder"):
        streaming.write_entries(files.folder, [(R, C, V)], SHAPE)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        streaming.write_entries(tmp_path / "new", [(R, C, V)], SHAPE, dtype=int)
    with pytest.raises(ValueError, match="shape must be"):
        streaming.write_entries(tmp_path / "new", [(R, C, V)], (3,))
    with pytest.raises(FileNotFoundError, match="write_entries"):
        streaming.complete(tmp_path / "nowhere", rank=2)
    with pytest.raises(ValueError, match="block must be a positive integer"):
        streaming.StreamedCompletion(files, block=0)
    with pytest.raises(ValueError, match="rank must lie between"):
        streaming.complete(files, rank=25)
    streamed = streaming.StreamedCompletion(files)
    batch = lr.BurerMonteiro.random(SHAPE, 2, np.random.default_rng(0), (3,))
    with pytest.raises(ValueError, match="single points"):
        lr.solve(streamed, batch, lr.ALS())
    shutil.rmtree(files.folder)
