"""One rank of a small training run, started by torchrun; writes what it saw itself for the test to recount.

Usage: worker.py FOLDER CASE. Deliberately no test: the tests of the folder start it.
"""

import datetime
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import covshift

STEPS, LONG, PAUSED = 3, 12, 5


def batch(rank, step):
    """Every rank's examples of a step; rank 1 has fewer."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(6 - rank % 2, 5, generator=generator)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))


def train(net, optimizer, rank, steps, first=0, gathered=None, reduced=torch.mean):
    for step in range(first, steps):
        reduced(net(batch(rank, step)).square()).backward()
        before = None if gathered is None else (whole(net), whole(net, "grad"))
        optimizer.step()
        if gathered is not None:
            gathered.append((*before, whole(net)))
        optimizer.zero_grad()


def whole(net, what="data"):
    """Parameters, or their gradients, put together from the parts of all ranks."""
    tensors = {name: getattr(parameter, what) for name, parameter in net.named_parameters()}
    return {name: getattr(t, "full_tensor", lambda t=t: t)().detach().clone() for name, t in tensors.items()}


def evaluate(net, recorder, rank, step):
    """One rank's own evaluation, of the model without its wrapper, as others wait."""
    with torch.no_grad(), recorder.evaluation():
        net(batch(rank + 7, step))


def train_and_evaluate_alone(wrapped, net, optimizer, recorder, rank):
    """Rank 0 evaluates after two steps while the others wait for it, and rank 1 after the last."""
    train(wrapped, optimizer, rank, 2)
    if rank == 0:
        evaluate(net, recorder, rank, 2)
    dist.barrier()
    train(wrapped, optimizer, rank, LONG, first=2)
    if rank == 1:
        evaluate(net, recorder, rank, LONG)


def train_by_turns(net, recorder, rank):
    """Two optimizers end steps in turn; rank 1 pauses alone in a step that is due."""
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (net[0], net[2])]
    for step in range(LONG):
        with recorder.pause() if rank == 1 and step == PAUSED else nullcontext():
            train(net, optimizers[step % 2], rank, step + 1, first=step)
            net.zero_grad()


def watch(net, seen):
    """Copies of every activation of the first linear layer and of its gradient, taken by the worker's own hooks."""

    def forward(module, args, output):
        if not torch.is_grad_enabled():
            seen["evaluation"].append(output.detach().clone())
            return
        seen["activation"].append(output.detach().clone())
        output.register_hook(lambda gradient: seen["activation_grad"].append(gradient.detach().clone()))

    return net.register_forward_hook(forward)


def main(folder, case):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    rank = dist.get_rank()
    net = model()
    first = net[0]
    wrapped = {"plain": lambda m: m, "fsdp": fully_shard}.get(case.split("-")[0], DistributedDataParallel)(net)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    ranks = "separate" if case.endswith("separate") else "merge"
    reduction = "sum" if case.endswith("sum") else "mean"
    every = 5 if case.endswith("turns") else 1
    record = (
        nullcontext()
        if case.endswith("bare")
        else covshift.record(wrapped, folder / "run", every=every, ranks=ranks, loss_reduction=reduction)
    )
    seen = {"activation": [], "activation_grad": [], "evaluation": []}
    gathered = [] if case == "fsdp-merge" else None
    steps = STEPS - rank % 2 if case == "plain-fewer" else STEPS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record as recorder:
            handle = watch(first, seen)
            if case == "plain-death":
                train(wrapped, optimizer, rank, 1)
                if rank == 1:
                    os._exit(0)
                train(wrapped, optimizer, rank, 2)
            elif case.endswith("alone"):
                train_and_evaluate_alone(wrapped, net, optimizer, recorder, rank)
            elif case.endswith("turns"):
                train_by_turns(wrapped, recorder, rank)
            else:
                train(wrapped, optimizer, rank, steps, gathered=gathered, reduced=getattr(torch, reduction))
            handle.remove()
    messages = [str(one.message) for one in caught if issubclass(one.category, covshift.CovshiftWarning)]
    found = {"seen": seen, "warnings": messages, "weights": whole(wrapped), "gathered": gathered}
    torch.save(found, folder / f"rank{rank}.pt")
    if case != "plain-death":
        dist.barrier()
    # Without gloo's own teardown, which once hung in a run that recorded nothing.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
