"""One rank of a small DDP run with a probe of its own examples, started by torchrun. Usage: worker.py FOLDER CASE.

Deliberately no test: ``test_ranks.py`` starts it.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import covshift


def main(folder, case):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    whole = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(50 + rank)
    examples = torch.randn(4 + rank, 5, generator=generator)
    probe = (examples, lambda output: output.square().mean())
    record = (
        nullcontext()
        if case == "bare"
        else covshift.record(whole, folder / "run", every=1, ranks=case, probe=probe, probe_every=2, probe_mode="train")
    )
    outputs = {}
    with record:
        for step in range(4):
            if step % 2 == 0:
                outputs[step] = net[0](examples).detach()
            whole(torch.randn(6, 5, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.save({"outputs": outputs, "state": whole.state_dict()}, folder / f"rank{rank}.pt")
    dist.barrier()
    # Without gloo's own teardown, which once hung in a run that recorded nothing.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
