"""What every process of tests/instrument/cases/test_distributed.py runs: train, recorded and not, and compare.

Run as ``python ranks.py WRAPPER RANK WORLD_SIZE MEETING_FILE``; prints one JSON object.
"""

import json
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import covshift

STEPS = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.norm, self.b = nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.norm(self.act(self.a(x))))


def wrapped(wrapper):
    torch.manual_seed(3)
    model = Net()
    if wrapper == "ddp":
        return DistributedDataParallel(model), model
    for part in (model.a, model.b, model):
        fully_shard(part)
    return model, model


def train(wrapper, rank, *, recorded):
    """Losses and full parameters of a run, the zeros that went through ``act`` in each step, and the recorder."""
    outer, model = wrapped(wrapper)
    optimizer, losses, zeros = torch.optim.SGD(outer.parameters(), lr=0.1), [], []
    if not recorded:
        model.act.register_forward_hook(lambda module, args, output: zeros.append(int((output == 0).sum())))
    torch.manual_seed(10 + rank)
    with covshift.record(model, every=1) if recorded else nullcontext() as recorder:
        for _ in range(STEPS):
            # Of different lengths, so that no rank can stand for another.
            x, y = torch.randn(8 + 4 * rank, 6), torch.randint(3, (8 + 4 * rank,))
            optimizer.zero_grad()
            loss = F.cross_entropy(outer(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, [full(parameter) for parameter in outer.parameters()], zeros, recorder


def full(parameter):
    """A copy of all of a parameter, whichever rank holds it."""
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()


def weight_norms(wrapper):
    """Norms of the first parameter before training: of all of it, and of this rank's share."""
    first = next(wrapped(wrapper)[1].parameters())
    local = first.to_local() if hasattr(first, "to_local") else first
    return [full(first).double().norm().item(), local.detach().double().norm().item()]


def main(wrapper, rank, world_size, meeting):
    """Train twice and print what the test compares."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    losses, values, zeros, _ = train(wrapper, rank, recorded=False)
    found_losses, found_values, _, recorder = train(wrapper, rank, recorded=True)
    parameters = recorder.recording["parameters"].to_dataset()
    act = recorder.recording["layers"].to_dataset().sel(layer="act")
    report = {
        "same losses": found_losses == losses,
        "same parameters": all(torch.equal(a, b) for a, b in zip(values, found_values, strict=True)),
        "warnings": recorder.warnings,
        "weight norms": weight_norms(wrapper),
        "weight norm": parameters["weight_norm"].values[0].tolist() if "parameter" in parameters.dims else [],
        "layers": recorder.recording["layers"].layer.values.tolist(),
        "zeros kept": zeros,
        "zeros": act["zero_count"].sel(signal="activation").values.tolist(),
        "examples": act["example_count"].sel(signal="activation").values.tolist(),
        "gradients": act["count"].sel(signal="activation_grad").values.tolist(),
    }
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
