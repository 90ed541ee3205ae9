"""Records of several ranks. Oracle: one record of all their tensors together."""

import numpy as np
import pytest
import torch

from covshift import schema
from covshift.instrument.block import ACTIVATION, SIGNAL_COUNT, Block
from covshift.instrument.callsites import reading
from covshift.instrument.distributed import merged
from covshift.instrument.rows import arranged, record_of, stored_rows
from covshift.schema import Status


def layer(name):
    return schema.Layer(name, "Linear", depth=0, unit_axis=1, example_axis=0, unit_count=3)


def record(names, tensors, *, step=5):
    """Of layers ``names``, one tensor each; None where the layer saw nothing."""
    layers = [layer(name) for name in names]
    block = Block(step)
    rows = block.in_mode(training=True)
    for place, (described, tensor) in enumerate(zip(layers, tensors, strict=True)):
        key = place * SIGNAL_COUNT + ACTIVATION
        rows.mark(key, Status.NO_GRAD_FORWARD)
        if tensor is not None:
            rows.table.add(key, tensor, reading(described, gradients=False))
            rows.set_status(key, Status.OK)
            rows.add_structural_zeros(place, int((tensor <= 0).sum()))
    return record_of(block, layers, {})


def by_name(found):
    arrays = {row.group: row.variables for row in stored_rows(found)}
    names = [described.name for described in found.layers]
    return {
        name: {key: array[place] for key, array in arrays["layers"].items()} for place, name in enumerate(names)
    }, arrays


def test_two_ranks_with_layers_in_other_orders_pool_into_the_record_of_all_tensors():
    torch.manual_seed(0)
    a, b = torch.randn(4, 3), torch.randn(6, 3)
    only = torch.randn(2, 3)
    found, arrays = by_name(merged([record(["x", "y"], [a, None]), record(["z", "x", "y"], [only, b, None])]))
    assert list(found) == ["x", "y", "z"]
    expected, _ = by_name(record(["x", "z"], [torch.cat([a, b]), only]))
    for name in ("x", "z"):
        for key, value in expected[name].items():
            np.testing.assert_allclose(found[name][key], value, rtol=1e-12, err_msg=f"{name} {key}")
    assert (found["y"]["count"] == 0).all()
    assert found["y"]["status"][ACTIVATION] == Status.NO_GRAD_FORWARD
    whole, _ = by_name(record(["x", "y", "z"], [torch.cat([a, b]), None, only]))
    assert whole["x"]["structural_zero_count"].tolist() == found["x"]["structural_zero_count"].tolist()
    histogram = arrays["histograms"]["value_histogram"].dense()
    assert histogram.sum() == a.numel() + b.numel() + only.numel()


def test_a_single_record_is_returned_as_it_is():
    one = record(["x"], [torch.ones(2, 3)])
    assert merged([one]) is one
    assert arranged(one, one.layers) is one


@pytest.mark.parametrize("steps", [[], [1, 2]])
def test_records_of_no_or_of_different_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"records of steps \[.*\]: expected some, of one step"):
        merged([record(["x"], [None], step=step) for step in steps])


def test_norms_of_sharded_parameters_are_joined_and_of_others_taken_once():
    from dataclasses import replace

    names = ("weight_norm", "gradient_norm", "gradient_norm_preclip", "update_norm")
    parts = [
        replace(
            record(["x"], [None]),
            parameters={name: np.array([value, 7.0]) for name in names}
            | {name: np.array([2, 3]) for name in ("gradient_zero_count", "gradient_nonfinite_count")},
            sharded=np.array([True, False]),
        )
        for value in (3.0, 4.0)
    ]
    row = merged(parts).parameters
    assert row["weight_norm"].tolist() == [5.0, 7.0]
    assert row["gradient_zero_count"].tolist() == [4, 3]
