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

STEPS = 3


def batch(rank, step):
    """Every rank's examples of a step; rank 1 has fewer."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(6 - rank % 2, 5, generator=generator)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))


def train(net, optimizer, rank, steps, seen=None):
    for step in range(steps):
        x = batch(rank, step)
        output = net(x)
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if seen is not None:
            seen.append(x)


def watch(net, seen):
    """Copies of every activation of the first linear layer and of its gradient, taken by the worker's own hooks."""

    def forward(module, args, output):
        seen["activation"].append(output.detach().clone())
        output.register_hook(lambda gradient: seen["activation_grad"].append(gradient.detach().clone()))

    return net.register_forward_hook(forward)


def main(folder, case):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
    rank = dist.get_rank()
    net = model()
    first = net[0]
    whole = {"plain": lambda m: m, "fsdp": fully_shard}.get(case.split("-")[0], DistributedDataParallel)(net)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    ranks = "separate" if case.endswith("separate") else "merge"
    record = nullcontext() if case.endswith("bare") else covshift.record(whole, folder / "run", every=1, ranks=ranks)
    seen = {"activation": [], "activation_grad": []}
    steps = STEPS - rank % 2 if case == "plain-fewer" else STEPS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with record:
            handle = watch(first, seen)
            if case == "plain-death":
                train(whole, optimizer, rank, 1)
                if rank == 1:
                    os._exit(0)
                train(whole, optimizer, rank, 2)
            else:
                train(whole, optimizer, rank, steps)
            handle.remove()
    messages = [str(one.message) for one in caught if issubclass(one.category, covshift.CovshiftWarning)]
    weights = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in whole.named_parameters()}
    torch.save({"seen": seen, "warnings": messages, "weights": weights}, folder / f"rank{rank}.pt")
    if case != "plain-death":
        dist.barrier()
    # Without gloo's own teardown, which once hung in a run that recorded nothing.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
