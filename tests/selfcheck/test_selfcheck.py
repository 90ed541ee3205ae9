"""The machinery of the selfcheck: tables that fit together, scores counted by hand, one trial of each kind."""

import pytest
import torch

from covshift.diagnosis.rules import RULES
from covshift.exceptions import InvalidArgumentError
from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.faults import FAULTS, MOVEMENT
from covshift.selfcheck.nets import mlp
from covshift.selfcheck.scoring import Share, score
from covshift.selfcheck.suite import QUICK_CONTROLS, QUICK_FAULTS, Trial, quick
from covshift.selfcheck.trials import Outcome


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_builds_a_net_that_runs_and_expects_checks_that_exist(fault):
    assert fault.checks <= set(RULES)
    for build in (fault.build, fault.held_back):
        case = build(0, fault.doses[-1])
        case.batch_size = 4
        assert case.loss(*case.batch(0)).ndim == 0
        if fault.local:
            place = case.middle if fault.at is None else fault.at
            assert case.activations[place] in dict(case.model.named_modules())


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_every_control_builds_a_net_that_runs(control):
    assert control.forbidden <= set(RULES)
    for build in (control.build, control.held_back):
        case = build(0)
        assert torch.isfinite(case.loss(*case.batch(10)))


def test_a_case_is_the_same_for_the_same_seed_and_another_for_another():
    fault = FAULTS[0]
    first, again, other = (fault.build(seed, 0.5) for seed in (3, 3, 4))
    losses = [float(case.loss(*case.batch(0)).detach()) for case in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


def test_names_are_unique_and_those_of_the_subset_exist():
    faults, controls = [fault.name for fault in FAULTS], [control.name for control in CONTROLS]
    assert len(set(faults)) == len(faults)
    assert len(set(controls)) == len(controls) >= 22
    assert set(QUICK_FAULTS) <= set(faults)
    assert set(QUICK_CONTROLS) <= set(controls)
    with pytest.raises(InvalidArgumentError, match="name='rust': expected one of dead units"):
        Trial("fault", "rust", "strong", 0, False).run()


def outcome(kind="fault", *, found=False, right=False, bad=(), watch=(), undetermined=None):
    return Outcome(kind, "x", "strong", 0, False, found, right, list(bad), list(watch), undetermined)


def test_scores_count_runs():
    runs = [
        outcome(found=True, right=True),
        outcome(right=True),
        outcome(),
        outcome("control", bad=["units: a"], undetermined=0.5),
        outcome("control", watch=["shift: a"], undetermined=0.1),
        outcome("control"),
    ]
    counted = score(runs)
    assert counted.recall == Share(1, 3)
    assert counted.localisation == Share(1, 2)
    assert (counted.false_bad, counted.false_watch) == (Share(1, 3), Share(2, 3))
    assert counted.undetermined == pytest.approx(0.3)


def test_a_movement_of_dose_none_plants_nothing():
    for fault in FAULTS:
        if fault.checks == MOVEMENT:
            case, twin = fault.build(3, 0.0), fault.build(3, fault.doses[-1])
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
            for one in (case, twin):
                for hook in one.before:
                    hook(9)
            plain = mlp(3).model(x)
            assert torch.equal(case.model(x), plain), fault.name
            assert not torch.allclose(twin.model(x), plain), fault.name


def test_a_planted_fault_is_found_and_its_twin_is_silent():
    found = Trial("fault", "dead units", "strong", 1, False).run()
    assert found.found
    assert "units: act2" in found.bad
    healthy = Trial("control", "He ReLU MLP", "", 1, False).run()
    assert healthy.bad == []


@pytest.mark.slow
def test_the_subset_has_only_known_answers():
    assert [trial.name for trial, _, known in quick() if not known] == []
