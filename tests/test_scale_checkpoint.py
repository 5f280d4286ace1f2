"""Checkpoints belong to one run and one tolerance, whatever library it is in, and entries to one kind of numbers."""

import json

import numpy as np
import pytest
import torch

import lowrank_sp as lr
from lowrank_sp import streaming

SHAPE = (30, 24)


def instance(dtype=float):
    problem = lr.synthetic.completion(*SHAPE, rank=3, observed=0.6, condition_number=5.0, seed=0)
    values = problem.values.astype(dtype)
    return lr.MatrixCompletion(problem.pattern.rows, problem.pattern.cols, values, SHAPE)


def run(problem, **settings):
    start = lr.inits.spectral(problem, lr.BurerMonteiro, 3)
    return lr.solve(problem, start, lr.ALS(), **settings)


def interrupt(iteration, point, loss):
    if iteration == 4:
        raise KeyboardInterrupt


def edited(path, change):
    """Replace the facts of a checkpoint by what ``change`` makes of them."""
    with np.load(path) as file:
        arrays = dict(file)
    facts = change(json.loads(arrays.pop("facts").tobytes()))
    np.savez(path, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_runs_resume(tmp_path, dtype):
    there = instance()
    values = torch.as_tensor(there.values, dtype=dtype)
    rows, cols = (torch.as_tensor(a, dtype=torch.int64) for a in (there.pattern.rows, there.pattern.cols))
    problem, kept = lr.MatrixCompletion(rows, cols, values, SHAPE), tmp_path / "run.npz"
    whole = run(problem, tol=1e-6)
    assert whole.nit > 4
    assert run(problem, tol=1e-6, checkpoint=kept, callback=interrupt).nit == 4
    resumed = run(problem, tol=1e-6, checkpoint=kept)
    assert resumed.nit == whole.nit
    assert all(torch.equal(a, b) for a, b in zip(resumed.point.arrays(), whole.point.arrays(), strict=True))


def test_a_finer_tolerance_continues_what_had_converged(tmp_path):
    problem, kept = instance(), tmp_path / "run.npz"
    coarse = run(problem, tol=1e-3, checkpoint=kept)
    assert coarse.success
    finer = run(problem, tol=1e-8, checkpoint=kept)
    assert finer.nit > coarse.nit
    assert np.array_equal(finer.history["loss"], run(problem, tol=1e-8).history["loss"])


def test_a_start_that_another_machine_rounds_otherwise_is_the_same_run(tmp_path):
    problem, kept = instance(), tmp_path / "run.npz"
    run(problem, max_iter=3, checkpoint=kept)

    def scaled(factor):
        def change(facts):
            facts["history"]["loss"][0] *= factor
            return facts

        return change

    edited(kept, scaled(1 + 1e-12))
    assert run(problem, max_iter=5, checkpoint=kept).nit == 5
    edited(kept, scaled(1.001))
    with pytest.raises(ValueError, match="belongs to another run: its first loss is"):
        run(problem, max_iter=6, checkpoint=kept)


def test_a_checkpoint_needs_its_folder_and_all_of_its_facts(tmp_path):
    problem, kept = instance(), tmp_path / "run.npz"
    with pytest.raises(FileNotFoundError, match=r"needs the folder .*nowhere, which does not exist"):
        run(problem, checkpoint=tmp_path / "nowhere" / "run.npz")
    run(problem, max_iter=3, checkpoint=kept)
    edited(kept, lambda facts: {key: value for key, value in facts.items() if key != "solver"})
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        run(problem, checkpoint=kept)


def test_entries_are_numbers_that_their_type_holds(tmp_path):
    problem = instance()
    rows, cols, values = problem.pattern.rows, problem.pattern.cols, problem.values
    with pytest.raises(TypeError, match="values must be real, got complex128"):
        streaming.write_entries(tmp_path / "complex", [(rows, cols, 1j * values)], SHAPE)
    with pytest.raises(ValueError, match="are too large for float32; divide them, or take float64"):
        streaming.write_entries(tmp_path / "large", [(rows, cols, 1e60 * values)], SHAPE, dtype="float32")
    assert not list(tmp_path.iterdir())
    files = streaming.write_entries(tmp_path / "entries", [(rows, cols, values)], SHAPE)
    assert f"{values.size} float64 entries of a matrix {SHAPE}" in repr(files)
    assert streaming.complete(files, 3).choice.startswith("rank 3 as given; BurerMonteiro, spectral start -> ALS")
