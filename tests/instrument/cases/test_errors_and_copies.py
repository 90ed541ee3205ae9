"""Models that cannot be recorded, exceptions of the user's and of covshift's own, copies, and changes of type."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning, UnsupportedModelError


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compile_by", ["script", "trace"])
def test_case_34_a_script_module_is_refused_with_the_way_out(build, compile_by):
    model = build("perceptron").eval()
    scripted = torch.jit.script(model) if compile_by == "script" else torch.jit.trace(model, torch.randn(4, 6))
    with pytest.raises(UnsupportedModelError, match=r"cannot be observed; expected an eager.*before scripting it"):
        covshift.record(scripted)


def test_case_38_a_lazy_layer_is_recorded_under_its_final_type(record, assert_row):
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with record(model) as recorder:
        x = torch.randn(16, 6)
        F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long)).backward()
        expected = F.linear(x, model[0].weight.detach(), model[0].bias.detach())
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    recording = recorder.recording
    assert recording["layers"]["module_type"].sel(layer=["0", "2"]).values.tolist() == ["Linear", "Linear"]
    sizes = recording["parameters"]["parameter_size"].to_series().to_dict()
    assert sizes == {"0.weight": 48, "0.bias": 8, "2.weight": 24, "2.bias": 3}
    assert recording["parameters"]["gradient_measured"].values.all()
    assert_row(recording, expected, layer="0", signal="activation")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_case_39_a_change_of_dtype_midway_is_followed_and_statistics_stay_finite(record, watch, assert_row, dtype):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
    twin = copy.deepcopy(model).to(dtype)
    # Squares of 300 and sums of 6,400 ones overflow float16.
    x, kept = 300 * torch.randn(16, 6), watch(twin)
    twin(x.to(dtype)).float().sum().backward()
    with record(model) as recorder:
        for step_dtype in (torch.float32, dtype):
            model.to(step_dtype)
            model(x.to(step_dtype)).float().sum().backward()
            recorder.step()
    for layer in ("0", "1", "2"):
        assert kept[layer][0].value.dtype == dtype
        assert_row(recorder.recording, kept[layer][0].value, layer=layer, signal="activation", step=1)
        assert_row(recorder.recording, kept[layer][0].grad, layer=layer, signal="activation_grad", step=1)


def saved_and_loaded(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize("kind", COPIES)
def test_case_40_a_copy_made_while_recording_is_the_model_and_records_nothing(build, train, record, kind):
    model = build("perceptron")
    train(model)
    bytes_before, keys = pickle.dumps(model), list(model.state_dict())
    with record(model) as recorder:
        assert pickle.dumps(model) == bytes_before
        assert list(model.state_dict()) == keys
        train(model)
        twin = COPIES[kind](model)
        train(twin, 2)
        assert recorder.step_count == 1
        train(model)
    assert recorder.recording["layers"].step.values.tolist() == [0, 1]
    assert (recorder.recording["layers"]["example_count"].sel(layer="0", signal="activation") == 16).all()


class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.error = nn.Linear(6, 6), None

    def forward(self, x):
        y = self.linear(x)
        if self.error is not None:
            raise self.error
        return y


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: repr(e))
def test_case_42_what_a_forward_raises_reaches_the_user_and_the_step_it_was_in_is_right(
    record, watch, assert_row, error
):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(Fragile()), nn.Linear(6, 3))
    twin, x = copy.deepcopy(model), torch.randn(16, 6)
    kept = watch(twin)
    twin(x).square().sum().backward()
    with record(model) as recorder:
        model[2][0].error = error
        with pytest.raises(type(error)) as raised:
            model(torch.randn(4, 6))
        assert raised.value is error
        model[2][0].error = None
        model(x).square().sum().backward()
        recorder.step()
    assert set(recorder.recording["layers"].layer.values) == {"(input)", "0", "1", "2.0.linear", "3"}
    for layer in ("0", "1", "2.0.linear", "3"):
        assert_row(recorder.recording, kept[layer][0].value, layer=layer, signal="activation")
        assert_row(recorder.recording, kept[layer][0].grad, layer=layer, signal="activation_grad")


class Hostile(dict):
    """An output that raises in whoever looks into it."""

    def items(self):
        raise ArithmeticError("planted")


class Trap(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.hostile = nn.Linear(6, 3), nn.Identity()
        self.hostile.forward = lambda x: Hostile()

    def forward(self, x):
        self.hostile(x)
        return self.linear(x)


def test_case_43_a_fault_in_a_hook_costs_one_row_and_one_warning_not_the_training(train, unchanged):
    def make():
        torch.manual_seed(3)
        return Trap()

    planted = "layer 'hostile': covshift failed to record it (ArithmeticError: planted)"
    recorder = unchanged(make, lambda model: train(model, 3), warned=[planted])
    assert len(recorder.warnings) == 1
    assert (recorder.recording["layers"]["count"].sel(layer="linear", signal="activation_grad") == 48).all()


def test_a_user_who_makes_warnings_errors_gets_them_as_errors(train):
    model = Trap()
    with pytest.raises(CovshiftWarning, match="planted"), covshift.record(model, every=1):
        train(model)
