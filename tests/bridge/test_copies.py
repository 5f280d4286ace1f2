"""Copies of adapted models, by deepcopy and by pickle, compute the same and learn on their own."""

from __future__ import annotations

import copy
import pickle

import torch

import llm_bridge as lb

from .test_recipes import EVERY, adapt, train


@EVERY
def test_a_copy_computes_the_same_and_learns_on_its_own(name, mlp, task):
    adapt(mlp, name, task)
    train(mlp, task, 2)
    with torch.no_grad():
        before = mlp.eval()(task[0])
    for twin in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert list(lb.setups(twin)) == ["default"]
        with torch.no_grad():
            assert torch.equal(twin(task[0]), before)
        train(twin, task, 2)
        with torch.no_grad():
            assert torch.equal(mlp(task[0]), before)
            assert not torch.equal(twin(task[0]), before)
