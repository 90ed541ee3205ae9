"""Example groups of accumulated micro-batches. Oracle: the same examples in one batch."""

import numpy as np
import pytest
import torch
from torch import nn

import covshift


def recorded(model, micro_batches):
    """Counts (layer, signal, group, bin) of one step over these micro-batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with covshift.record(model, every=1) as recorder:
        for batch in micro_batches:
            model(batch).square().sum().backward()
        optimizer.step()
    return recorder.recording["histograms/value_histogram"].values[0]


def elements(counts):
    return counts.sum(axis=-1)


@pytest.fixture
def examples(seeded):
    return torch.randn(12, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_micro_batches_share_their_examples_out_among_all_groups(shallow, examples, size):
    counts = recorded(shallow(), examples.split(size))
    whole = recorded(shallow(), [examples])
    np.testing.assert_array_equal(counts.sum(axis=2), whole.sum(axis=2))
    if size != 6:
        # Where a batch of 6 ends its groups hold 2, 2, 1 and 1 examples; so do those of the next.
        np.testing.assert_array_equal(elements(counts), elements(whole))
    if size in (1, 2, 4):
        np.testing.assert_array_equal(counts, whole)


@pytest.mark.parametrize("size", [4, 5, 12])
def test_two_passes_over_the_same_examples_keep_each_example_in_its_group(shallow, examples, size):
    once, twice = (recorded(shallow(), [examples[:size]] * passes) for passes in (1, 2))
    np.testing.assert_array_equal(twice, 2 * once)


class Sums(nn.Module):
    """A layer whose output has no examples."""

    def forward(self, x):
        return x.sum(dim=0)


def test_a_layer_without_examples_has_all_its_elements_in_the_first_group(examples):
    model = nn.Sequential(nn.Linear(6, 5), Sums())
    with pytest.warns(covshift.CovshiftWarning, match="axis 0 of its output .* is not the batch"):
        counts = recorded(model, examples.split(1))
    assert (elements(counts)[-1, :, 1:] == 0).all()
