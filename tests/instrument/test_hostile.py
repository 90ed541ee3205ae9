"""Models, scalers and calls that once cost rows, a closed recording or the process."""

import copy
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning, InvalidArgumentError


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def train(model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class FailsOnce(nn.ReLU):
    fails = True

    def forward(self, x):
        if self.fails:
            raise ArithmeticError("planted")
        return super().forward(x)


def test_an_activation_whose_first_call_failed_costs_no_later_record():
    model = nn.Sequential(nn.Linear(4, 8), FailsOnce(), nn.Linear(8, 1))
    with covshift.record(model, every=1) as recorder:
        with pytest.raises(ArithmeticError):
            model(torch.randn(5, 4))
        recorder.step()
        model[1].fails = False
        train(model)
    assert recorder.warnings == []
    assert recorder.recording["layers"].step.values.tolist() == [0, 1, 2]


def test_a_scaler_that_fails_at_the_end_leaves_a_closed_recording(tmp_path):
    class Scaler:
        broken = False

        def get_scale(self):
            if self.broken:
                raise ArithmeticError("planted")
            return 1.0

    scaler, model = Scaler(), perceptron()
    with pytest.warns(CovshiftWarning, match="ArithmeticError: planted"):
        with covshift.record(model, tmp_path / "a", every=1, scaler=scaler) as recorder:
            train(model)
            scaler.broken = True
        with covshift.record(model, tmp_path / "a", overwrite=True):
            pass
    assert recorder.step_count == 2


def test_a_name_that_no_file_system_takes_is_refused_when_it_is_logged():
    with (
        covshift.record(perceptron()) as recorder,
        pytest.raises(InvalidArgumentError, match="of 200 characters at most"),
    ):
        recorder.log(**{"a" * 201: 1.0})


def test_weights_put_in_place_after_record_was_called_are_followed():
    model = perceptron()
    recorder = covshift.record(model, every=1)
    model.load_state_dict(perceptron().state_dict(), assign=True)
    with recorder:
        train(model)
    assert recorder.step_count == 2


@pytest.mark.slow
def test_a_default_device_that_is_not_the_cpu_does_not_reach_the_kernels():
    code = (
        "import torch, covshift\n"
        "torch.set_default_device('meta')\n"
        "with covshift.record(torch.nn.Linear(4, 1, device='cpu'), every=1): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_a_loop_of_which_no_step_was_seen_does_not_end_in_silence():
    model = perceptron()
    with (
        pytest.warns(CovshiftWarning, match=r"3 forward passes, but no optimizer step .* call recorder\.step\(\)"),
        covshift.record(model, every=1),
    ):
        for _ in range(3):
            model(torch.randn(5, 4)).sum().backward()


def test_training_of_which_nothing_at_all_was_seen_does_not_end_in_silence():
    model = perceptron()
    with (
        pytest.warns(CovshiftWarning, match="parameters have changed, but no forward pass and no optimizer step"),
        covshift.record(model, every=1),
        torch.no_grad(),
    ):
        for parameter in model.parameters():
            parameter -= 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with covshift.record(model, every=1):
            pass


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loop_that_only_evaluates_does_not_end_in_silence(mode):
    model, batch = perceptron(), torch.randn(5, 4)
    said = r"every forward pass \(2\) ran under no_grad or inference_mode.*with recorder\.evaluation\(\):"
    with pytest.warns(CovshiftWarning, match=said), covshift.record(model) as recorder, mode():
        for _ in range(2):
            model(batch)
    assert len(recorder.warnings) == 1


def test_a_loop_that_trains_a_copy_does_not_end_in_silence():
    recorded, batch = perceptron(), torch.randn(5, 4)
    trained = copy.deepcopy(recorded)
    said = "nothing was recorded: optimizers made steps, but of no parameter of the recorded model"
    with pytest.warns(CovshiftWarning, match=said), covshift.record(recorded) as recorder:
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        for _ in range(2):
            trained(batch).square().mean().backward()
            optimizer.step()
    assert len(recorder.warnings) == 1


def test_passes_without_gradients_beside_what_is_recorded_are_nothing_to_warn_of():
    model, batch = perceptron(), torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with covshift.record(model) as evaluated, torch.no_grad():
            model(batch)
            with evaluated.evaluation():
                model(batch)
        with covshift.record(model) as trained:
            with torch.no_grad():
                model(batch)
            model(batch).sum().backward()
            trained.step()
        with covshift.record(model) as paused, paused.pause(), torch.no_grad():
            model(batch)


@pytest.mark.parametrize("how", ["function", "in place", "replaced"])
def test_compiled_parts_run_as_before_while_functions_are_recorded(how):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.part = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.doubled = torch.compile(lambda x: torch.relu(x) * 2, backend="eager")
            if how == "in place":
                self.part.compile(backend="eager")
            elif how == "replaced":
                self.part = torch.compile(self.part, backend="eager")

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.doubled(x) if how == "function" else self.part(x)

    outputs = []
    for functional in (False, True):
        model = Mixed()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with covshift.record(model, every=2, functional=functional):
                torch.manual_seed(1)
                train(model, 4)
            outputs.append(model(torch.ones(2, 4)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("probe_every", [1, 1000], ids=["a probe that fails at the end", "a loop without steps"])
def test_a_warning_that_is_an_error_at_the_end_leaves_the_recording_closed(tmp_path, probe_every):
    model = nn.Linear(3, 2)
    batch = torch.ones(1, 3)
    with pytest.raises(CovshiftWarning), warnings.catch_warnings():
        warnings.simplefilter("error")
        with covshift.record(model, tmp_path / "run", every=1, probe=batch, probe_every=probe_every) as recorder:
            for _ in range(3):
                model(torch.randn(4, 3)).sum().backward()
            if probe_every == 1:
                recorder.step()
                model.forward = None
    assert covshift.open(tmp_path / "run").attrs["covshift_commit"]["closed"]
    with covshift.record(nn.Linear(3, 2), tmp_path / "run", overwrite=True):
        pass


def test_a_name_that_cannot_be_stored_costs_the_recording_and_not_the_training(tmp_path):
    model = perceptron()
    model.add_module("\ud800", nn.Identity())
    with (
        pytest.warns(CovshiftWarning, match="covshift failed to record it .*surrogates not allowed"),
        covshift.record(model, tmp_path / "run", every=1) as recorder,
    ):
        train(model, 3)
    assert recorder.step_count == 3


def test_rows_that_a_deleted_recording_does_not_take_are_named_for_what_they_are(tmp_path):
    model = perceptron()
    with (
        pytest.warns(CovshiftWarning, match=r"rows are missing from here on: .*writing failed .*deleted, moved"),
        pytest.warns(CovshiftWarning, match=r"the end of the recording is not written: .*deleted, moved"),
        covshift.record(model, tmp_path / "run", every=1) as recorder,
    ):
        train(model, 3)
        shutil.rmtree(tmp_path / "run.zarr")
        train(model, 100)
    assert recorder.step_count == 103
    assert not any("please report" in message for message in recorder.warnings)
    assert list(tmp_path.iterdir()) == []
