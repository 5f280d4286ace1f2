"""Cost of adapters: a training step and its memory, and adapt, start, merge, save and load, ours against PEFT's.

Run ``python benchmarks/adapters.py``; rows go to ``benchmarks/results/adapters-*.json``. On a GPU (``--device
cuda``) the model has the shapes of Llama-3.1-8B in bfloat16, with one sequence of 1024 tokens.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before torch: one thread, and process time, so that ratios hold
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import shlex
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, table, write_rows
from torch import nn

import llm_bridge as lb
from llm_bridge.recipes.shared import rasa_of
from studies.overhead.models import LAYERS, clone, llama, tokens
from studies.overhead.step import Step, take_turns

COMMAND = "python benchmarks/adapters.py"
Method = Callable[[nn.Module], nn.Module]


def ours(name: str, dropout: float = 0.0, recipe: Any = None, rank: int = 8) -> Method:
    """One of our recipes; data-driven starts see one batch."""

    def attach(model):
        chosen = lb.recipe(recipe or name)
        batch = [tokens(model)] if chosen.init.needs else None
        return lb.adapt(model, chosen, rank=rank, dropout=dropout, calibration=batch)

    return attach


def peft(kind: str, **settings: Any) -> Method:
    """A method of PEFT on the same layers."""

    def attach(model):
        import peft as library

        config = getattr(library, f"{kind}Config")
        return library.get_peft_model(model, config(target_modules=LAYERS, **settings))

    return attach


# our recipe -> PEFT's form of the same method
PEERS: dict[str, Method] = {
    "lora": peft("Lora", r=8, lora_alpha=8),
    "lora dropout 0.1": peft("Lora", r=8, lora_alpha=8, lora_dropout=0.1),
    "rslora": peft("Lora", r=8, lora_alpha=8, use_rslora=True),
    "dora": peft("Lora", r=8, lora_alpha=8, use_dora=True),
    "pissa": peft("Lora", r=8, lora_alpha=8, init_lora_weights="pissa"),
    "olora": peft("Lora", r=8, lora_alpha=8, init_lora_weights="olora"),
    "adalora": peft("AdaLora", init_r=8, target_r=4, lora_alpha=8, total_step=10**6),
    "hira": peft("Hira", r=8),
    "vera": peft("Vera", r=8),
    "loha": peft("LoHa", r=8, alpha=8),
    "loha r4": peft("LoHa", r=4, alpha=4),  # the parameters of LoRA
    "lokr": peft("LoKr", r=8, alpha=8),
    "gralora": peft("Gralora", r=8, gralora_k=2),
    "delora": peft("Delora", r=8),
    "vera r256": peft("Vera", r=256),
    "randlora": peft("RandLora", r=8),
    "randlora r32": peft("RandLora", r=32),
    "fourierft": peft("FourierFT", n_frequency=1000),
    "oft": peft("OFT", r=0, oft_block_size=8),
    "oft r32": peft("OFT", r=0, oft_block_size=32),
    "boft": peft("BOFT", boft_block_size=8, boft_n_butterfly_factor=2),
    "boft r4": peft("BOFT", boft_block_size=4, boft_n_butterfly_factor=2),
    "hra": peft("HRA", r=8),
    "shira": peft("Shira", r=8),
}
# our recipes at other ranks than 8, by the name that the benchmark gives them
RANKS = {
    "vera r256": ("vera", 256), "denselora r64": ("denselora", 64), "randlora r32": ("randlora", 32),
    "oft r32": ("oft", 32), "boft r4": ("boft", 4),
}  # fmt: skip


def methods(names: list[str]) -> dict[str, Method]:
    """The floor, our recipes and PEFT's counterparts of those that have one."""
    extra = {
        "lora dropout 0.1": ours("lora", dropout=0.1),
        "dora recompute": _recomputing,
        "dora recompute q_proj": ours("dora", recipe=_dora_with(("q_proj",))),
        "dora recompute all": ours("dora", recipe=_dora_with(True)),
        "loha r4": ours("loha", rank=4),
        "rasa of the model": lambda model: lb.adapt(model, rasa_of(model), rank=8),
        **{name: ours(recipe, rank=rank) for name, (recipe, rank) in RANKS.items()},
    }
    found: dict[str, Method] = {"frozen": lambda model: model.requires_grad_(False)}
    for name in [*lb.recipes(), *extra]:
        if names and name not in names and name != "lora":
            continue
        found[name] = extra.get(name) or ours(name)
        if name in PEERS:
            found[f"peft {name}"] = PEERS[name]
    return found


def _dora_with(recompute: bool | tuple[str, ...]) -> lb.Recipe:
    return lb.recipe("dora").but("dora", combine=lb.MagnitudeDirection(recompute=recompute))


def _recomputing(model: nn.Module) -> nn.Module:
    """DoRA that computes again the outputs which nothing else keeps."""
    paths = lb.unkept(model, lambda: model(**tokens(model), use_cache=False))
    return lb.adapt(model, _dora_with(paths), rank=8)


def step_cost(device: str, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Time and kept bytes of a training step of every method, relative to our LoRA, PEFT's LoRA and the floor."""
    base = llama(device)
    steps, attach = {}, {}
    for name, method in methods(names).items():
        begin = time.process_time()
        model = method(clone(base))
        attach[name] = time.process_time() - begin
        steps[name] = Step(model, tokens(model))
    seconds, ratios = take_turns(steps, "lora", rounds)
    median = {name: statistics.median(values) for name, values in ratios.items()}
    saved = {name: step.saved() for name, step in steps.items()}
    extra = {name: saved[name] - saved["frozen"] for name in steps}
    return [
        {
            "method": name, "trainable": step.trainable, "attach_s": attach[name],
            "step_ms": 1e3 * statistics.median(seconds[name]), "T": median[name],
            "T_peft_lora": median[name] / median["peft lora"],
            "T_floor": median[name] / median["frozen"],
            "T_peft_same": _ratio(median, name), "saved_MiB": saved[name] / 2**20,
            "B": extra[name] / extra["lora"], "B_peft_same": _ratio(extra, name), "peak_bytes": step.peak(),
            "rounds": rounds, "device": device,
        }
        for name, step in steps.items()
    ]  # fmt: skip


def _ratio(values: dict[str, Any], name: str) -> float | None:
    """Ours over PEFT's same method, where there is one."""
    other = values.get(f"peft {name}")
    return values[name] / other if other else None


# adapt, start, merge, save, load ---------------------------------------------------------------------------------


def life_cost(device: str, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Seconds of the other moments in the life of an adapter, ours and PEFT's."""
    base = llama(device)
    rows = []
    for name in [n for n in ("lora", "pissa", "dora", "olora") if n in lb.recipes() and (not names or n in names)]:
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for who, values in (("ours", _life_ours(base, name)), ("peft", _life_peft(base, name))):
                for moment, seconds in values.items():
                    samples.setdefault(f"{who} {moment}", []).append(seconds)
        median = {key: statistics.median(values) for key, values in samples.items()}
        for moment in ("adapt", "merge", "save", "load"):
            mine, theirs = median[f"ours {moment}"], median[f"peft {moment}"]
            rows.append({
                "recipe": name, "moment": moment, "ours_s": mine, "peft_s": theirs, "peft_over_ours": theirs / mine,
                "device": device,
            })  # fmt: skip
    if not names or "lora" in names:
        rows.append({"recipe": "lora", **_combination_cost(device, rounds), "device": device})
    return rows


def _combination_cost(device: str, rounds: int, width: int = 2048, rank: int = 16) -> dict[str, Any]:
    """Seconds to add up two adapters of one layer, exactly; PEFT by the singular values of the formed sum."""
    samples = [_combined_once(device, width, rank, round_) for round_ in range(min(rounds, 5))]
    ours, theirs = (statistics.median(sample[who] for sample in samples) for who in ("ours", "peft"))
    moment = f"combine two of rank {rank}, width {width}"
    return {"moment": moment, "ours_s": ours, "peft_s": theirs, "peft_over_ours": theirs / ours}


def _combined_once(device: str, width: int, rank: int, seed: int) -> dict[str, float]:
    import peft as library

    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(width, width, bias=False, device=device)).requires_grad_(False)
    mine, names, weights = clone(layers), ["one", "two"], [0.7, 0.3]
    config = library.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=False)
    other: Any = library.get_peft_model(clone(layers), config, "one")
    other.add_adapter("two", config)
    for name in names:
        lb.adapt(mine, "lora", rank=rank, targets=["0"], name=name)
        source: Any = other.base_model.model[0]
        adapter: Any = lb.adapted(mine)["0"].adapter(name)
        adapter.left.data.copy_(source.lora_B[name].weight)
        adapter.right.data.copy_(source.lora_A[name].weight.mT)
    seconds: dict[str, float] = {}
    _timed(lambda: lb.combine(mine, names, weights), seconds, "ours")
    _timed(lambda: other.add_weighted_adapter(names, weights, "mix", "svd", 2 * rank), seconds, "peft")
    _same_update(mine, other)
    return seconds


def _same_update(mine: nn.Module, other: Any) -> None:
    """Two costs are worth comparing only for the same result."""
    layer = other.base_model.model[0]
    ours = lb.adapted(mine)["0"].adapter("mix").update()
    theirs = layer.scaling["mix"] * layer.lora_B["mix"].weight @ layer.lora_A["mix"].weight
    gap = float((ours - theirs).norm() / theirs.norm())
    if gap > 1e-4:
        raise RuntimeError(f"the combined updates differ by {gap:.1e}")


def _timed(function: Callable[[], Any], into: dict[str, float], moment: str) -> Any:
    cuda = torch.cuda.is_available()
    begin = time.perf_counter() if cuda else time.process_time()
    result = function()
    if cuda:
        torch.cuda.synchronize()
    into[moment] = (time.perf_counter() if cuda else time.process_time()) - begin
    return result


def _life_ours(base: nn.Module, name: str) -> dict[str, float]:
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, other = clone(base), clone(base)
        _timed(lambda: lb.adapt(model, name, rank=8, targets=LAYERS), seconds, "adapt")
        _timed(lambda: lb.save(model, folder), seconds, "save")
        _timed(lambda: lb.merge(model), seconds, "merge")
        _timed(lambda: lb.load(other, folder), seconds, "load")
    return seconds


def _life_peft(base: nn.Module, name: str) -> dict[str, float]:
    from peft import PeftModel

    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        start, other = clone(base), clone(base)
        model = _timed(lambda: PEERS[name](start), seconds, "adapt")
        _timed(lambda: model.save_pretrained(folder), seconds, "save")
        _timed(lambda: model.merge_adapter(safe_merge=True), seconds, "merge")
        _timed(lambda: PeftModel.from_pretrained(other, folder), seconds, "load")
    return seconds


def main() -> None:
    """Run the parts asked for, print their tables and store their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["step", "life"], help="step, life")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of every method, in random order")
    parser.add_argument("--methods", nargs="*", default=[], help="only these; other stored rows stay")
    parser.add_argument("--quick", action="store_true", help="three rounds; prints and stores nothing")
    args = parser.parse_args()
    jobs = {"step": step_cost, "life": life_cost}
    unknown = sorted(set(args.parts) - set(jobs))
    if unknown:
        parser.error(f"unknown parts {unknown}; there are {', '.join(jobs)}")
    torch.set_num_threads(1)
    for part in args.parts:
        rows = jobs[part](args.device, 3 if args.quick else args.rounds, args.methods)
        print(f"\n{part}\n{table(rows, [k for k in rows[0] if k not in ('device', 'rounds')])}\n", flush=True)
        if not args.quick:
            name = f"adapters-{part}" + ("" if args.device == "cpu" else f"-{args.device}")
            command = f"{COMMAND} {part} --device {args.device} --rounds {args.rounds}"
            if args.methods and part == "step":
                command, rows = _renewed(name, command, rows, args.methods)
            elif args.methods:
                command += f" --methods {' '.join(map(shlex.quote, args.methods))}"
            print(write_rows(name, rows, command).name)


def _renewed(
    name: str, command: str, rows: list[dict[str, Any]], methods: list[str]
) -> tuple[str, list[dict[str, Any]]]:
    """The stored rows with those of some methods replaced; every ratio is to the LoRA of its own run."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"{command} --methods {' '.join(map(shlex.quote, methods))}", rows
    stored = json.loads(path.read_text())
    wanted = {*methods, *(f"peft {method}" for method in methods)}
    new = {row["method"]: row for row in rows if row["method"] in wanted}
    kept = [new.pop(row["method"], row) for row in stored["rows"]]
    return stored["command"], [*kept, *new.values()]


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main()
