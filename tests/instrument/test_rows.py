"""What a row holds, and for which signals. Oracles: tensors kept by the test's own hooks, recounted by numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift import schema
from covshift.grid import VALUES
from covshift.instrument import rows
from covshift.instrument.block import SIGNAL_COUNT
from covshift.instrument.schedule import at_steps, first
from covshift.schema import Status
from covshift.summary.summary import Histogram, UnitSummary

pytestmark = pytest.mark.usefixtures("seeded")


def test_every_row_equals_a_recount_of_the_tensors_that_passed(perceptron, batch, cell):
    model, kept = perceptron(), {}
    x, y = batch(model)
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, a, o, name=name: kept.__setitem__(name, o) or o.retain_grad())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        recording = recorder.recording
    for name, output in kept.items():
        for signal, tensor in (("activation", output.detach()), ("activation_grad", output.grad)):
            values = tensor.double().numpy()
            row = {
                variable: cell(recording, variable, layer=name, signal=signal) for variable in ("count", "zero_count")
            }
            assert row == {"count": values.size, "zero_count": int((values == 0).sum())}
            assert cell(recording, "example_count", layer=name, signal=signal) == len(values)
            assert cell(recording, "sum", layer=name, signal=signal) == pytest.approx(values.sum(), abs=1e-12)
            deviation = values - values.mean()
            for variable, power in (("m2", 2), ("m3", 3), ("m4", 4)):
                found = cell(recording, variable, layer=name, signal=signal)
                assert found == pytest.approx((deviation**power).sum(), rel=1e-9, abs=1e-12)
            assert cell(recording, "min", layer=name, signal=signal) == values.min()
            assert cell(recording, "max", layer=name, signal=signal) == values.max()
            assert cell(recording, "status", layer=name, signal=signal) == Status.OK
            units = recording["units"].to_dataset().isel(step=0).sel(signal=signal)
            mine = units["unit_mean"].values[units["layer_index"].values == list(recording["layers"].layer).index(name)]
            np.testing.assert_allclose(mine, values.mean(0), rtol=1e-5, atol=1e-7)


def test_histograms_count_every_element_by_example_group(perceptron, record_training):
    recording = record_training(perceptron(), 1)
    histogram = recording["histograms"]["value_histogram"].isel(step=0).sel(value_signal="activation", layer="0")
    assert histogram.sum("value_bin").values.tolist() == [16 * 8 / 4] * 4


def test_a_preactivation_is_summarised_once_under_its_producer(perceptron, record_training, cell):
    recording = record_training(perceptron(), 1)
    layers = recording["layers"].to_dataset()
    assert layers["preactivation_of"].sel(layer="1").item() == "0"
    assert cell(recording, "status", layer="1", signal="preactivation") == Status.UNDER_PRODUCER
    assert cell(recording, "count", layer="1", signal="preactivation") == 0
    structural = cell(recording, "structural_zero_count", layer="1", signal="preactivation")
    below = cell(recording, "negative_count", layer="0", signal="activation")
    assert structural == below + cell(recording, "zero_count", layer="0", signal="activation")
    assert cell(recording, "zero_count", layer="0", signal="activation_grad") == structural


def test_a_preactivation_without_a_recorded_producer_has_its_own_row(perceptron, record_training, cell):
    model = perceptron()
    recording = record_training(model, 1, layers="1")
    assert recording["layers"].layer.values.tolist() == ["1"]
    assert cell(recording, "count", layer="1", signal="preactivation") == 16 * 8
    assert cell(recording, "example_count", layer="1", signal="preactivation") == 16
    gradients = cell(recording, "zero_count", layer="1", signal="preactivation_grad")
    assert gradients == cell(recording, "structural_zero_count", layer="1", signal="preactivation")


def test_the_schedule_decides_which_steps_are_recorded_and_scalars_keep_them_all(perceptron, record_training):
    recording = record_training(perceptron(), 9, every=first(2) | at_steps(5), histograms_every=2, units_every=2)
    assert recording["layers"].step.values.tolist() == [0, 1, 5]
    assert recording["histograms"].step.values.tolist() == [0, 5]
    assert recording["parameters"].step.values.tolist() == [0, 1, 5]
    assert recording["scalars"].step.values.tolist() == list(range(9))
    assert recording.attrs["every"] == "first(2) | at_steps(5)"


def test_only_the_chosen_signals_are_recorded(perceptron, record_training):
    recording = record_training(perceptron(), 1, signals=["activation"])
    counts = recording["layers"]["count"].isel(step=0).sum("layer")
    assert [str(s) for s in counts.signal.values[counts.values > 0]] == ["activation"]


class Nested(nn.Module):
    """A container in a container, a convolution whose activation takes over its unit axis, and a reused activation."""

    def __init__(self):
        super().__init__()
        self.act, self.conv = nn.Tanh(), nn.Conv1d(2, 4, 1)
        self.body = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), nn.Identity())

    def forward(self, x):
        return self.act(self.body(self.act(self.conv(x))))


@pytest.mark.parametrize("signals", [[signal] for signal in schema.SIGNALS] + [["preactivation", "activation_grad"]])
def test_which_layers_there_are_does_not_depend_on_the_signals_asked_for(signals):
    described = []
    for chosen in (None, signals):
        torch.manual_seed(0)
        model = Nested()
        with covshift.record(model, every=1, signals=chosen) as recorder:
            model(torch.randn(16, 2, 5)).sum().backward()
            recorder.step()
        described.append(recorder.recording["layers"].to_dataset())
    whole, part = described
    names = ["(input)", "conv", "act", "body.0.0", "body.0.1", "body.1", "act#1"]
    assert part.layer.values.tolist() == whole.layer.values.tolist() == names
    for name in ("module_type", "depth", "activation", "unit_axis", "example_axis", "unit_count_of_layer", "dtype"):
        assert part[name].values.tolist() == whole[name].values.tolist(), name
    counts = part["count"].isel(step=0).sum("layer")
    assert set(counts.signal.values[counts.values > 0]) <= set(signals)


def test_structural_zeros_are_measured_only_in_dtypes_the_closed_form_covers():
    for dtype, expected in ((torch.float32, 1), (torch.bfloat16, 0)):
        model = nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.Linear(8, 3)).to(dtype)
        with covshift.record(model, every=1) as recorder:
            model(torch.randn(4, 6, dtype=dtype)).sum().backward()
            recorder.step()
        layers = recorder.recording["layers"].to_dataset()
        assert layers["structural_measured"].sel(layer="1").item() == expected


@pytest.mark.parametrize(
    "signals", [["preactivation"], ["preactivation_grad"], ["preactivation", "preactivation_grad"]]
)
def test_preactivations_asked_for_alone_have_rows_of_their_own(perceptron, record_training, cell, signals):
    recording = record_training(perceptron(), 1, signals=signals)
    for signal in signals:
        assert cell(recording, "count", layer="1", signal=signal) == 16 * 8
        assert cell(recording, "status", layer="1", signal=signal) == Status.OK


@pytest.mark.parametrize(("elements", "stored"), [(2**32 - 1, 2**32 - 1), (2**32, 0), (2**32 + 5, 0)])
def test_a_count_is_stored_as_it_is_or_not_at_all(elements, stored):
    n = np.array([elements])
    large = UnitSummary(n, n, n, n, n, n * 0.5, n * 0.5, n * 0.5, n * 0.5)
    small = UnitSummary(*[np.array([7])] * 5, *[np.array([0.5])] * 4)
    layers = [schema.Layer(name, "ReLU", 0, unit_count=1) for name in ("large", "small")]
    units = rows.unit_arrays({2: large, SIGNAL_COUNT + 2: small}, layers)
    for name in ("unit_count", "unit_zero_count", "unit_positive_count", "unit_active_examples"):
        assert units[name][:, 0].tolist() == [stored, 7]
    assert np.isnan(units["unit_mean"][:, 0]).tolist() == [not stored, False]
    counts = np.zeros((schema.EXAMPLE_GROUPS, VALUES.size), np.int64)
    counts[1, 5], other = elements, counts.copy()
    other[1, 5] = 7
    histograms = {2: Histogram(VALUES, counts), SIGNAL_COUNT + 2: Histogram(VALUES, other)}
    dense = rows.histogram_arrays(histograms, 2)["value_histogram"].dense()
    assert dense.sum((1, 2, 3)).tolist() == [stored, 7]
