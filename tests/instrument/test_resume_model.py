"""A recording is continued with the model it was begun with; what a resume leaves out is named."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift import schema
from covshift.exceptions import CovshiftWarning, ResumeMismatch
from covshift.instrument.identity import structure


def net(kind=nn.ReLU, hidden=5, **options):
    return nn.Sequential(nn.Linear(4, hidden, **options), kind(), nn.Linear(hidden, 2, **options))


def train(model, path, steps, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with covshift.record(model, path, **{"every": 1, **options}) as recorder:
        for _ in range(steps):
            parameter = next(model.parameters())
            dtype = torch.float32 if nn.parameter.is_lazy(parameter) else parameter.dtype
            model(torch.ones(3, 4, dtype=dtype)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return recorder


def wide():
    model = net()
    model.append(nn.Tanh())
    return model


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: net(nn.Tanh), r"1 of 4 modules differ: '1': recorded ReLU, came Tanh\."),
        (
            lambda: net(hidden=7),
            r"2 of 4 .*'0': recorded Linear weight=float32\[5x4\] bias=float32\[5\], "
            r"came Linear weight=float32\[7x4\] bias=float32\[7\]; '2': recorded",
        ),
        (lambda: net(dtype=torch.float64), r"came Linear weight=float64\[5x4\]"),
        (lambda: net(bias=False), r"came Linear weight=float32\[5x4\]; '2'"),
        (wide, r"'3': recorded nothing, came Tanh"),
        (lambda: net()[:1], r"'1': recorded ReLU, came nothing; '2': recorded .*, came nothing"),
        (
            lambda: nn.Sequential(*[nn.Tanh() for _ in range(9)]),
            r"9 of 10 modules differ: '0': recorded Linear .*; and 6 more",
        ),
    ],
)
def test_another_model_is_refused_by_name_before_anything_changes(tmp_path, other, words):
    train(net(), tmp_path / "run", 3)
    before = {file: file.read_bytes() for file in (tmp_path / "run.zarr").rglob("*") if file.is_file()}
    with pytest.raises(ResumeMismatch, match=words) as caught:
        covshift.record(other(), tmp_path / "run", resume=True, start_step=3)
    assert "record this one into another path" in str(caught.value)
    assert "overwrite=True" in str(caught.value)
    after = {file: file.read_bytes() for file in (tmp_path / "run.zarr").rglob("*") if file.is_file()}
    assert {key for key in after if after[key] != before.get(key)} <= {tmp_path / "run.zarr/.covshift/lock"}
    train(net(), tmp_path / "run", 2, resume=True, start_step=3)
    assert covshift.open(tmp_path / "run")["layers"].step.values.tolist() == [0, 1, 2, 3, 4]


OTHER_PROCESS = """
import sys, torch, covshift
from torch import nn
kind = {"same": nn.ReLU, "other": nn.Tanh}[sys.argv[2]]
model = nn.Sequential(nn.Linear(4, 5), kind(), nn.Linear(5, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with covshift.record(model, sys.argv[1], every=1, resume=True, start_step=3):
    model(torch.ones(3, 4)).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_another_process_is_held_to_the_model_too(tmp_path):
    train(net(), tmp_path / "run", 3)

    def process(which):
        words = [sys.executable, "-c", OTHER_PROCESS, tmp_path / "run", which]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    refused = process("other")
    assert refused.returncode == 1
    assert "ResumeMismatch: resume=True: recording" in refused.stderr.splitlines()[-1]
    assert "'1': recorded ReLU, came Tanh" in refused.stderr.splitlines()[-1]
    assert covshift.open(tmp_path / "run")["layers"].sizes["step"] == 3
    taken = process("same")
    assert (taken.returncode, taken.stderr) == (0, "")
    assert covshift.open(tmp_path / "run")["layers"].sizes["step"] == 4


def test_weights_hyperparameters_and_attributes_of_a_run_may_change(tmp_path):
    train(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), tmp_path / "run", 2)
    train(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), tmp_path / "run", 2, resume=True, start_step=2, name="later")
    recording = covshift.open(tmp_path / "run")
    assert recording["layers"].sizes["step"] == 4
    noted = recording.attrs["covshift_resumes"][0]
    assert noted["attrs"]["run_name"] == "later"
    assert "covshift_model" not in noted["attrs"]
    assert (noted["step"], noted["last_step"]) == (2, 1)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_is_the_model_it_becomes(tmp_path):
    def lazy():
        return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 2))

    assert structure(lazy())["0"] == "Linear weight=float32[?] bias=float32[?]"
    with covshift.record(lazy(), tmp_path / "run", every=1):
        pass
    train(net(), tmp_path / "run", 2, resume=True, start_step=0)
    with (
        pytest.warns(CovshiftWarning, match="no recorded forward pass"),
        covshift.record(lazy(), tmp_path / "run", every=1, resume=True, start_step=2),
    ):
        pass
    with pytest.raises(ResumeMismatch, match=r"recorded Linear weight=float32\[\?\] bias=float32\[\?\], came Linear"):
        train(net(bias=False), tmp_path / "run", 2, resume=True, start_step=2)


def test_a_recording_that_names_no_model_is_continued_with_any(tmp_path):
    path = train(net(), tmp_path / "run", 2).path
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["covshift_model"]
    (path / "zarr.json").write_text(json.dumps(root))
    train(net(), path, 2, resume=True, start_step=2)
    assert covshift.open(path)["layers"].sizes["step"] == 4


def test_steps_between_the_last_record_and_the_start_are_named_with_both_numbers(tmp_path):
    train(net(), tmp_path / "run", 5)
    words = r"resumed at step 9, but its last record is of step 4: 4 steps that were due, from 5 to 8, are in no record"
    with pytest.warns(CovshiftWarning, match=words):
        recorder = train(net(), tmp_path / "run", 2, resume=True, start_step=9)
    recording = covshift.open(tmp_path / "run")
    assert recording["layers"].step.values.tolist() == [0, 1, 2, 3, 4, 9, 10]
    assert recording.attrs["warnings"] == recorder.warnings
    assert [note["last_step"] for note in recording.attrs["covshift_resumes"]] == [4]


def test_a_start_between_two_due_steps_leaves_no_gap(tmp_path):
    train(net(), tmp_path / "run", 12, every=5)
    recorder = train(net(), tmp_path / "run", 4, every=5, resume=True, start_step=13)
    assert recorder.warnings == []
    assert covshift.open(tmp_path / "run")["layers"].step.values.tolist() == [0, 5, 10, 15]


def test_a_start_before_every_record_says_that_all_are_set_aside(tmp_path):
    train(net(), tmp_path / "run", 3)
    words = r"resumed at step 0, before its first record, and its last record is of step 2: all of them are set aside"
    with pytest.warns(CovshiftWarning, match=words):
        train(net(), tmp_path / "run", 1, resume=True, start_step=0)
    recording = covshift.open(tmp_path / "run")
    assert recording["layers"].step.values.tolist() == [0]
    assert recording["superseded/attempt_0/layers"].step.values.tolist() == [0, 1, 2]


def test_a_resume_that_observes_fewer_layers_names_them_and_leaves_them_absent(tmp_path):
    train(net(), tmp_path / "run", 2)
    with pytest.warns(CovshiftWarning, match=r"not observed any more, 0, 1: they read as absent"):
        train(net(), tmp_path / "run", 2, resume=True, start_step=2, layers="2")
    layers = covshift.open(tmp_path / "run")["layers"].to_dataset().sel(signal="activation")
    absent = layers["status"].sel(step=[2, 3]) == schema.Status.ABSENT
    assert absent.sel(layer=["0", "1"]).all()
    assert not absent.sel(layer="2").any()
    np.testing.assert_array_equal(layers["count"].sel(layer="0"), [15, 15, 0, 0])
    assert np.isnan(layers["sum"].sel(layer="0", step=[2, 3])).all()


def test_a_resume_that_observes_more_layers_adds_them(tmp_path):
    train(net(), tmp_path / "run", 2, layers="2")
    recorder = train(net(), tmp_path / "run", 2, resume=True, start_step=2)
    layers = covshift.open(tmp_path / "run")["layers"].to_dataset().sel(signal="activation")
    np.testing.assert_array_equal(layers["count"].sel(layer="0"), [0, 0, 15, 15])
    assert layers["count"].sel(layer="2").values.tolist() == [6, 6, 6, 6]
    assert recorder.warnings == []


def test_a_resume_with_sequences_of_another_length_leaves_out_their_units_alone_and_names_them_once(tmp_path):
    inputs = {0: torch.randn(4, 3, 50), 1: torch.randn(4, 3, 60), 2: torch.randn(4, 3, 60)}

    def run(*steps):
        torch.manual_seed(0)
        model = nn.Conv1d(3, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with covshift.record(model, tmp_path / "run", every=1, units_every=1, resume=True, start_step=steps[0]) as one:
            for step in steps:
                model(inputs[step]).sum().backward()
                optimizer.step()
        return one

    run(0)
    message = r"^layer '\(input\)': 60 units, but it was recorded with 50; .* unit_axis= naming an axis that keeps"
    with pytest.warns(CovshiftWarning, match=message) as said:
        recorder = run(1, 2)
    assert len(said) == len(recorder.warnings) == 1
    recording = covshift.open(tmp_path / "run")
    assert recording.attrs["warnings"] == recorder.warnings
    of_input = {"layer": "(input)", "signal": "input"}
    rows = recording["layers"].to_dataset().sel(of_input)
    histograms = recording["histograms"]["value_histogram"].sel(layer="(input)", value_signal="input")
    assert rows.step.values.tolist() == [0, 1, 2]
    for step, x in inputs.items():
        assert int(rows["count"].sel(step=step)) == int(histograms.sel(step=step).sum()) == x.numel()
        np.testing.assert_allclose(rows["sum"].sel(step=step), x.double().sum(), rtol=1e-12)
    units = recording["units"].to_dataset().sel(signal="activation")
    of_output = units.isel(unit=np.arange(units.sizes["unit"]) >= 50)
    assert of_output["unit_count"].values.tolist() == [[4 * (x.shape[2] - 2)] * 8 for x in inputs.values()]


def test_units_of_an_output_that_counts_positions_are_absent_where_a_resume_has_another_number_of_them(tmp_path):
    def run(width, start=None):
        model, weight = nn.Sequential(nn.Flatten(), nn.ReLU()), torch.ones(3, width, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        with covshift.record(model, tmp_path / "run", every=1, units_every=1, resume=True, start_step=start) as one:
            for _ in range(2):
                model(weight).sum().backward()
                optimizer.step()
                one.step()
        return one

    run(4)
    with pytest.warns(CovshiftWarning, match=r"layer '.*': 6 units, but it was recorded with 4;"):
        recorder = run(6, start=2)
    assert "report" not in " ".join(recorder.warnings)
    recording = covshift.open(tmp_path / "run")
    counts = recording["layers"]["count"].sel(layer="1", signal=["activation", "activation_grad"])
    assert counts.values.tolist() == [[12, 12], [12, 12], [18, 18], [18, 18]]
    units = recording["units"].to_dataset()
    own = units.isel(unit=units["layer_index"].values == list(recording["layers"].layer.values).index("1"))
    for name in ("unit_count", "unit_positive_count", "unit_active_examples"):
        assert own[name].sel(signal="activation").values.tolist() == [[3] * 4] * 2 + [[0] * 4] * 2
    assert own["unit_mean"].sel(step=[2, 3]).isnull().all()


def test_parameters_of_another_size_that_the_recording_does_not_tell_end_it_and_not_the_training(tmp_path):
    path = train(net(), tmp_path / "run", 2).path
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["covshift_model"]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.warns(CovshiftWarning) as said:
        recorder = train(net(hidden=6), path, 2, resume=True, start_step=2)
    assert any("size=24, but it was recorded with 20" in str(one.message) for one in said)
    assert any("nothing of this run is recorded" in message for message in recorder.warnings)
    assert recorder.step_count == 4
    assert covshift.open(path)["layers"].sizes["step"] == 2
