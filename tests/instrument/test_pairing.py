"""Ranks that record different things. Ranks are threads here, with models of their own and an exchange of their own.

Oracle: the tensors themselves, copied by the test's own hooks and summarised as one.
"""

import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import covshift
from covshift.exceptions import CovshiftWarning
from covshift.instrument.distributed import ENDED, Exchange, merged
from covshift.instrument.pairing import MOST_HELD, Pairing
from covshift.summary import summarize

PATIENCE = 20


class Meeting:
    """Where as many threads as there are ranks give what they have, and all wait for the last."""

    def __init__(self, size):
        self.size, self.given = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)


class Ranks:
    """What :class:`covshift.instrument.distributed.Ranks` is for processes."""

    def __init__(self, meeting, rank):
        self._meeting, self._rank, self.size = meeting, rank, meeting.size

    @property
    def is_first(self):
        return self._rank == 0

    def exchange(self, mine, *, complete):
        meeting = self._meeting
        try:
            meeting.given[self._rank] = (list(mine), complete)
            meeting.barrier.wait()
            found = list(meeting.given)
            meeting.barrier.wait()
        except threading.BrokenBarrierError:
            raise RuntimeError("nobody came") from None
        records = [record for given, _ in found for record in given] if self.is_first else []
        return Exchange(records, min(complete for _, complete in found))

    def leave(self):
        pass


class Rank:
    """One thread's model, what it saw of the first layer by step, and how to train and evaluate it."""

    def __init__(self, number):
        torch.manual_seed(0)
        self.number = number
        self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(number)
        self.seen, self.evaluated, self.recorder = {}, {}, None
        self.net[0].register_forward_hook(self._see)

    def _see(self, module, args, output):
        if self.recorder is None:
            return
        where = self.seen if torch.is_grad_enabled() else self.evaluated
        where.setdefault(self.recorder.step_count, []).append(output.detach().clone())

    def batch(self):
        return torch.randn(3 + self.number, 4, generator=self.generator)

    def train(self, steps=1):
        for _ in range(steps):
            self.net(self.batch()).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def evaluate(self, batches=1):
        with torch.no_grad(), self.recorder.evaluation():
            for _ in range(batches):
                self.net(self.batch())


class RankOfSequences(Rank):
    """Rank 0 trains on sequences of 7 positions, rank 1 on those of 9."""

    def __init__(self, number):
        super().__init__(number)
        self.net = nn.Sequential(nn.Conv1d(4, 5, 3), nn.ReLU())
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.net[0].register_forward_hook(self._see)
        self.inputs = []

    def batch(self):
        self.inputs.append(torch.randn(3, 4, 7 + 2 * self.number, generator=self.generator))
        return self.inputs[-1]


@pytest.fixture
def together(monkeypatch):
    """Run ``program(rank)`` in a thread for each of ``size`` ranks, recording; the ranks and rank 0's recording."""

    def run(program, *, size=2, make=Rank, **options):
        meeting, here = Meeting(size), threading.local()
        ranks, errors = [make(number) for number in range(size)], []
        for room in ("attach", "recorder"):
            monkeypatch.setattr(f"covshift.{room}.is_distributed", lambda: True)
        monkeypatch.setattr("covshift.attach.rank", lambda: here.rank)
        monkeypatch.setattr("covshift.recorder.Ranks", lambda: Ranks(meeting, here.rank))

        def work(rank):
            here.rank = rank.number
            try:
                own = {
                    name: value[rank.number] if isinstance(value, tuple) else value for name, value in options.items()
                }
                with covshift.record(rank.net, ranks="merge", **own) as rank.recorder:
                    program(rank)
            except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
                errors.append(error)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return ranks, ranks[0].recorder.recording

    return run


def check(recording, path, tensors):
    """Rows of the first layer at a step against one summary of all tensors of the step."""
    rows = recording[path].to_dataset().sel(layer="0", signal="activation")
    assert rows.step.values.tolist() == sorted(tensors)
    for step, parts in tensors.items():
        whole = torch.cat(parts)
        expected, row = summarize(whole, unit_axis=1), rows.sel(step=step)
        for name in ("count", "zero_count", "negative_count", "nan_count", "subnormal_count"):
            assert int(row[name]) == getattr(expected, name), (step, name)
        assert int(row["example_count"]) == len(whole)
        absolute = float(whole.double().abs().sum())
        np.testing.assert_allclose(float(row["sum"]), expected.sum, atol=1e-12 * absolute, rtol=0)
        np.testing.assert_allclose(float(row["m2"]), expected.moments.m2, rtol=1e-12)


def joined(*by_step):
    found = {}
    for one in by_step:
        for step, tensors in one.items():
            found.setdefault(step, []).extend(tensors)
    return found


def of(ranks, what="seen", *, every=1):
    """By step, what was seen by all ranks that saw something."""
    return joined(*({step: seen for step, seen in getattr(rank, what).items() if step % every == 0} for rank in ranks))


def test_ranks_whose_sequences_differ_in_length_lose_units_of_positions_alone_and_name_them_once(together):
    with pytest.warns(CovshiftWarning, match=r"^layer '\(input\)': 9 units, but it was recorded with 7; units are"):
        ranks, recording = together(lambda rank: rank.train(3), make=RankOfSequences, every=1, units_every=1)
    assert [len(rank.recorder.warnings) for rank in ranks] == [1, 0]
    layers, histograms = (recording[name].to_dataset() for name in ("layers", "histograms"))
    units = recording["units"].to_dataset().sel(signal="activation")
    for step in range(3):
        inputs = [rank.inputs[step] for rank in ranks]
        row = layers.sel(step=step, layer="(input)", signal="input")
        binned = histograms["value_histogram"].sel(step=step, layer="(input)", value_signal="input")
        assert int(row["count"]) == int(binned.sum()) == sum(x.numel() for x in inputs)
        np.testing.assert_allclose(float(row["sum"]), sum(x.double().sum() for x in inputs), rtol=1e-12)
        parts = [summarize(rank.seen[step][0], unit_axis=1).units for rank in ranks]
        counts = units["unit_count"].sel(step=step).values.tolist()
        assert counts[:12] == [0] * 7 + parts[0].merge(parts[1]).count.tolist()


def test_an_evaluation_of_one_rank_alone_costs_no_other_record(together):
    def program(rank):
        rank.train(2)
        if rank.number == 0:
            rank.evaluate(2)
        rank.train(10)

    ranks, recording = together(program, every=1)
    check(recording, "layers", of(ranks))
    check(recording, "evaluation/layers", of(ranks[:1], "evaluated"))
    assert [rank.recorder.warnings for rank in ranks] == [[], []]


def test_whichever_ranks_evaluate_whenever_every_record_is_exact(together):
    plan = {1: (0, 1, 2), 3: (2,), 4: (1, 2), 6: (0,), 9: (1,)}

    def program(rank):
        for step in range(10):
            if rank.number in plan.get(step, ()):
                rank.evaluate(1 + rank.number)
            if step < 9:
                rank.train()

    ranks, recording = together(program, size=3, every=4)
    check(recording, "layers", of(ranks, every=4))
    check(recording, "evaluation/layers", of(ranks, "evaluated"))
    assert set(of(ranks, "evaluated")) == set(plan)
    assert [rank.recorder.warnings for rank in ranks] == [[]] * 3


def test_an_evaluation_waits_for_no_other_rank(together):
    """Rank 0 evaluates while the others wait for it, as at a barrier; it must come back to let them on."""
    done = threading.Event()

    def program(rank):
        rank.train(3)
        if rank.number == 0:
            rank.evaluate()
            done.set()
        assert done.wait(PATIENCE / 4)
        rank.train(2)

    ranks, recording = together(program, every=2)
    check(recording, "layers", of(ranks, every=2))
    check(recording, "evaluation/layers", of(ranks[:1], "evaluated"))


def test_an_evaluation_is_written_when_the_next_step_that_is_due_has_ended(together):
    found = {}

    def program(rank):
        rank.train(3)
        rank.evaluate()
        for steps in (2, 2):
            if rank.number == 0:
                found[rank.recorder.step_count] = "/evaluation" in rank.recorder.recording.groups
            rank.train(steps)

    _, recording = together(program, every=4)
    assert found == {3: False, 5: True}
    assert "/evaluation" in recording.groups


def test_ranks_that_end_early_give_what_they_have_and_take_part_in_the_rest(together):
    def program(rank):
        rank.train(6 - 2 * rank.number)
        if rank.number == 1:
            rank.evaluate()

    ranks, recording = together(program, size=3, every=1)
    check(recording, "layers", of(ranks))
    check(recording, "evaluation/layers", of(ranks[1:2], "evaluated"))


def test_a_paused_rank_leaves_a_step_to_the_others_and_slower_cadences_agree(together):
    def program(rank):
        for step in range(14):
            with rank.recorder.pause() if rank.number == 1 and step in (3, 4) else nullcontext():
                rank.train()

    ranks, recording = together(program, every=1)
    for step in (3, 4):
        del ranks[1].seen[step]
    check(recording, "layers", of(ranks))
    for slower in ("histograms", "units"):
        assert recording[slower].step.values.tolist() == [*range(11)]
    counts = recording["histograms"]["value_histogram"].sel(layer="0", value_signal="activation")
    assert counts.sum(("group", "value_bin")).values.tolist() == [
        sum(part.numel() for part in parts) for step, parts in of(ranks).items() if step < 11
    ]


def test_probes_of_ranks_pool_and_those_of_one_alone_stand_alone(together):
    def program(rank):
        rank.train(1)
        with rank.recorder.pause() if rank.number == 1 else nullcontext():
            rank.train(3)
        rank.train(2)

    probe = torch.randn(7, 4, generator=torch.Generator().manual_seed(9))
    ranks, recording = together(program, every=2, probe=probe, probe_every=3)
    rows = recording["probe/layers"].to_dataset().sel(layer="0", signal="activation")
    assert dict(zip(rows.step.values.tolist(), rows.example_count.values.tolist(), strict=True)) == {0: 14, 3: 7, 6: 14}
    assert [rank.recorder.warnings for rank in ranks] == [[], []]


def test_steps_of_several_optimizers_keep_their_updates_and_wait_for_no_rank(together):
    done = threading.Event()

    def program(rank):
        parts = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (rank.net[0], rank.net[2])]
        for step in range(6):
            rank.net(rank.batch()).square().mean().backward()
            for optimizer in parts:
                optimizer.step()
                optimizer.zero_grad()
            if step == 2 and rank.number == 0:
                rank.evaluate()
                done.set()
            assert step < 2 or done.wait(PATIENCE / 4)

    ranks, recording = together(program, every=1)
    check(recording, "layers", of(ranks))
    assert bool((recording["parameters"]["update_norm"] > 0).all())


@pytest.mark.filterwarnings("ignore::covshift.exceptions.CovshiftWarning")
def test_ranks_that_begin_at_different_steps_are_told_and_hold_no_more_than_a_few_records(together):
    def program(rank):
        rank.train(12 + 2 * MOST_HELD)

    ranks, recording = together(program, every=1, start_step=(10, 0))
    steps = recording["layers"].step.values.tolist()
    assert steps == sorted(set(steps))
    assert min(steps) == 10
    (message,) = ranks[0].recorder.warnings
    assert "the ranks count steps differently" in message
    assert "start_step=" in message


def test_an_exception_on_every_rank_keeps_what_rank_0_has(together):
    found = {}

    def program(rank):
        found[rank.number] = rank
        rank.train(3)
        rank.evaluate()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(program, every=2)
    recording = found[0].recorder.recording
    check(recording, "layers", of(found.values(), every=2))
    check(recording, "evaluation/layers", of([found[0]], "evaluated"))
    (note,) = found[0].recorder.warnings
    assert note == "an exception ended this rank: its records from step 3 on are not merged"


def record(step, stream="", rank=0):
    return SimpleNamespace(step=step, stream=stream, rank=rank)


def keys(groups):
    return [(group[0].step, group[0].stream, [one.rank for one in group]) for group in groups]


def test_records_wait_until_no_rank_can_add_to_their_step_and_never_mix():
    pairing = Pairing()
    pairing.add([record(0), record(2, "evaluation"), record(2), record(0, rank=1), record(1, rank=1)])
    assert keys(pairing.taken(2)) == [(0, "", [0, 1]), (1, "", [1])]
    pairing.add([record(2, rank=1)])
    assert keys(pairing.taken(ENDED)) == [(2, "", [0, 1]), (2, "evaluation", [0])]
    assert not pairing.late
    assert not pairing.overrun


def test_records_that_wait_are_bounded_and_late_ones_are_counted():
    pairing = Pairing(begin=3, most=2)
    pairing.add([record(step) for step in range(7)])
    assert pairing.late == 3
    assert keys(pairing.taken(0)) == [(3, "", [0]), (4, "", [0])]
    assert pairing.overrun
    pairing.add([record(4, rank=1), record(5, rank=1)])
    assert pairing.late == 4
    assert keys(pairing.taken(ENDED)) == [(5, "", [0, 1]), (6, "", [0])]


def test_of_sharded_parameters_that_not_every_rank_measured_nothing_is_said():
    norms = ("weight_norm", "gradient_norm", "gradient_norm_preclip", "update_norm")
    counts = ("gradient_zero_count", "gradient_nonfinite_count", "gradient_measured")
    from covshift.instrument.block import Block
    from covshift.instrument.rows import record_of

    row = {name: np.array([3.0, 4.0]) for name in norms} | {name: np.array([1, 1]) for name in counts}
    one = replace(record_of(Block(0), [], {}), parameters=row, sharded=np.array([True, False]))
    found = merged([one], ranks=2).parameters
    assert all(np.isnan(found[name][0]) and found[name][1] == 4.0 for name in norms)
    assert all(found[name].tolist() == [0, 1] for name in counts)
    assert merged([one]).parameters["weight_norm"].tolist() == [3.0, 4.0]
