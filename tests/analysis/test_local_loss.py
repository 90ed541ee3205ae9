"""Gradients of ranks against those of one process. Oracle: the same net trained by one loss over all examples.

Ranks are copies of one net here, each with a loss of its own; their gradients are averaged by hand, as
DistributedDataParallel does.
"""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift import schema
from covshift.analysis import comparison, differences, local_loss, rows, shift
from covshift.analysis.gradient_health import growth_over_time, norm_profile
from covshift.exceptions import CovshiftWarning, InvalidArgumentError
from covshift.store.runs import side_by_side

STEPS, EXAMPLES = 12, 12
REDUCED = {"mean": torch.mean, "sum": torch.sum}
TOLERANCE = 1e-4
"""Of float32 gradients that are added up in another order, after some steps of training."""


def net():
    torch.manual_seed(0)
    parts = [part for _ in range(6) for part in (nn.Linear(8, 8), nn.Tanh())]
    return nn.Sequential(*parts, nn.Linear(8, 1))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(EXAMPLES, 8, generator=generator) for _ in range(STEPS)]


def trained(ranks, reduction, *, rate=0.05):
    """Recordings of every rank's copy, trained on its part of each batch with the mean of all ranks' gradients."""
    whole = net()
    copies = [copy.deepcopy(whole) for _ in range(ranks)]
    optimizers = [torch.optim.SGD(one.parameters(), lr=rate) for one in copies]
    recorders = [covshift.record(one, every=1, loss_reduction=reduction) for one in copies]
    for recorder in recorders:
        recorder.__enter__()
    with warnings.catch_warnings():
        # That gradients change between the backward pass and the step is what averaging them does.
        warnings.filterwarnings("ignore", "gradients changed between the backward pass", CovshiftWarning)
        _train(copies, optimizers, reduction)
    for recorder in recorders:
        recorder.__exit__(None, None, None)
    trees = [recorder.recording for recorder in recorders]
    for rank, tree in enumerate(trees):
        tree.attrs |= {"rank": rank, "world_size": ranks}
    return trees


def _train(copies, optimizers, reduction):
    for batch in batches():
        for one, part in zip(copies, batch.chunk(len(copies)), strict=True):
            REDUCED[reduction]((one(part) - 1).square()).backward()
        for together in zip(*(one.parameters() for one in copies), strict=True):
            mean = torch.stack([parameter.grad for parameter in together]).mean(0)
            for parameter in together:
                parameter.grad.copy_(mean)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


CASES = [
    pytest.param((reduction, ranks), id=f"{reduction}-{ranks}", marks=[pytest.mark.slow] if ranks > 2 else [])
    for reduction, ranks in (("mean", 2), ("sum", 2), ("mean", 3), ("sum", 4))
]


@pytest.fixture(scope="module", params=CASES)
def runs(request):
    """Reduction, recordings of all ranks, and the recording of one process that learns as fast."""
    reduction, ranks = request.param
    rate = 0.05 if reduction == "mean" else 0.002
    (one,) = trained(1, reduction, rate=rate)
    return reduction, trained(ranks, reduction, rate=rate * (ranks if reduction == "sum" else 1)), one


def test_ranks_and_one_process_have_the_same_gradients(runs):
    reduction, ranks, one = runs
    merged = covshift.merge(ranks)
    raw, alone = (rows.moments(run, signal="activation_grad", as_recorded=True)["rms"] for run in (merged, one))
    apart = len(ranks) if reduction == "mean" else 1
    np.testing.assert_allclose(raw.values, apart * alone.values, rtol=TOLERANCE)
    for signal in schema.GRADIENT_SIGNALS:
        found, expected = (rows.moments(run, signal=signal) for run in (merged, one))
        for name in ("n", "sd", "rms", "skewness", "kurtosis"):
            np.testing.assert_allclose(found[name].values, expected[name].values, rtol=10 * TOLERANCE, err_msg=name)
        size = expected["rms"].values
        np.testing.assert_allclose(found["mean"].values / size, expected["mean"].values / size, atol=TOLERANCE)


def test_one_rank_has_the_gradients_of_its_own_examples_under_the_whole_loss(runs):
    reduction, ranks, _ = runs
    whole, batch = net(), batches()[0]
    outputs = []
    whole[0].register_forward_hook(lambda module, args, output: (output.retain_grad(), outputs.append(output))[0])
    REDUCED[reduction]((whole(batch) - 1).square()).backward()
    for rank, part in zip(ranks, outputs[0].grad.chunk(len(ranks)), strict=True):
        found = rows.moments(rank, signal="activation_grad").sel(step=0, layer="0")
        assert float(found["rms"]) == pytest.approx(float(part.double().square().mean().sqrt()), rel=TOLERANCE)
        assert float(found["sd"]) == pytest.approx(float(part.double().std(correction=0)), rel=TOLERANCE)


def test_comparisons_of_ranks_with_one_process_find_no_difference(runs):
    _, ranks, one = runs
    merged = covshift.merge(ranks)
    profiles = [norm_profile(run) for run in (merged, one)]
    for name in ("rms", "slope", "total_decades"):
        np.testing.assert_allclose(profiles[0][name].values, profiles[1][name].values, rtol=20 * TOLERANCE)
    pair = {"ranks": merged, "one": one}
    of_run = comparison.paired_layers(pair)["gradient_rms"].values
    np.testing.assert_allclose(of_run[0], of_run[1], rtol=TOLERANCE)
    apart = differences.group_differences(pair, groups={"ranks": "ranks", "one": "one"})["gradient_rms"]
    assert float(abs(apart).max()) < TOLERANCE


def test_diagnoses_of_ranks_and_one_process_agree(runs):
    _, ranks, one = runs
    found, expected = (
        {(one.check, one.layer): one for one in covshift.diagnose(run).findings} for run in (covshift.merge(ranks), one)
    )
    assert found.keys() == expected.keys()
    scale = {"scale over depth", "scale over time", "trust ratio", "update ratio", "gradient zeros", "gradient arrives"}
    assert scale <= {check for check, _ in found}
    for key in found:
        if key[0] in scale:
            assert found[key].verdict == expected[key].verdict, key
            assert found[key].value == pytest.approx(expected[key].value, rel=1e-2, abs=1e-3, nan_ok=True), key


def test_side_by_side_every_run_keeps_its_own_number_of_ranks(runs):
    _, ranks, one = runs
    merged = covshift.merge(ranks)
    both = side_by_side({"one": one, "ranks": merged})
    for name, run in (("one", one), ("ranks", merged)):
        found = rows.moments(both.sel(run=name), signal="activation_grad")["rms"]
        np.testing.assert_array_equal(
            found.sel(layer="0").values, rows.moments(run, signal="activation_grad")["rms"].sel(layer="0").values
        )


@pytest.fixture
def gradients():
    return np.random.default_rng(0).normal(size=(6, 4, 5))


def of(make_recording, gradients, *, factors=None, **attrs):
    """A recording whose gradients are as many times larger as ``factors`` say, one for each record."""
    factors = [1.0] * 6 if factors is None else factors
    tensors = {
        10 * at: {"fc": {"activation": gradient + 1, "activation_grad": factor * gradient}}
        for at, (factor, gradient) in enumerate(zip(factors, gradients, strict=True))
    }
    tree = make_recording(tensors)
    tree.attrs |= attrs
    return tree


def rms(recording, **options):
    return rows.moments(recording, signal="activation_grad", **options)["rms"].values[:, 0]


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"world_size": 1},
        {"world_size": 1, "loss_reduction": "mean"},
        {"world_size": 1, "loss_reduction": "something"},
        {"world_size": 4, "loss_reduction": "sum"},
    ],
)
def test_without_other_ranks_not_one_bit_is_changed(make_recording, gradients, attrs):
    recording = of(make_recording, gradients, **attrs)
    layers = recording["layers"].to_dataset()
    assert local_loss.factors(recording.attrs, layers, signal="activation_grad") is None
    found, raw = (rows.moments(recording, signal="activation_grad", as_recorded=as_is) for as_is in (False, True))
    for name in found.data_vars:
        np.testing.assert_array_equal(found[name].values, raw[name].values)


def test_activations_are_never_rescaled(make_recording, gradients):
    runs = [of(make_recording, gradients, world_size=ranks, loss_reduction="mean") for ranks in (1, 8)]
    one, many = (rows.moments(run, signal="activation") for run in runs)
    np.testing.assert_array_equal(one["rms"].values, many["rms"].values)


@pytest.mark.parametrize(
    "attrs",
    [
        {"world_size": 4},
        {"world_size": 4, "loss_reduction": "max"},
        {"world_size": "four", "loss_reduction": "mean"},
        {"world_size": 0, "loss_reduction": "mean"},
    ],
)
def test_gradients_of_an_unknown_scale_are_read_as_recorded_with_a_warning(make_recording, gradients, attrs):
    recording = of(make_recording, gradients, **attrs)
    with pytest.warns(CovshiftWarning, match=r"world_size=.*, loss_reduction=.*: gradients are read as recorded"):
        found = rms(recording)
    np.testing.assert_array_equal(found, rms(recording, as_recorded=True))


def test_a_resume_with_another_number_of_ranks_makes_no_gradient_grow(make_recording, gradients):
    resumes = [
        {"step": 30, "attrs": {"world_size": 4}},
        {"step": 50, "attrs": {"world_size": 2, "loss_reduction": "sum"}},
    ]
    recording = of(
        make_recording,
        gradients,
        factors=[1.0, 1.0, 1.0, 4.0, 4.0, 1.0],
        world_size=1,
        loss_reduction="mean",
        covshift_resumes=resumes,
    )
    expected = of(make_recording, gradients)
    np.testing.assert_allclose(rms(recording), rms(expected), rtol=1e-12)
    np.testing.assert_allclose(growth_over_time(recording).values, growth_over_time(expected).values, atol=1e-12)
    found, plain = (shift.between_steps(run, signal="activation_grad") for run in (recording, expected))
    for name in ("w1", "js", "smd", "log_var_ratio"):
        np.testing.assert_allclose(found[name].values, plain[name].values, rtol=1e-9, atol=1e-12)
    recording.attrs["covshift_resumes"] = str(resumes).replace("'", '"')
    np.testing.assert_allclose(rms(recording), rms(expected), rtol=1e-12)


def test_histograms_of_gradients_compare_between_numbers_of_ranks_that_are_powers_of_two(make_recording, gradients):
    one = of(make_recording, gradients)
    two, three = (
        of(make_recording, gradients, factors=[float(ranks)] * 6, world_size=ranks, loss_reduction="mean")
        for ranks in (2, 3)
    )
    for pair in ((one, two), (two, one)):
        found = shift.between_runs(*pair, signal="activation_grad")
        for name in ("w1", "ks", "js", "energy", "smd", "log_var_ratio"):
            assert float(found[name].sel(layer="fc")) == 0.0, name
    with pytest.raises(InvalidArgumentError, match=r"bins can be moved by powers of two only; compare moments"):
        shift.between_runs(one, three, signal="activation_grad")
    same = shift.between_runs(three, three, signal="activation_grad")
    assert float(same["w1"].sel(layer="fc")) == 0.0


@pytest.mark.parametrize(("ranks", "factor"), [("merge", 0.25), ("separate", 1.0)])
def test_probes_are_rescaled_where_they_are_pooled_and_evaluations_never(make_recording, gradients, ranks, factor):
    attrs = {"world_size": 4, "loss_reduction": "mean", "ranks": ranks}
    layers = of(make_recording, gradients)["layers"].to_dataset()
    found = local_loss.factors(attrs, layers, signal="activation_grad", stream="probe")
    assert (found is None) if factor == 1.0 else (found == factor).all()
    assert local_loss.factors(attrs, layers, signal="activation_grad", stream="evaluation") is None
    np.testing.assert_array_equal(local_loss.factors(attrs, layers, signal="preactivation_grad"), [0.25] * 6)
