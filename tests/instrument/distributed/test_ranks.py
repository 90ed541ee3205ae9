"""Oracle: the tensors of every rank, copied by the worker itself, gathered here and recounted as one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import covshift
from covshift.analysis import rows
from covshift.summary import summarize

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[3]


def launch(folder, case, ranks=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(WORKER), str(folder), case],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {
        rank: torch.load(folder / f"rank{rank}.pt") for rank in range(ranks) if (folder / f"rank{rank}.pt").exists()
    }


def check_against_all_tensors(recording, ranks, layer, signal, step):
    """The recorded row against one summary of the ranks' own tensors of a step, joined along the examples."""
    together = torch.cat([rank["seen"][signal][step] for rank in ranks.values() if step < len(rank["seen"][signal])])
    check_row(recording["layers"].to_dataset().sel(step=step, layer=layer, signal=signal), together)
    return together


def check_row(row, together):
    expected = summarize(together, unit_axis=1)
    for name in ("count", "zero_count", "negative_count", "nan_count", "subnormal_count"):
        assert int(row[name]) == getattr(expected, name)
    absolute = together.double().abs().sum().item()
    np.testing.assert_allclose(float(row["sum"]), expected.sum, atol=1e-12 * absolute, rtol=0)
    np.testing.assert_allclose(float(row["m2"]), expected.moments.m2, rtol=1e-12)
    np.testing.assert_allclose(float(row["m4"]), expected.moments.m4, rtol=1e-10)
    assert (float(row["min"]), float(row["max"])) == (expected.min, expected.max)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    """Folder and words of two ranks of DDP that merge."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, launch(folder, "ddp-merge")


def check_run(folder, said, layer="module.0"):
    recording = covshift.open(folder / "run.zarr")
    for step in range(3):
        for signal in ("activation", "activation_grad"):
            together = check_against_all_tensors(recording, said, layer, signal, step)
            row = recording["layers"].to_dataset().sel(step=step, layer=layer, signal=signal)
            assert int(row["example_count"]) == len(together)
    assert recording.attrs["world_size"] == len(said)
    assert recording.attrs["loss_reduction"] == "mean"
    assert [rank["warnings"] for rank in said.values()] == [[]] * len(said)
    assert not (folder / "run.rank00001.zarr").exists()
    return recording


def test_ranks_of_ddp_merge_into_the_summary_of_all_their_tensors(ddp):
    check_run(*ddp)


@pytest.mark.slow
def test_four_ranks_merge_like_two(tmp_path):
    check_run(tmp_path, launch(tmp_path, "ddp-merge", 4))


def test_histograms_and_units_of_ranks_add_up(ddp):
    folder, said = ddp
    recording = covshift.open(folder / "run.zarr")
    row = recording["histograms"].to_dataset().sel(step=0, layer="module.0", value_signal="activation")
    parts = [summarize(rank["seen"]["activation"][0], unit_axis=1) for rank in said.values()]
    expected = sum(part.histogram.counts for part in parts)
    assert (row["value_histogram"].values == expected).all()
    units = recording["units"].to_dataset().sel(step=0, signal="activation")
    names = list(recording["layers"].layer.values)
    ours = units["unit_active_examples"].values[units["layer_index"].values == names.index("module.0")]
    assert ours.tolist() == parts[0].units.merge(parts[1].units).active_examples.tolist()


def recorded_in_one_process(ranks, losses):
    """The worker's training on all ranks' batches at once, by the loss that DistributedDataParallel follows."""
    worker = runpy.run_path(str(WORKER))
    net = worker["model"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with covshift.record(net, every=1) as recorder:
        for step in range(worker["STEPS"]):
            parts = [worker["batch"](rank, step) for rank in range(ranks)]
            outputs = net(torch.cat(parts)).square().split([len(part) for part in parts])
            losses(outputs).backward()
            optimizer.step()
            optimizer.zero_grad()
    return recorder.recording


def demand_same_gradients(merged, one, scale=1.0):
    for name in ("rms", "sd", "mean"):
        found = rows.moments(merged, signal="activation_grad")[name].values
        expected = scale * rows.moments(one, signal="activation_grad")[name].values
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7, err_msg=name)


def test_gradients_of_ranks_are_rescaled_to_those_of_the_loss_they_follow_together(ddp):
    one = recorded_in_one_process(2, lambda outputs: torch.stack([part.mean() for part in outputs]).mean())
    merged = covshift.open(ddp[0] / "run.zarr")
    demand_same_gradients(merged, one)
    norms = [run["parameters"]["gradient_norm"].values for run in (merged, one)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


@pytest.mark.slow
def test_gradients_of_a_summed_loss_are_left_as_they_are_and_those_of_parameters_averaged(tmp_path):
    said = launch(tmp_path, "ddp-sum")
    merged = covshift.open(tmp_path / "run.zarr")
    assert merged.attrs["loss_reduction"] == "sum"
    # The mean of the ranks' sums: half the sum over all examples, whose gradients a tensor's own are.
    one = recorded_in_one_process(2, lambda outputs: torch.stack([part.sum() for part in outputs]).mean())
    demand_same_gradients(merged, one, scale=len(said))
    norms = [run["parameters"]["gradient_norm"].values for run in (merged, one)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


@pytest.mark.slow
def test_separate_ranks_write_a_recording_each_of_their_own_tensors(tmp_path):
    said = launch(tmp_path, "ddp-separate")
    for rank, own in said.items():
        recording = covshift.open(tmp_path / f"run.rank{rank:05d}.zarr")
        assert recording.attrs["rank"] == rank
        check_against_all_tensors(recording, {rank: own}, "module.0", "activation", 2)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_recording_changes_no_bit_of_distributed_training(tmp_path, wrapper):
    weights = {}
    for ending in ("merge", "bare"):
        folder = tmp_path / ending
        folder.mkdir()
        weights[ending] = launch(folder, f"{wrapper}-{ending}")[0]["weights"]
    assert weights["merge"].keys() == weights["bare"].keys()
    assert all(torch.equal(weights["merge"][name], weights["bare"][name]) for name in weights["bare"])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_fsdp_merge_into_the_summary_of_all_their_tensors_and_whole_parameters(tmp_path, ranks):
    said = launch(tmp_path, "fsdp-merge", ranks)
    recording = check_run(tmp_path, said, layer="0")
    parameters = recording["parameters"].to_dataset()
    for step, (before, gradients, after) in enumerate(said[0]["gathered"]):
        for name, weight in before.items():
            row, gradient = parameters.sel(step=step, parameter=name), gradients[name].double()
            for column, tensor in (
                ("weight_norm", weight.double()),
                ("gradient_norm", gradient),
                # The recorder, too, takes the difference in the parameter's own precision.
                ("update_norm", (after[name] - weight).double()),
            ):
                square = float(tensor.square().sum())
                assert float(row[column]) ** 2 == pytest.approx(square, rel=1e-12, abs=0), (column, name)
            assert int(row["gradient_zero_count"]) == int((gradient == 0).sum())
            assert int(row["gradient_nonfinite_count"]) == 0
            assert int(row["gradient_measured"]) == 1
    assert parameters["gradient_norm_preclip"].isnull().all()


@pytest.mark.slow
def test_a_rank_that_evaluates_alone_while_the_others_wait_costs_no_record(tmp_path):
    said = launch(tmp_path, "ddp-alone")
    recording = covshift.open(tmp_path / "run.zarr")
    assert recording["layers"].step.values.tolist() == [*range(12)]
    for step in range(12):
        for signal in ("activation", "activation_grad"):
            check_against_all_tensors(recording, said, "module.0", signal, step)
    evaluation = recording["evaluation/layers"].to_dataset().sel(layer="module.0", signal="activation")
    assert evaluation.step.values.tolist() == [2, 12]
    for rank, step in ((0, 2), (1, 12)):
        (seen,) = said[rank]["seen"]["evaluation"]
        check_row(evaluation.sel(step=step), seen)
    assert [rank["warnings"] for rank in said.values()] == [[], []]


@pytest.mark.slow
def test_ranks_record_the_same_steps_of_optimizers_that_take_turns_though_one_pauses(tmp_path):
    said = launch(tmp_path, "plain-turns")
    recording = covshift.open(tmp_path / "run.zarr")
    # Due are 0, 5 and 10; turns are known from the second on, and rank 1 pauses in step 5.
    assert recording["layers"].step.values.tolist() == [0, 5, 6, 10, 11]
    for step in (0, 6, 10, 11):
        check_against_all_tensors(recording, said, "0", "activation", step)
    check_against_all_tensors(recording, {0: said[0]}, "0", "activation", 5)
    assert [rank["warnings"] for rank in said.values()] == [[], []]


@pytest.mark.slow
def test_a_rank_with_fewer_steps_contributes_nothing_to_the_rest(tmp_path):
    said = launch(tmp_path, "plain-fewer")
    recording = covshift.open(tmp_path / "run.zarr")
    assert recording["layers"].step.values.tolist() == [0, 1, 2]
    assert len(said[1]["seen"]["activation"]) == 2
    for step in range(3):
        check_against_all_tensors(recording, said, "0", "activation", step)
    assert [rank["warnings"] for rank in said.values()] == [[], []]


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_the_others_go_on(tmp_path):
    said = launch(tmp_path, "plain-death")
    recording = covshift.open(tmp_path / "run.zarr")
    assert recording["layers"].step.values.tolist() == [0, 1, 2]
    (message,) = said[0]["warnings"]
    assert "a rank did not answer" in message
    assert "only this rank's own numbers are recorded" in message
    check_against_all_tensors(recording, {0: said[0]}, "0", "activation", 2)
