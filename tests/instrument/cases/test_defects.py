"""Defects of the code these tests were written against, each by its smallest reproduction."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import UnsupportedModelError


def test_the_state_of_a_batch_first_rnn_counts_its_examples_on_its_second_axis(build, train, record, cell):
    """h_n and c_n are (layers, batch, hidden) whatever ``batch_first`` says; axis 0 is taken, and warned about."""
    with record(model := build("recurrent")) as recorder:
        train(model)
    for layer in ("lstm:1.0", "lstm:1.1", "gru:1"):
        assert cell(recorder.recording, "example_count", layer=layer, signal="activation") == 16


def test_a_sparse_gradient_of_an_activation_is_read_or_named_as_unsupported(record):
    """An activation used as an embedding table gets a sparse gradient: the row is lost as "please report this"."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 6))

        def forward(self):
            return 2 * self.weight

    with record(model := Table(), may_warn=("is not the batch", "not summarised")) as recorder:
        F.embedding(torch.tensor([0, 2, 2]), model(), sparse=True).sum().backward()
        recorder.step()


@pytest.mark.parametrize("broken", [1, 3], ids=["midway", "last"])
def test_a_step_that_a_fused_optimizer_is_told_to_skip_is_counted_once(record, broken):
    """The scaler calls a fused optimizer, which skips by itself: counted there, and again when the scale falls."""
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with record(model, scaler=scaler) as recorder:
        for step in range(4):
            loss = model(torch.randn(16, 6)).square().mean() * (float("inf") if step == broken else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert recorder.step_count == 4
    assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2, 3]
    skipped = recorder.recording["scalars"]["step_skipped"].values.tolist()
    assert skipped == [float(step == broken) for step in range(4)]


def test_data_parallel_over_several_devices_is_refused_with_the_way_out():
    model = nn.DataParallel(nn.Linear(6, 3))
    # As it is where there are two GPUs.
    model.device_ids = [0, 1]
    with pytest.raises(UnsupportedModelError, match="DataParallel"):
        covshift.record(model)
