"""A recorder's probe: rows of its own from the same examples, and a training that keeps its bits."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import covshift
from covshift import schema
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, ProbeUnsupported, RecordingExists
from covshift.schema import Mode, Source, Status

KINDS = ("convolutional", "transformer", "recurrent")


def record(model, path=None, **options):
    """A recorder of every step."""
    return covshift.record(model, path, **{"every": 1, **options})


def held_out(model, n=8):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(n, *model.takes, generator=generator), torch.randint(3, (n,), generator=generator)


def outcome(build, train, kind, *, steps, probe_mode=None, loss=False):
    torch.manual_seed(2)
    model = build(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = held_out(model)
    options = {}
    if probe_mode is not None:
        probe = (x, lambda output: F.cross_entropy(output, y)) if loss else x
        options = {"probe": probe, "probe_every": 3, "probe_mode": probe_mode}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovshiftWarning)
        if probe_mode is None:
            losses, recorder = train(model, optimizer, steps), None
        else:
            with covshift.record(model, every=10, histograms_every=5, units_every=5, **options) as recorder:
                losses = train(model, optimizer, steps)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {"losses": losses, "gradients": gradients, "state": state, "rng": torch.get_rng_state()}, recorder


def assert_bits_are_kept(build, train, kind, *, steps, mode, loss):
    bare, _ = outcome(build, train, kind, steps=steps)
    probed, recorder = outcome(build, train, kind, steps=steps, probe_mode=mode, loss=loss)
    torch.testing.assert_close(probed, bare, rtol=0, atol=0)
    assert recorder.recording["probe/layers"].sizes["step"] == steps // 3 + 1
    assert not [message for message in recorder.warnings if "failed" in message]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_its_bits(build, train, kind, mode):
    assert_bits_are_kept(build, train, kind, steps=10, mode=mode, loss=True)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [False, True], ids=["forward", "with gradients"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_keeps_its_bits_over_100_steps(build, train, kind, mode, loss):
    assert_bits_are_kept(build, train, kind, steps=100, mode=mode, loss=loss)


def activations(model, x, *, mode, names):
    """Outputs by name of a pass by hand, as a visit runs it."""
    kept = {}
    flags = [(module, module.training) for module in model.modules()]
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, output.detach().double().clone())
        )
        for name in names
    ]
    for module, _ in flags:
        module.training = mode == "train"
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(x)
    model.load_state_dict(state)
    for module, flag in flags:
        module.training = flag
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_rows_are_those_of_the_same_examples_after_so_many_steps(build, batch, train, mode):
    model = build()
    model[7].p = 0.0
    names = ["0", "1", "4", "6", "9"]
    x, _ = held_out(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with record(model, probe=x, probe_every=2, probe_mode=mode) as recorder:
        for step in range(5):
            if step and step % 2 == 0:
                with torch.random.fork_rng(), recorder.pause():
                    expected[step] = activations(model, x, mode=mode, names=names)
            train(model, optimizer)
    rows = recorder.recording["probe/layers"].to_dataset()
    assert rows.step.values.tolist() == [0, 2, 4]
    for step, layers in expected.items():
        for name, values in layers.items():
            row = rows.sel(step=step, layer=name, signal="activation")
            assert int(row["count"]) == values.numel()
            assert int(row.example_count) == 8
            assert float(row["sum"]) == pytest.approx(float(values.sum()), rel=1e-6, abs=1e-6)
            assert float(row.m2) == pytest.approx(float((values - values.mean()).square().sum()), rel=1e-6)


def test_probe_rows_say_so_and_never_mix_with_training_rows(build, train):
    model = build()
    x, _ = held_out(model, n=5)
    with record(model, probe=x, probe_every=2) as recorder:
        train(model, steps=4)
    recording = recorder.recording
    schema.check(recording)
    for name in ("layers", "histograms", "units"):
        assert recording[f"probe/{name}"].source.values.tolist() == [Source.PROBE] * 3
        assert recording[f"probe/{name}"].mode.values.tolist() == [Mode.EVAL] * 3
        assert recording[f"probe/{name}"].step.values.tolist() == [0, 2, 4]
        assert set(recording[name].source.values.tolist()) == {Source.TRAIN}
    examples = recording["layers"].example_count.sel(signal="activation", layer="0")
    assert examples.values.tolist() == [16] * 4
    assert recording["layers"].layer.values.tolist() == recording["probe/layers"].layer.values.tolist()
    units = recording["probe/units"].to_dataset().sel(signal="activation", step=0)
    place = recording["probe/layers"].layer.values.tolist().index("0")
    assert units.unit_count.values[units.layer_index == place].tolist() == [5 * 36] * 4
    assert recording.attrs["probe_mode"] == "eval"
    assert recording.attrs["probe_every"] == "every(2)"


def test_frozen_weights_give_the_very_same_rows(build, train):
    model = build()
    x, _ = held_out(model)
    with record(model, probe=x, probe_every=1, probe_mode="train") as recorder:
        train(model, torch.optim.SGD(model.parameters(), lr=0.0), steps=3)
    rows = recorder.recording["probe/layers"].to_dataset()
    for name in ("sum", "m2", "min", "zero_count"):
        assert all(np.array_equal(rows[name][0], rows[name][k], equal_nan=True) for k in range(1, 4)), name


def test_gradients_of_a_probe_are_those_of_its_loss(build, train):
    model = build()
    x, y = held_out(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    kept = []
    with record(model, probe=(x, lambda output: F.cross_entropy(output, y)), probe_every=1) as recorder:
        train(model, optimizer)
    model.eval()

    def listen(module, args, output):
        output.register_hook(kept.append)

    handle = model[4].register_forward_hook(listen)
    F.cross_entropy(model(x), y).backward()
    handle.remove()
    row = recorder.recording["probe/layers"].sel(step=1, layer="4", signal="activation_grad")
    assert int(row.status) == Status.OK
    assert float(row.m2) == pytest.approx(float(kept[0].double().var(correction=0) * kept[0].numel()), rel=1e-6)


def test_without_a_loss_gradients_say_why_they_are_missing(build, train):
    model = build()
    with record(model, probe=held_out(model)[0], probe_every=1) as recorder:
        train(model)
    gradients = recorder.recording["probe/layers"].sel(signal="activation_grad", layer="4")
    assert (gradients.status == Status.NO_GRAD_FORWARD).all()
    assert not gradients["count"].any()


def test_probes_run_in_the_precision_of_training(build):
    model = build("recurrent")
    x, y = held_out(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtypes = []
    model.head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with record(model, probe=x, probe_every=1) as recorder:
        dtypes.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert dtypes == [torch.bfloat16] * 3
    assert recorder.recording["layers"].dtype.sel(layer="head") == "bfloat16"


def test_another_recorder_of_the_same_model_sees_no_probe(build, train):
    model = build()
    x, y = held_out(model, n=3)
    probe = (x, lambda output: F.cross_entropy(output, y))
    with record(model) as other, record(model, probe=probe, probe_every=1):
        train(model, steps=3)
    assert other.step_count == 3
    assert (other.recording["layers"].example_count.sel(signal="activation", layer="0") == 16).all()


def test_a_probe_waits_for_every_optimizer_of_a_step(build, batch):
    model = build()
    x, _ = held_out(model)
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:5], model[5:])]
    expected = []
    with record(model, probe=x, probe_every=1) as recorder:
        for _ in range(2):
            inputs, y = batch(model)
            F.cross_entropy(model(inputs), y).backward()
            for optimizer in halves:
                optimizer.step()
                optimizer.zero_grad()
            with recorder.pause():
                expected.append(activations(model, x, mode="eval", names=["9"])["9"].sum().item())
    rows = recorder.recording["probe/layers"].to_dataset().sel(signal="activation", layer="9")
    assert rows.step.values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(rows["sum"][1:], expected, rtol=1e-6)


def test_a_probe_sees_the_running_statistics_of_the_steps_done(build, train):
    model = build()
    x, _ = held_out(model)
    fresh = activations(model, x, mode="eval", names=["1"])["1"]
    with record(model, probe=x, probe_every=1) as recorder:
        train(model)
    row = recorder.recording["probe/layers"].sel(step=0, layer="1", signal="activation")
    assert float(row.m2) == pytest.approx(float((fresh - fresh.mean()).square().sum()), rel=1e-6)


def test_a_model_that_relies_on_a_default_device_is_probed_under_it(build):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.seen = []

        def forward(self, x):
            self.seen.append(torch.ones(1).device.type)
            return self.lin(x)

    model, x = Positions(), torch.ones(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, probe=x, probe_every=1):
        with torch.device("meta"):
            model.seen.clear()
            loss = model(x).sum()
        loss.backward()
        optimizer.step()
    # The probe of step 0, the training pass, and the probe at the end, where the default device is the CPU again.
    assert model.seen == ["meta", "meta", "cpu"]


def test_a_pause_pauses_the_probe(build, train):
    model = build()
    with record(model, probe=held_out(model)[0], probe_every=1) as recorder:
        train(model)
        with recorder.pause():
            train(model)
        train(model)
    assert recorder.recording["probe/layers"].step.values.tolist() == [0, 2, 3]


def test_a_probe_that_fails_later_costs_its_row_and_not_the_training(build, train):
    model = build()
    x, _ = held_out(model)
    failing = False

    def loss(output):
        if failing:
            raise ZeroDivisionError
        return output.sum()

    warned = pytest.warns(CovshiftWarning, match=r"'probe': covshift failed to record it \(ZeroDivisionError")
    with warned, record(model, probe=(x, loss), probe_every=1) as recorder:
        train(model)
        failing = True
        train(model)
    assert recorder.recording["probe/layers"].step.values.tolist() == [0]
    assert recorder.step_count == 2


def test_a_loss_that_explodes_is_recorded(build, train):
    model = build()
    x, _ = held_out(model)
    with record(model, probe=(x, lambda output: output.sum() * float("inf")), probe_every=1) as recorder:
        train(model)
    rows = recorder.recording["probe/layers"].sel(layer="9", signal="activation_grad")
    assert (rows.posinf_count == rows["count"]).all()
    assert (rows["count"] > 0).all()


def test_a_compiled_model_is_probed_inside(build, train):
    model = build()

    def eager(graph, inputs):
        return graph.forward

    compiled = torch.compile(model, backend=eager)
    compiled.takes = model.takes
    with warnings.catch_warnings():
        # Of covshift, that compiled models are opaque, and of torch, that its hooks fire for the wrapper, too.
        warnings.simplefilter("ignore")
        with record(compiled, probe=held_out(model)[0], probe_every=1) as recorder:
            train(compiled, torch.optim.SGD(model.parameters(), lr=0.1))
    assert "_orig_mod.4" in recorder.recording["probe/layers"].layer


def test_the_recording_is_the_same_from_disk(build, train, tmp_path):
    model = build()
    with record(model, tmp_path / "run", probe=held_out(model)[0], probe_every=1) as recorder:
        train(model, steps=2)
    opened = covshift.open(tmp_path / "run.zarr")
    assert opened["probe/layers"].to_dataset().equals(recorder.recording["probe/layers"].to_dataset())
    assert opened["probe/layers"].source.values.tolist() == [Source.PROBE] * 3


class Sum(nn.Module):
    takes = (3,)

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x, other=None):
        return self.lin(x if other is None else x + other)


@pytest.mark.parametrize(
    "probe",
    [
        (torch.ones(4, 3), torch.ones(4, 3)),
        {"x": torch.ones(4, 3), "other": torch.ones(4, 3)},
        (torch.ones(4, 3), torch.ones(4, 3), lambda output: output.sum()),
        ({"x": torch.ones(4, 3), "other": torch.ones(4, 3)}, lambda output: output.sum()),
        ((torch.ones(4, 3), torch.ones(4, 3)), lambda output: output.sum()),
    ],
    ids=["tuple", "mapping", "tuple and loss", "mapping and loss", "pair and loss"],
)
def test_a_probe_is_positional_or_keyword_inputs_and_maybe_a_loss(probe):
    model = Sum()
    with record(model, probe=probe, probe_every=1) as recorder:
        model(torch.ones(2, 3)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    row = recorder.recording["probe/layers"].sel(step=1, layer="lin", signal="activation")
    expected = model.lin(torch.full((4, 3), 2.0)).sum().item()
    assert float(row["sum"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("probe", "options", "message"),
    [
        (torch.zeros(0, 3), {}, r"probe: a tensor of shape \(0, 3\) is empty"),
        (torch.full((2, 3), float("nan")), {}, r"probe: a tensor of shape \(2, 3\) has NaN"),
        (torch.zeros(2, 3, device="meta"), {}, r"probe: a tensor is on meta, the model on cpu"),
        (3, {}, r"probe=int: expected a tensor, a tuple or mapping"),
        ((), {}, r"probe: holds no tensor"),
        (torch.ones(2, 4), {}, r"probe: the model does not run on it \(RuntimeError"),
        (
            (torch.ones(2, 3), torch.ones(2, 3), torch.ones(1)),
            {},
            r"positional .* give \(inputs, lambda output: loss_fn",
        ),
        ((torch.ones(2, 3), lambda output: output), {}, r"loss_fn: returned a tensor of shape \(2, 3\)"),
        (torch.ones(2, 3), {"probe_mode": "test"}, r"probe_mode='test': expected one of eval, train"),
        (torch.ones(2, 3), {"probe_every": 0}, r"probe_every=0: expected a whole number from 1"),
    ],
)
def test_probes_that_cannot_be_used_are_named_before_anything_is_touched(tmp_path, probe, options, message):
    with record(Sum(), tmp_path / "run"):
        pass
    with pytest.raises(InvalidArgumentError, match=message):
        record(Sum(), tmp_path / "run", probe=probe, overwrite=True, **options)
    with pytest.raises(RecordingExists):
        record(Sum(), tmp_path / "run")


def test_models_that_cannot_be_probed_are_refused_only_with_a_probe():
    model = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    with pytest.raises(ProbeUnsupported, match="SyncBatchNorm"):
        record(model, probe=torch.ones(2, 2))
    record(model)
