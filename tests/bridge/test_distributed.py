"""Two processes: data parallel equals accumulated gradients, sharded factors equal whole ones, states travel."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

import llm_bridge as lb
from llm_bridge.__main__ import main
from llm_bridge.distributed import unwrapped
from tests.bridge.small_files import save_llama, save_rows

RECIPES = ("lora", "polar", "reflora", "lora-fa", "dora")
EXPERTS = ("moe-lora", "goat", "hydralora", "moka", "moa", "adamole", "mlore", "sira", "mtlora", "multilora")


def model(name):
    """Two blocks of equal layers, and one odd shape that two processes share unevenly."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 8), torch.nn.Tanh()] * 1
    more = [torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)]
    return lb.adapt(torch.nn.Sequential(*layers, *more), name, rank=3, targets=["0", "2", "4", "6"])


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 2, 4, 8, generator=generator), torch.randn(5, 2, 4, 5, generator=generator)


def step(net, opt, x, y, pieces=1):
    opt.zero_grad()
    for a, b in zip(x, y, strict=True):
        (((net(a) - b) ** 2).mean() / pieces).backward()
    opt.step()


def reference(name, steps=5):
    """One process that accumulates the gradients of both batches."""
    net = model(name)
    opt = lb.optimizer(net, lr=1e-2, weight_decay=0.01)
    x, y = data()
    for i in range(steps):
        step(net, opt, x[i], y[i], pieces=2)
    return net


def full(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


# what the two processes do --------------------------------------------------------------------------------------


def replicated(rank, name, folder):
    net = torch.nn.parallel.DistributedDataParallel(model(name))
    opt = lb.optimizer(net, lr=1e-2, weight_decay=0.01)
    x, y = data()
    for i in range(5):
        step(net, opt, x[i][rank : rank + 1], y[i][rank : rank + 1])
    torch.save([full(p) for p in net.module.parameters()], f"{folder}/{name}-{rank}.pt")


def shard(name) -> Any:
    from torch.distributed.fsdp import fully_shard

    net = model(name)
    for index in (0, 2, 4, 6):
        fully_shard(net[index])
    fully_shard(net)
    return net, lb.optimizer(net, lr=1e-2, weight_decay=0.01)


def sharded(rank, name, folder):
    from torch.distributed.tensor import distribute_tensor

    net, opt = shard(name)
    x, y = data()
    for i in range(5):
        if i == 3:  # a fresh copy continues from the state of the first three steps
            saved = [full(p) for p in net.parameters()], copy.deepcopy(opt.state_dict())
            net, opt = shard(name)
            with torch.no_grad():
                for p, value in zip(net.parameters(), saved[0], strict=True):
                    p.copy_(distribute_tensor(value, p.device_mesh, p.placements))
            opt.load_state_dict(saved[1])
        step(net, opt, x[i][rank : rank + 1], y[i][rank : rank + 1])
    torch.save([full(p) for p in net.parameters()], f"{folder}/{name}-{rank}.pt")


def checkpointed(rank, name, folder):
    """Through the functions of torch that gather and scatter states of models and optimizers."""
    from torch.distributed.checkpoint import state_dict as dcp

    net, opt = shard(name)
    x, y = data()
    for i in range(5):
        if i == 3:
            whole = dcp.StateDictOptions(full_state_dict=True)
            kept = dcp.get_state_dict(net, opt, options=whole)
            sent: list[Any] = [copy.deepcopy(kept) if rank == 0 else None]
            dist.broadcast_object_list(sent)
            net, opt = shard(name)
            dcp.set_state_dict(net, opt, model_state_dict=sent[0][0], optim_state_dict=sent[0][1], options=whole)
        step(net, opt, x[i][rank : rank + 1], y[i][rank : rank + 1])
    torch.save([full(p) for p in net.parameters()], f"{folder}/{name}-{rank}.pt")


def process(rank, port, work, names, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name in names:
        work(rank, name, folder)
    dist.barrier()
    dist.destroy_process_group()
    # Everything is in files. Threads of gloo may still hold tensors, and to free those while the interpreter
    # shuts down aborts the process now and then: leave without that shutdown.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def spawn(work, names, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (port, work, names, str(folder)), nprocs=2)


def check(names, folder):
    for name in names:
        expected = reference(name).parameters()
        ours = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for e, a, b in zip(expected, *ours, strict=True):
            assert torch.equal(a, b)
            assert torch.allclose(e, a, atol=2e-6), (name, (e - a).abs().max())


@pytest.mark.slow
def test_two_replicas_are_accumulated_gradients(tmp_path):
    spawn(replicated, RECIPES, tmp_path)
    check(RECIPES, tmp_path)


@pytest.mark.slow
def test_experts_of_two_replicas_are_those_of_accumulated_gradients(tmp_path):
    """Also those that no token of one process has chosen: all experts of a layer are one array."""
    idle = lb.adapted(model("moe-lora"))["0"].adapter("default").point()
    weights = [idle.weights(batch[:1].flatten(0, -2)) for batch in data()[0]]
    assert any((w.detach().sum(0) == 0).any() for w in weights)
    spawn(replicated, EXPERTS, tmp_path)
    check(EXPERTS, tmp_path)


@pytest.mark.slow
def test_sharded_factors_move_as_whole_ones(tmp_path):
    spawn(sharded, RECIPES, tmp_path)
    check(RECIPES, tmp_path)


@pytest.mark.slow
def test_states_travel_through_distributed_checkpoints(tmp_path):
    spawn(checkpointed, RECIPES, tmp_path)
    check(RECIPES, tmp_path)


def test_wrappers_are_seen_through():
    net = model("reflora")
    assert unwrapped(torch.compile(net, backend="eager")) is net
    assert len(lb.optimizer(torch.compile(net, backend="eager")).buckets) == 3


@pytest.mark.slow
@pytest.mark.parametrize("task, recipe", [("classification", "reflora"), ("causal-lm", "polar")])
def test_the_command_line_under_torchrun(task, recipe, tmp_path):
    """Two processes of the launcher write one run: that of one process which accumulates two batches a step."""
    model, rows = save_llama(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl")
    words = f"finetune --task {task} --model {model} --data {rows} --recipe {recipe} --rank 2 --batch-size 4 --steps 4 "
    words += "--every 2 --cpu --no-progress"
    assert main([*words.split(), "--accumulate", "2", "--out", str(tmp_path / "one")]) == 0
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m llm_bridge"
    command = [sys.executable, *launch.split(), *words.split(), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_run(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in two.logged] == [1, 2, 3, 4]
    for a, b in zip(one.logged, two.logged, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # the same examples in every step
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert one.tensors.keys() == two.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.allclose(tensor, two.tensors[key], atol=1e-5), (key, (tensor - two.tensors[key]).abs().max())
    if task == "classification":
        assert all(row["loss"] < 1 for row in one.logged)  # near log 2: a mean over the accumulated batches


class Run(NamedTuple):
    """What a run has left: the rows of its steps, and the arrays of its adapter."""

    logged: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]


def read_run(folder: Path) -> Run:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Run([row for row in rows if "loss" in row], load_file(folder / "adapter/adapter.safetensors"))
