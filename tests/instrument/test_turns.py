"""Optimizers that take turns are all in the record. Oracle: who stepped when, told by the weights that moved."""

import numpy as np
import pytest
import torch
from torch import nn

import covshift


class Players(nn.Module):
    """Parts that are trained by an optimizer each; every step runs all of them."""

    def __init__(self, parts):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({name: nn.Linear(3, 3) for name in parts})

    def forward(self, x):
        for part in self.parts.values():
            x = torch.tanh(part(x))
        return x


class Played:
    """A training in which the optimizers named step by step end the steps; what moved in each is noted beside it."""

    def __init__(self, order, *, pause=(), together="", **settings):
        self.model = Players(sorted(set(order) | set(together)))
        self.optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in self.model.parts.items()}
        self.moved, self.changes = [], []
        with covshift.record(self.model, **settings) as self.recorder:
            for number, name in enumerate(order):
                if number in pause:
                    with self.recorder.pause():
                        self._step([name])
                else:
                    self._step(together or [name])
        self.recording = self.recorder.recording

    def _step(self, names):
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.model(torch.randn(4, 3)).square().mean().backward()
        for name in names:
            self.optimizers[name].step()
        self.model.zero_grad()
        change = {name: (p.detach() - before[name]).double().norm().item() for name, p in self.model.named_parameters()}
        self.changes.append(change)
        self.moved.append({name.split(".")[1] for name, size in change.items() if size > 0})

    def steps(self, group="layers"):
        return self.recording[group].step.values.tolist()

    def expected(self, every):
        """Steps that are due, and before the next one the turn of all others, after pauses as they made before."""
        found = set(range(0, len(self.moved), every))
        for player in self.optimizers:
            turns = [step for step, moved in enumerate(self.moved) if player in moved]
            for due in set(range(0, len(self.moved), every)) - set(turns):
                before = [step for step in turns if step < due]
                later = [step for step in turns if due < step < due + every]
                pauses = np.diff(before)
                found |= {step for step in later[:1] if step - before[-1] in pauses} if before else set()
        return sorted(found)


@pytest.mark.parametrize("every", [4, 10])
@pytest.mark.parametrize("pattern", ["ca", "ac", "ccccg", "gcccc", "cca", "abc", "c" * 9 + "g", "c" * 19 + "g"])
def test_of_optimizers_that_take_turns_each_has_a_step_beside_every_one_that_is_due(pattern, every):
    played = Played((pattern * 60)[:80], every=every)
    assert played.steps() == played.expected(every)
    updates = played.recording["parameters"].to_dataset()["update_norm"]
    for player in set(pattern):
        own = [step for step in played.steps() if player in played.moved[step]]
        assert own
        name = f"parts.{player}.weight"
        expected = [played.changes[step][name] for step in own]
        np.testing.assert_allclose(updates.sel(step=own, parameter=name), expected, rtol=1e-6)
    assert played.recorder.warnings == []


def test_optimizers_that_step_together_have_the_steps_of_the_schedule_and_no_others():
    played = Played("a" * 45, together="ab", every=10)
    assert played.moved[0] == {"a", "b"}
    assert played.steps() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("every", [7, covshift.first(3) | covshift.every(9), covshift.at_steps(2, 30)])
def test_a_single_optimizer_has_the_steps_of_the_schedule_and_no_others(every):
    due = (lambda step: step % every == 0) if isinstance(every, int) else every
    assert Played("a" * 50, every=every).steps() == [step for step in range(50) if due(step)]


@pytest.mark.parametrize("length", [20, 40])
def test_phases_of_one_optimizer_after_another_bring_no_further_steps(length):
    played = Played(("a" * length + "b" * length) * 2, every=10)
    assert played.steps() == list(range(0, 4 * length, 10))


def test_an_optimizer_that_has_stopped_is_not_waited_for():
    assert Played("ab" * 10 + "a" * 100, every=10).steps() == [0, 10, 11, 20, 21, *range(30, 120, 10)]


def test_a_step_that_is_due_alone_is_followed_by_the_others_turn_too():
    assert Played("ab" * 20, every=covshift.at_steps(10)).steps() == [10, 11]


def test_at_every_step_nothing_changes():
    assert Played("ab" * 10, every=1).steps() == list(range(20))


def test_what_follows_a_due_step_has_its_extras_and_counts_as_one_record_with_it():
    played = Played("ab" * 40, every=10, histograms_every=2, units_every=3)
    assert played.steps("histograms") == [0, 20, 21, 40, 41, 60, 61]
    assert played.steps("units") == [0, 30, 31, 60, 61]
    assert played.recorder.state_dict() == {"step": 80, "records": 8}


def test_a_resumed_run_learns_anew_who_takes_turns(tmp_path):
    Played("ab" * 15, every=10, path=tmp_path / "run")
    resumed = Played("ab" * 15, every=10, path=tmp_path / "run", resume=True, start_step=30)
    assert resumed.steps() == [0, 10, 11, 20, 21, 30, 40, 41, 50, 51]
    assert resumed.recorder.warnings == []


def test_steps_of_a_pause_are_not_recorded_whosever_turn_they_are():
    played = Played("ab" * 20, every=10, pause=[11, 20])
    assert played.steps() == [0, 10, 21, 30, 31]


def test_an_optimizer_of_which_no_step_was_recorded_is_named():
    steps = "ab" * 40
    with pytest.warns(covshift.CovshiftWarning, match=r"optimizer of parts.b made 40 steps, none of which"):
        played = Played(steps, every=10, pause=range(1, 80, 2))
    assert all("b" not in played.moved[step] for step in played.steps())
    assert len(played.recorder.warnings) == 1


class ActorCritic(nn.Module):
    """Two nets of which the critic's step does not run the actor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.actor = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def value(self, state, action):
        return self.critic(torch.cat([state, action], 1))


def train_actor_critic(*, is_actor_paused=False):
    model = ActorCritic()
    actors, critics = (torch.optim.Adam(part.parameters()) for part in (model.actor, model.critic))
    with covshift.record(model) as recorder:
        for _ in range(100):
            state, action = torch.randn(8, 4), torch.randn(8, 2)
            critics.zero_grad()
            (model.value(state, action) - 1).square().mean().backward()
            critics.step()
            actors.zero_grad()
            if is_actor_paused:
                with recorder.pause():
                    actor_step(model, state, actors)
            else:
                actor_step(model, state, actors)
    return recorder


def actor_step(model, state, optimizer):
    (-model.value(state, model.actor(state)).mean()).backward()
    optimizer.step()


def test_actor_and_critic_are_both_in_the_record_at_the_default_schedule():
    recorder = train_actor_critic()
    layers = recorder.recording["layers"].to_dataset()
    assert layers.step.values.tolist() == [0, *(step for due in range(10, 200, 10) for step in (due, due + 1))]
    updates = recorder.recording["parameters"].to_dataset()["update_norm"]
    turns = {"critic.0.weight": layers.step.values[1::2], "actor.0.weight": layers.step.values[2::2]}
    for name, steps in turns.items():
        assert (updates.sel(parameter=name, step=steps) > 0).all()
    assert (layers["count"].sel(layer="actor.0", signal="activation_grad", step=turns["actor.0.weight"]) > 0).all()
    assert recorder.warnings == []


def test_layers_of_an_optimizer_of_which_no_step_was_recorded_are_not_called_unused():
    with pytest.warns(covshift.CovshiftWarning, match="optimizer of actor.0, actor.2 made 100 steps, none of which"):
        recorder = train_actor_critic(is_actor_paused=True)
    assert len(recorder.warnings) == 1
    assert "unused" not in recorder.warnings[0]
