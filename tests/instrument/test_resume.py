"""A run that is continued from a checkpoint. Oracle: the same run without interruption."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftError, CovshiftWarning, InvalidArgumentError, RecordingExists


def run(path, steps, *, start=None, state=None, checkpoint=None, **options):
    """Train up to ``steps`` steps from the start or from a checkpoint; batches depend on the step only."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    saved = {}
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    recorder = covshift.record(model, path, every=1, start_step=start, **options)
    if state is not None:
        recorder.load_state_dict(state)
    with recorder:
        for step in range(recorder.step_count, steps):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss)
            if recorder.step_count == 3:
                copies = {name: value.clone() for name, value in model.state_dict().items()}
                # Cloned, as saving to a file would: the optimizer goes on changing its own.
                moments = optimizer.state_dict()
                moments["state"] = {
                    key: {name: value.clone() for name, value in kept.items()} for key, kept in moments["state"].items()
                }
                saved = {"model": copies, "optimizer": moments, "recorder": recorder.state_dict()}
    return saved


@pytest.mark.parametrize("told_by", ["start_step", "state_dict"])
def test_a_continued_run_reads_like_one_that_was_never_interrupted(tmp_path, told_by):
    run(tmp_path / "whole", 8)
    checkpoint = run(tmp_path / "parts", 5)
    assert checkpoint["recorder"] == {"step": 3, "records": 3}
    told = {"start": 3} if told_by == "start_step" else {"state": checkpoint["recorder"]}
    run(tmp_path / "parts", 8, checkpoint=checkpoint, resume=True, **told)
    whole, parts = covshift.open(tmp_path / "whole"), covshift.open(tmp_path / "parts")
    for group in ("layers", "units", "parameters", "scalars"):
        expected, found = whole[group].to_dataset(), parts[group].to_dataset()
        assert found.step.values.tolist() == list(range(8))
        if group == "parameters":
            # The gradient of the record before is kept in no checkpoint, so the first one is not known to have turned.
            expected["gradient_cosine"][3] = np.nan
        for name in expected.data_vars:
            if name != "wall_time":
                np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=f"{group}/{name}")
    replaced = parts["superseded/attempt_0/layers"].to_dataset()
    assert replaced.step.values.tolist() == [3, 4]


def test_without_a_step_a_recording_cannot_be_resumed_and_stays_as_it_was(tmp_path):
    run(tmp_path / "a", 4)
    with pytest.raises(InvalidArgumentError, match=r"from which step\? Give start_step=.*load_state_dict"):
        run(tmp_path / "a", 6, resume=True)
    assert covshift.open(tmp_path / "a")["layers"].step.values.tolist() == [0, 1, 2, 3]
    run(tmp_path / "a", 6, resume=True, start=4)


def test_resume_begins_a_recording_where_there_is_none(tmp_path):
    run(tmp_path / "new", 3, resume=True)
    assert covshift.open(tmp_path / "new")["layers"].step.values.tolist() == [0, 1, 2]


def test_a_restart_in_the_middle_that_finds_no_recording_says_so_and_records(tmp_path):
    with pytest.warns(CovshiftWarning, match=r"new\.zarr' held no recording to be continued at step 2; a new one"):
        run(tmp_path / "new", 4, resume=True, start=2)
    assert covshift.open(tmp_path / "new")["layers"].step.values.tolist() == [2, 3]


def test_an_existing_recording_names_both_ways_to_go_on(tmp_path):
    run(tmp_path / "a", 2)
    with pytest.raises(RecordingExists, match=r"(?s)resume=True.*overwrite=True|overwrite=True.*resume=True"):
        run(tmp_path / "a", 2)


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.5}, {"step": True}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(InvalidArgumentError, match=r"step=.*: expected the number of optimizer steps done"):
        covshift.record(nn.Linear(1, 1)).load_state_dict(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "state=None: expected what recorder.state_dict"),
        (7, "state=7: expected what recorder.state_dict"),
        ({"step": 3, "records": "x"}, "records='x': expected the number of records made"),
        ({"step": 3, "records": -4}, "records=-4: expected the number of records made"),
    ],
)
def test_a_state_of_other_kinds_is_refused_before_it_costs_any_record(state, message):
    with pytest.raises(InvalidArgumentError, match=message):
        covshift.record(nn.Linear(1, 1)).load_state_dict(state)


def test_a_state_comes_before_the_first_step():
    with covshift.record(nn.Linear(1, 1)) as recorder, pytest.raises(CovshiftError, match="call it before the with"):
        recorder.load_state_dict({"step": 3})


def test_a_resume_far_ahead_counts_what_it_leaves_out_without_asking_for_every_step(tmp_path):
    run(tmp_path / "a", 3)
    recorder = covshift.record(nn.Linear(1, 1), tmp_path / "b", every=7, start_step=10**15)
    assert recorder.state_dict() == {"step": 10**15, "records": -(-(10**15) // 7)}
    far = 10**12
    message = rf"{far - 3} steps that were due, from 3 to {far - 1}, are in no record"
    with pytest.warns(CovshiftWarning, match=message), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no recorded forward pass")
        run(tmp_path / "a", far + 1, start=far, resume=True)
    with pytest.raises(InvalidArgumentError, match=r"step=1000000000000001: expected the number of optimizer steps"):
        covshift.record(nn.Linear(1, 1), None, start_step=10**15 + 1)


def chained(path, starts, *, evaluates_first=False, **options):
    """Jobs of three steps each, which evaluate at their end, perhaps at their beginning too: sums of the outputs."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4), torch.randn(8, 4)
    optimizer, sums = torch.optim.SGD(model.parameters(), lr=0.01), []

    def evaluate(recorder):
        with torch.no_grad(), recorder.evaluation():
            sums.append(float(model(x).double().sum()))

    for start in starts:
        with covshift.record(model, path, every=1, resume=True, start_step=start, **options) as recorder:
            if evaluates_first:
                with torch.no_grad():
                    model.bias.add_(1)
                evaluate(recorder)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
            evaluate(recorder)
        assert recorder.warnings == []
    return sums


def test_jobs_that_evaluate_before_their_checkpoint_keep_every_evaluation(tmp_path):
    sums = chained(tmp_path / "run", (0, 3, 6))
    recording = covshift.open(tmp_path / "run")
    rows = recording["evaluation/layers"].to_dataset().sel(layer="(root)", signal="activation")
    assert rows.step.values.tolist() == [3, 6, 9]
    np.testing.assert_allclose(rows["sum"], sums, rtol=1e-6)
    assert recording["layers"].step.values.tolist() == list(range(9))
    assert "superseded" not in recording.children


def test_of_two_evaluations_after_as_many_steps_the_one_of_the_job_that_goes_on_stands(tmp_path):
    sums = chained(tmp_path / "run", (0, 3), evaluates_first=True)
    recording = covshift.open(tmp_path / "run")
    rows = recording["evaluation/layers"].to_dataset().sel(layer="(root)", signal="activation")
    assert rows.step.values.tolist() == [0, 3, 6]
    assert abs(sums[2] - sums[1]) > 1
    np.testing.assert_allclose(rows["sum"], [sums[0], sums[2], sums[3]], rtol=1e-6)
    replaced = recording["superseded/attempt_0/evaluation/layers"].to_dataset()
    np.testing.assert_allclose(replaced["sum"].sel(layer="(root)", signal="activation"), [sums[1]], rtol=1e-6)


def test_the_probe_of_the_last_state_stays_where_a_job_goes_on_without_one(tmp_path):
    probe = torch.ones(2, 4)
    chained(tmp_path / "run", (0,), probe=probe, probe_every=1)
    chained(tmp_path / "run", (3,))
    assert covshift.open(tmp_path / "run")["probe/layers"].step.values.tolist() == [0, 1, 2, 3]
    chained(tmp_path / "run", (6,), probe=probe, probe_every=1)
    assert covshift.open(tmp_path / "run")["probe/layers"].step.values.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
