"""A training step of a model, timed and weighed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["Step", "take_turns"]

# Methods between two steps of the reference.
CLOSE = 6


class Step:
    """A training step of one model: forward, backward and AdamW, timed and weighed."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]):
        self.model, self.batch = model.train(), batch
        trained = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.cuda = next(model.parameters()).is_cuda

    def __call__(self) -> None:
        self.loss().backward()
        self.update()

    def update(self) -> None:
        """Of what is trained, by its gradients."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        """Of the next token, through input embeddings that ask for a gradient, so that the floor has a backward."""
        embedded = self.model.get_input_embeddings()(self.batch["input_ids"]).detach().requires_grad_()
        labels, mask = self.batch["input_ids"], self.batch["attention_mask"]
        return self.model(inputs_embeds=embedded, attention_mask=mask, labels=labels, use_cache=False).loss

    def seconds(self) -> float:
        """Of one step: process time on a CPU, elapsed time between events on a GPU."""
        if not self.cuda:
            begin = time.process_time()
            self()
            return time.process_time() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def saved(self) -> int:
        """Bytes of the distinct storages that autograd keeps for backward, without parameters and buffers."""
        own = {_storage(t) for t in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
                if _storage(part) not in own:
                    kept[_storage(part)] = part.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        total = sum(kept.values())
        loss.backward()
        self.model.zero_grad(set_to_none=True)
        return total

    def peak(self) -> int | None:
        """Most bytes allocated on the GPU in a step; None on a CPU."""
        if not self.cuda:
            return None
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated()

    def held(self) -> list[Tensor]:
        """Parameters, buffers and states of the optimizer, once there was a step."""
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        return [*self.model.parameters(), *self.model.buffers(), *(t for state in states for t in state.values())]

    def gradients(self) -> int:
        """Bytes of the gradients of all that is trained."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    def resident(self) -> int:
        """Bytes of what is held, and of gradients."""
        return self.gradients() + sum({_storage(t): t.untyped_storage().nbytes() for t in self.held()}.values())


def _storage(tensor: Tensor) -> int:
    """A name for the memory of a tensor, also where it has no numbers and so no address."""
    return tensor.untyped_storage()._cdata


def take_turns(
    steps: Mapping[str, Step], reference: str, rounds: int, seed: int = 0
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every round but the first, which warms up, and their ratios to the reference.

    The order is random in every round. A ratio is to the mean of the reference's steps before and after, a few methods
    apart, so that a machine that is slower for a while is so for both.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for round_ in range(rounds + 1):
        random.Random(1000 * seed + round_).shuffle(order)
        before = steps[reference].seconds()
        for begin in range(0, len(order), CLOSE):
            found = {name: steps[name].seconds() for name in order[begin : begin + CLOSE]}
            after = steps[reference].seconds()
            for name, elapsed in found.items() if round_ else ():
                seconds[name].append(elapsed)
                ratios[name].append(2 * elapsed / (before + after))
            before = after
    return seconds, ratios
