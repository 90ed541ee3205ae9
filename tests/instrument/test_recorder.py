"""The recorder end to end in memory. Oracles: an unrecorded twin, tensors kept by the test's own hooks, autograd."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift import schema
from covshift.exceptions import CovshiftError, CovshiftWarning, InvalidArgumentError, UnsupportedModelError
from covshift.instrument.schedule import at_steps, first
from covshift.linked import LinkedReLU
from covshift.schema import Status


def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def batch(model, n=16):
    flat = next(model.parameters()).ndim == 2
    return torch.randn((n, 6) if flat else (n, 1, 6, 6)), torch.randint(3, (n,))


def train(model, steps, *, recorder=None, evaluate=False):
    """Losses of a short training run; the random numbers drawn do not depend on recording."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x, y = batch(model)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.log(loss=loss)
        if evaluate:
            model.eval()
            with torch.no_grad():
                model(batch(model)[0])
            model.train()
    return losses


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def record_training(model, steps=3, *, every=1, **options):
    with covshift.record(model, every=every, **options) as recorder:
        train(model, steps, recorder=recorder)
    return recorder.recording


def cell(recording, variable, *, layer, signal, step=0, group="layers"):
    return recording[group][variable].sel(layer=layer, signal=signal, step=step).item()


def test_every_row_equals_a_recount_of_the_tensors_that_passed():
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


def test_histograms_count_every_element_by_example_group():
    recording = record_training(perceptron(), 1)
    histogram = recording["histograms"]["value_histogram"].isel(step=0).sel(value_signal="activation", layer="0")
    assert histogram.sum("value_bin").values.tolist() == [16 * 8 / 4] * 4


def test_a_preactivation_is_summarised_once_under_its_producer():
    recording = record_training(perceptron(), 1)
    layers = recording["layers"].to_dataset()
    assert layers["preactivation_of"].sel(layer="1").item() == "0"
    assert cell(recording, "status", layer="1", signal="preactivation") == Status.UNDER_PRODUCER
    assert cell(recording, "count", layer="1", signal="preactivation") == 0
    structural = cell(recording, "structural_zero_count", layer="1", signal="preactivation")
    below = cell(recording, "negative_count", layer="0", signal="activation")
    assert structural == below + cell(recording, "zero_count", layer="0", signal="activation")
    assert cell(recording, "zero_count", layer="0", signal="activation_grad") == structural


def test_a_preactivation_without_a_recorded_producer_has_its_own_row():
    model = perceptron()
    recording = record_training(model, 1, layers="1")
    assert recording["layers"].layer.values.tolist() == ["1"]
    assert cell(recording, "count", layer="1", signal="preactivation") == 16 * 8
    assert cell(recording, "example_count", layer="1", signal="preactivation") == 16
    gradients = cell(recording, "zero_count", layer="1", signal="preactivation_grad")
    assert gradients == cell(recording, "structural_zero_count", layer="1", signal="preactivation")


class Residual(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.linear, self.inplace = nn.Linear(6, 6), inplace

    def forward(self, x):
        y = self.linear(x)
        if self.inplace:
            y += x
            return y
        return y + x


@pytest.mark.parametrize("inplace", [False, True])
def test_a_container_is_a_layer_where_its_output_is_no_childs_output(inplace):
    model = nn.Sequential(Residual(inplace), nn.Linear(6, 3))
    recording = record_training(model, 1)
    assert recording["layers"].layer.values.tolist() == ["(input)", "0.linear", "0", "1"]
    assert cell(recording, "sum", layer="0", signal="activation") != cell(
        recording, "sum", layer="0.linear", signal="activation"
    )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.act(self.a(self.act(self.a(x)))))


def test_the_roots_own_output_and_its_input_are_layers_apart():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return 2 * self.linear(x)

    recording = record_training(Doubled(), 1)
    layers = recording["layers"].to_dataset()
    assert layers.layer.values.tolist() == ["(input)", "linear", "(root)"]
    assert layers["unit_count_of_layer"].values.tolist() == [6, 3, 3]
    inner = cell(recording, "sum", layer="linear", signal="activation")
    assert cell(recording, "sum", layer="(root)", signal="activation") == pytest.approx(2 * inner)


def test_repeated_calls_are_sites_of_their_own():
    recording = record_training(Shared(), 1)
    assert recording["layers"].layer.values.tolist() == ["(input)", "a", "act", "a#1", "act#1", "b"]
    assert recording["layers"]["preactivation_of"].values.tolist() == ["", "", "a", "", "a#1", ""]


def test_the_schedule_decides_which_steps_are_recorded_and_scalars_keep_them_all():
    recording = record_training(perceptron(), 9, every=first(2) | at_steps(5), histograms_every=2, units_every=2)
    assert recording["layers"].step.values.tolist() == [0, 1, 5]
    assert recording["histograms"].step.values.tolist() == [0, 5]
    assert recording["parameters"].step.values.tolist() == [0, 1, 5]
    assert recording["scalars"].step.values.tolist() == list(range(9))
    assert recording.attrs["every"] == "first(2) | at_steps(5)"


def test_a_log_after_the_optimizer_step_belongs_to_the_step_just_closed():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        for step in range(3):
            x, y = batch(model)
            loss = F.cross_entropy(model(x), y)
            recorder.log(before=torch.tensor(10.0 + step))
            loss.backward()
            recorder.log(during=20 + step)
            optimizer.step()
            recorder.log(after=30 + step)
    scalars = recorder.recording["scalars"].to_dataset()
    assert scalars["before"].values.tolist() == [10, 11, 12]
    assert scalars["during"].values.tolist() == [20, 21, 22]
    assert scalars["after"].values.tolist() == [30, 31, 32]
    assert scalars["learning_rate"].values.tolist() == [0.1, 0.1, 0.1]


def test_the_last_log_is_written_at_the_end():
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        train(model, 2, recorder=recorder)
        recorder.log(test_accuracy=0.5)
    scalars = covshift.open(recorder._handover.writer.target)["scalars"].to_dataset()
    assert scalars["test_accuracy"].values[-1] == 0.5
    assert scalars.step.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    "value", ["0.5", True, torch.ones(2), None, 1j, np.complex64(1), torch.ones((), device="meta")]
)
def test_what_is_no_number_cannot_be_logged(value):
    with (
        covshift.record(perceptron()) as recorder,
        pytest.raises(InvalidArgumentError, match=r"log\(loss=.*expected a real number or a tensor of one element"),
    ):
        recorder.log(loss=value)


@pytest.mark.parametrize("name", ["", "step", "wall_time", "__x", ".", "a\\b", "zarr.json", "\udcff"])
def test_a_name_that_cannot_name_an_array_is_refused_at_once(name):
    with (
        covshift.record(perceptron()) as recorder,
        pytest.raises(InvalidArgumentError, match="expected a name of letters, digits"),
    ):
        recorder.log(**{name: 1.0})


def test_hand_written_updates_are_counted_by_step():
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        for _ in range(3):
            x, y = batch(model)
            F.cross_entropy(model(x), y).backward()
            model.zero_grad()
            recorder.step()
            recorder.step()
        assert recorder.step_count == 3
        assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2]


def test_two_optimizers_stepping_after_one_forward_end_one_step():
    model = perceptron()
    first_half, second_half = list(model.parameters())[:2], list(model.parameters())[2:]
    optimizers = [torch.optim.SGD(half, lr=0.1) for half in (first_half, second_half)]
    with covshift.record(model, every=1) as recorder:
        for _ in range(2):
            x, y = batch(model)
            F.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert recorder.step_count == 2


def test_updates_without_a_forward_that_was_seen_are_counted_and_named_once():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(CovshiftWarning, match="no forward pass of it was seen"),
        covshift.record(model, every=1) as recorder,
    ):
        for _ in range(2):
            x, y = batch(model)
            F.cross_entropy(model.forward(x), y).backward()
            optimizer.step()
        assert recorder.step_count == 2
    assert len(recorder.warnings) == 1


def test_an_evaluation_pass_is_one_record_of_its_own():
    model = convolutional()
    x, _ = batch(model, 24)
    with covshift.record(model, every=2) as recorder:
        train(model, 3)
        model.eval()
        with torch.no_grad(), recorder.evaluation():
            for part in x.split(10):
                model(part)
        model.train()
        train(model, 1)
        recording = recorder.recording
    rows = recording["evaluation/layers"].to_dataset()
    assert rows.step.values.tolist() == [3]
    assert rows["mode"].values.tolist() == [schema.Mode.EVAL]
    assert rows["source"].values.tolist() == [schema.Source.EVALUATION]
    assert cell(recording, "example_count", layer="0", signal="activation", step=3, group="evaluation/layers") == 24
    status = cell(recording, "status", layer="0", signal="activation_grad", step=3, group="evaluation/layers")
    assert status == Status.NO_GRAD_FORWARD
    assert recording["layers"].step.values.tolist() == [0, 2]


def test_of_evaluation_passes_at_one_step_the_first_is_kept_with_one_warning_and_nothing_raises():
    model = perceptron()
    x = batch(model)[0]
    with (
        pytest.warns(CovshiftWarning, match="already recorded after 0 steps; this one is not recorded") as caught,
        covshift.record(model, every=1) as recorder,
    ):
        for rows in (1, 2, 3):
            with recorder.evaluation():
                model(x[:rows])
    assert len(caught) == 1
    assert recorder.step_count == 0
    recording = recorder.recording
    assert recording["layers"].sizes["step"] == 0
    counts = recording["evaluation/layers"]["example_count"].sel(layer="0", signal="activation")
    assert counts.values.tolist() == [1]


def test_an_evaluation_pass_inside_a_pass_is_part_of_it():
    model = perceptron()
    x = batch(model)[0]
    with covshift.record(model, every=1) as recorder, recorder.evaluation():
        model(x[:1])
        with recorder.evaluation():
            model(x[:2])
        model(x[:3])
    counts = recorder.recording["evaluation/layers"]["example_count"].sel(layer="0", signal="activation")
    assert counts.values.tolist() == [6]


def test_a_validation_batch_without_no_grad_does_not_mix_with_training():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with covshift.record(model, every=1) as recorder:
        model.eval()
        model(batch(model, 5)[0])
        model.train()
        x, y = batch(model)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        recording = recorder.recording
    assert cell(recording, "example_count", layer="0", signal="activation") == 16


def test_a_fault_of_covshift_costs_a_row_and_one_warning_not_the_training(monkeypatch):
    from covshift.summary.table import Table

    def broken(*args, **kwargs):
        raise ArithmeticError("planted")

    monkeypatch.setattr(Table, "add", broken)
    model = perceptron()
    with (
        pytest.warns(
            CovshiftWarning, match="covshift failed to record it .ArithmeticError: planted.; training goes on"
        ),
        covshift.record(model, every=1) as recorder,
    ):
        losses = train(model, 2)
    assert len(losses) == 2
    assert len(recorder.warnings) == len(set(recorder.warnings))


def test_a_linked_layer_announces_its_members_and_links_its_units():
    model = nn.Sequential(nn.Linear(6, 4), LinkedReLU(dim=1), nn.Linear(8, 3))
    recording = record_training(model, 1)
    layers = recording["layers"].to_dataset()
    assert layers["linkage_members"].sel(layer="1").item() == 2
    units = recording["units"].to_dataset()
    mine = units["layer_index"].values == list(layers.layer.values).index("1")
    assert units["linked_unit"].values[mine].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_an_axis_that_is_not_the_batch_is_named_once_and_recorded_without_units():
    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(self.inner(x.reshape(-1, 3)).reshape(-1, 6))

    with pytest.warns(CovshiftWarning, match=r"layer 'inner': axis 0 of its output \(32, 3\) is not the batch of 16"):
        recording = record_training(Folds(), 2)
    assert cell(recording, "status", layer="inner", signal="activation") == Status.AXIS_UNKNOWN
    assert cell(recording, "example_count", layer="inner", signal="activation") == 0
    assert cell(recording, "count", layer="inner", signal="activation") == 96


@pytest.mark.parametrize("model", [torch.relu, "model"])
def test_what_is_no_module_cannot_be_recorded(model):
    with pytest.raises(UnsupportedModelError, match="expected an eager torch.nn.Module"):
        covshift.record(model)


def test_unknown_signals_are_named_with_the_known_ones():
    with pytest.raises(InvalidArgumentError, match=r"signals=\['weights'\]: expected some of input, preactivation"):
        covshift.record(perceptron(), signals=["weights"])


def test_only_the_chosen_signals_are_recorded():
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


def test_a_recorder_serves_one_recording():
    recorder = covshift.record(perceptron())
    with recorder:
        pass
    with pytest.raises(CovshiftError, match="already entered"), recorder:
        pass


def test_structural_zeros_are_measured_only_in_dtypes_the_closed_form_covers():
    for dtype, expected in ((torch.float32, 1), (torch.bfloat16, 0)):
        model = nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.Linear(8, 3)).to(dtype)
        with covshift.record(model, every=1) as recorder:
            model(torch.randn(4, 6, dtype=dtype)).sum().backward()
            recorder.step()
        layers = recorder.recording["layers"].to_dataset()
        assert layers["structural_measured"].sel(layer="1").item() == expected


def test_a_single_example_without_a_batch_axis_is_recorded_without_examples():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    with covshift.record(model, every=1) as recorder:
        model(torch.randn(2, 6, 6)).sum().backward()
        recorder.step()
    assert cell(recorder.recording, "count", layer="0", signal="activation") == 4 * 4 * 4
    assert cell(recorder.recording, "example_count", layer="0", signal="activation") == 0


def test_a_number_beyond_float64_cannot_be_logged():
    with covshift.record(perceptron()) as recorder, pytest.raises(InvalidArgumentError, match="float64 can hold"):
        recorder.log(loss=10**400)


@pytest.mark.parametrize(
    "bad", [{"layers": "typo"}, {"layers": []}, {"updates": "typo"}, {"signals": ["typo"]}, {"every": 0}]
)
def test_a_refused_argument_leaves_an_existing_recording_alone(bad, tmp_path):
    with covshift.record(perceptron(), tmp_path / "run", every=1) as recorder:
        pass
    before = (tmp_path / "run.zarr" / "zarr.json").read_bytes()
    with pytest.raises(InvalidArgumentError):
        covshift.record(perceptron(), recorder.path, overwrite=True, **bad)
    assert (tmp_path / "run.zarr" / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("error", [None, ValueError("the user's own")])
def test_a_recording_that_cannot_be_written_warns_and_hides_no_exception(error, tmp_path):
    def run():
        model = perceptron()
        with covshift.record(model, tmp_path / "run", every=1):
            train(model, 1)
            shutil.rmtree(tmp_path / "run.zarr")
            (tmp_path / "run.zarr").touch()
            if error is not None:
                raise error

    with pytest.warns(CovshiftWarning, match="the end of the recording is not written"):
        if error is None:
            run()
        else:
            with pytest.raises(ValueError, match="the user's own"):
                run()


@pytest.mark.parametrize(
    "signals", [["preactivation"], ["preactivation_grad"], ["preactivation", "preactivation_grad"]]
)
def test_preactivations_asked_for_alone_have_rows_of_their_own(signals):
    recording = record_training(perceptron(), 1, signals=signals)
    for signal in signals:
        assert cell(recording, "count", layer="1", signal=signal) == 16 * 8
        assert cell(recording, "status", layer="1", signal=signal) == Status.OK


def test_names_with_slashes_are_logged_and_read_with_dots():
    model = perceptron()
    with covshift.record(model, every=1) as recorder:
        train(model, 1)
        recorder.log({"val/loss": 0.5, "lr": 0.1}, accuracy=0.25)
        recorder.log(**{"val/top-5/error": torch.tensor(0.75)})
    scalars = recorder.recording["scalars"].to_dataset().sel(step=0)
    found = {name: float(scalars[name]) for name in ("val.loss", "lr", "accuracy", "val.top-5.error")}
    assert found == {"val.loss": 0.5, "lr": 0.1, "accuracy": 0.25, "val.top-5.error": 0.75}


@pytest.mark.parametrize("name", ["/loss", "", "step", "9/loss", 3])
def test_names_that_no_array_can_have_are_refused_by_name(name):
    with covshift.record(perceptron()) as recorder, pytest.raises(InvalidArgumentError, match=rf"log\({name!r}\)"):
        recorder.log({name: 1.0})
