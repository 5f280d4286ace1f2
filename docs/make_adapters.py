"""Write docs/adapters.md: the cost of adapters and of optimizer steps, from the stored rows of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGET = Path(__file__).parent / "adapters.md"

STEP = {
    "method": "method", "trainable": "trainable", "T": "time / LoRA", "T_peft_lora": "time / PEFT's LoRA",
    "T_floor": "time / frozen", "B": "bytes / LoRA", "T_peft_same": "time / PEFT's same",
    "B_peft_same": "bytes / PEFT's same",
}  # fmt: skip
LIFE = {
    "recipe": "recipe", "moment": "moment", "ours_s": "ours, s", "peft_s": "PEFT, s", "peft_over_ours": "PEFT / ours",
}  # fmt: skip
OPTIMIZER = {
    "optimizer": "optimizer", "step_ms": "ms", "over_fused_adamw": "/ fused AdamW",
    "peft_riemannian_over_this": "PEFT's Riemannian / this", "eigh_loop_over_this": "eigh loop / this",
}  # fmt: skip
COUNT = {
    "optimizer": "optimizer", "calls": "calls", "passes": "passes", "gflop": "Gflop", "least_ms": "least ms, H200",
    "least_over_fused_adamw": "/ fused AdamW",
}  # fmt: skip

FLOORS = {
    "method": "method", "flops": "flops / LoRA", "T_least": "least time", "B_least_T": "its bytes",
    "B_target": "bytes allowed", "T_within": "least time within", "T_target": "time allowed", "T": "time measured",
    "B": "bytes measured", "T_gpu": "least time, GPU", "T_gpu_half": "in half precision",
    "T_gpu_target": "time allowed, GPU",
}  # fmt: skip

FLOORS_TEXT = """
All beside LoRA of rank 8, for the models and tokens of the step on a CPU and of the one on a GPU. Every form has a few
orders of products in which its step can be computed; of each the flops and the numbers that it keeps for backward are
counted from the shapes (`studies/overhead/schedules.py`; a test compares them with the counter of torch), and every
layer takes the order with fewest flops: of all, or of those with which the layers of a block together keep no more
than allowed. Layers that see one input share what they can.

- *Flops* are those of all products of a step, the frozen model's own included.
- *Least time* is the measured time of the frozen model, and the products of the form at the rate of flops that the
  frozen model as a whole has: no pass over memory, no small operation, nothing of the optimizer. LoRA itself is
  measured above it by what these take. A time allowed below it needs products that are faster than those of the
  frozen model.
- *Least time, GPU* lets every product and pass take what its flops or its bytes take at the rates printed for an H200
  in bfloat16, whichever is more; matrices of the size of a layer that are formed are written once and read once.
  It is a ratio of these times, attention included and other passes not.
- *In half precision* the change of a weight that is formed has a product of its own in the forward pass: most of a
  small change would be lost in a sum that is rounded to the type of the weight. An operation for every step of the
  formula passes more often over such matrices than once: the part `counted` of the study `overhead` counts what ours
  pass over.

What follows, at these rates: VeRA with 256 columns has no order that takes 1.3 and keeps no more than twice LoRA's
bytes. HiRA, SineLoRA and LoRAN form matrices of the size of the layers, which costs a GPU with 1024 tokens about as
much as the third product does, as long as they are not formed inside of the products.
"""

STEP_TEXT = """
A small Llama (hidden 512, MLP 1408, 4 layers, 28 adapted layers, rank 8) in single precision, 2 x 256 tokens, one
thread. Time is process time of forward, backward and AdamW, all methods taking turns in random order: the median
over the rounds of its ratio to the steps of our LoRA just before and after. Bytes are those of the distinct storages
that autograd keeps for backward beyond what the frozen model keeps,
without parameters and buffers, so that LoRA's are the inputs of its layers. PEFT is the reference, method by method.

Where a number has a bound:

- DoRA needs, for the gradient of its magnitude, every output before it is rescaled. The outputs that nothing else
  keeps are those of the query, key, output and down projections: 4 x 512 numbers a token on top of the
  3 x 512 + 1408 - 512 = 2432, and 7 x 8 channels, that LoRA keeps (the input of the output projection is kept by the
  attention anyway), so that keeping them costs at least 1 + 2048 / 2488 = 1.82 of LoRA's bytes.
  `MagnitudeDirection(recompute=...)` computes outputs again instead, of all layers or of those that it names: three
  products of the size of such a layer in place of two. `dora recompute` names those that `lb.unkept` finds.
- HiRA's weight is a new matrix of full rank in every step: one product of its size for the output, one for the
  gradient of the input and one for the gradient of the matrix, 2kmn operations each for k tokens, against two for a
  frozen layer, so that a HiRA layer costs at least 1.5 frozen ones. SineLoRA and LoRAN need the same three products,
  and of every entry a sine forward, and a sine and a cosine backward.
- `rasa` has the pool of a model of 32 layers: here rank 39 instead of 8, and 4.9 times the products of LoRA.
  `rasa of the model` has a pool for the four layers that there are, and the parameters of LoRA.
- Dropout keeps its mask as bits and a dropped copy, shared by the layers that share an input. The dropped copy of the
  attention's output is the one tensor that LoRA without dropout does not keep.
"""

OPTIMIZER_TEXT = """
In units of the bytes of the factors, fused AdamW reads parameter, gradient and two moments and writes all but the
gradient: 7. ScaledGD needs 10: Gram matrices read once more, and a product reads and writes. By bytes alone it could
cost 1.4 of fused AdamW; the table shows what it does cost on a CPU, where thin products take their time too.
"""


COUNT_TEXT = """
A step as a GPU takes it, on tensors without values, when moments exist. *Calls* are operations of torch that read or
write memory: those over many tensors (the fused kernel, stacking, copies) are several kernels on a GPU, all others
one. *Passes* are bytes read and written over the bytes of the factors, 84 MB. *Least ms* lets every call take what its
flops or its bytes take at the rates printed for an H200, one after the other and without delay.

A call of the library reads its operands and writes its result. ScaledGD (`riemannian`) and RefLoRA stack factors and
gradients (4 passes), read the factors for their Gram matrices (1), multiply the gradients (2) and take the fused step
(7): 14 and a little, twice fused AdamW. LoRA-Pro also reads gradients for a product with the factors (1) and adds a
multiple of the factors (3). PoLAR does so for both factors, and carries its moments to the new tangent space (5).
SteLLA projects three times, on the way in, out and for the moments, and retracts; LoRA-RITE turns its moments. Only
kernels written for a rule, which form products of thin matrices while they read them, could do with less: ScaledGD
with 8 passes, the factors once and then the fused step.
"""


def content(name: str) -> dict[str, Any] | None:
    """A stored result, or None where nobody has run the benchmark."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def section(title: str, name: str, columns: dict[str, str], text: str = "") -> str:
    """A table of rows with the command that makes them and the machine."""
    stored = content(name)
    if stored is None:
        return ""
    lines = [f"| {' | '.join(columns.values())} |", f"|{'|'.join(['---'] * len(columns))}|"]
    lines += [f"| {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in stored["rows"]]
    machine = stored["machine"]
    source = f"`{stored['command']}` on {machine['processor']}, torch {machine['versions']['torch']}."
    return "\n".join([f"## {title}", text, source, "", *lines, ""])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Write the page."""
    parts = ["# What adapters cost", "", "Generated by `docs/make_adapters.py` from `benchmarks/results/`.", ""]
    for device, where in (("", "on a CPU"), ("-cuda", "on a GPU")):
        text, passes = (STEP_TEXT, OPTIMIZER_TEXT) if device == "" else ("", "")
        parts.append(section(f"A training step, {where}", f"adapters-step{device}", STEP, text))
        if device == "":
            parts.append(section("What the algebra allows", "floors", FLOORS, FLOORS_TEXT))
        parts.append(section(f"Other moments, {where}", f"adapters-life{device}", LIFE))
        parts.append(
            section(f"An optimizer step over 224 layers, {where}", f"optimizers-step{device}", OPTIMIZER, passes)
        )
        if device == "":
            parts.append(section("An optimizer step over 224 layers, counted", "optimizers-count", COUNT, COUNT_TEXT))
    TARGET.write_text("\n".join(part for part in parts if part or part == "") + "\n")


if __name__ == "__main__":
    main()
