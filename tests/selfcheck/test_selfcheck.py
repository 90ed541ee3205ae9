"""The machinery of the selfcheck: tables that fit together, scores counted by hand, one trial of each kind."""

import pytest
import torch

from covshift.diagnosis import Diagnosis
from covshift.diagnosis.finding import WHOLE_RUN, Finding
from covshift.diagnosis.rules import RULES
from covshift.exceptions import InvalidArgumentError
from covshift.selfcheck.controls import CONTROLS
from covshift.selfcheck.faults import FAULTS, TRAPS
from covshift.selfcheck.movements import JUMP_AT
from covshift.selfcheck.nets import mlp
from covshift.selfcheck.scoring import Share, score
from covshift.selfcheck.suite import QUICK_CONTROLS, QUICK_FAULTS, QUICK_TRAPS, Trial, quick
from covshift.selfcheck.trials import Located, Outcome, located


@pytest.mark.parametrize("fault", [*FAULTS, *TRAPS], ids=lambda fault: fault.name)
def test_every_fault_builds_a_net_that_runs_and_expects_checks_that_exist(fault):
    assert fault.checks <= set(RULES)
    for build in (fault.build, fault.held_back):
        case = build(0, fault.doses[-1])
        case.batch_size = 4
        assert case.loss(*case.batch(0)).ndim == 0
        assert fault.planted(case) in {None, *dict(case.model.named_modules())}
        assert (fault.planted(case) is None) is not fault.local


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
    assert set(QUICK_TRAPS) <= {trap.name for trap in TRAPS}
    with pytest.raises(InvalidArgumentError, match="name='rust': expected one of dead units"):
        Trial("fault", "rust", "strong", 0, False).run()


def outcome(kind="fault", *, found=False, right=False, bad=(), watch=(), undetermined=None, everywhere=False):
    return Outcome(kind, "x", "strong", 0, False, found, right, list(bad), list(watch), undetermined, everywhere)


def test_scores_count_runs():
    runs = [
        outcome(found=True, right=True),
        outcome(right=True, everywhere=True),
        outcome(),
        outcome("trap", found=True, right=True),
        outcome("trap"),
        outcome("control", bad=["units: a"], undetermined=0.5),
        outcome("control", watch=["shift: a"], undetermined=0.1),
        outcome("control"),
    ]
    counted = score(runs)
    assert counted.recall == Share(1, 3)
    assert counted.localisation == Share(1, 2)
    assert counted.everywhere == Share(1, 3)
    assert counted.fallen == Share(1, 2)
    assert (counted.false_bad, counted.false_watch) == (Share(1, 3), Share(2, 3))
    assert counted.undetermined == pytest.approx(0.3)


def test_a_share_carries_wilsons_interval_and_none_of_no_runs():
    # Wilson (1927) by hand: (p + z^2/2n +- z sqrt(p q / n + z^2 / 4n^2)) / (1 + z^2 / n) at p = 0.9, n = 10.
    assert Share(9, 10).to_dict() == pytest.approx(
        {"hits": 9, "runs": 10, "share": 0.9, "low": 0.59585, "high": 0.98212}, abs=1e-5
    )
    assert Share(0, 0).to_dict() == {"hits": 0, "runs": 0, "share": None, "low": None, "high": None}


LAYERS = (*(f"{kind}{index}" for index in range(5) for kind in ("fc", "act")), "head")


def said(*layers, check="units", verdict="bad", explained_by=""):
    return [Finding(check, layer, verdict, 0, 1.0, None, None, "", "", explained_by) for layer in layers]


def place(*findings, checks=("units",), planted="act2"):
    return located(Diagnosis(tuple(one for group in findings for one in group), LAYERS), checks, planted)


@pytest.mark.parametrize("layer", ["act1", "fc2", "act2", "fc3"])
def test_a_fault_found_in_its_layer_or_a_neighbour_is_found(layer):
    assert place(said(layer)) == Located(near=True, anywhere=True, everywhere=False)
    assert place(said(layer, verdict="watch")).near


@pytest.mark.parametrize("layer", ["fc0", "act0", "fc1", "act3", "fc4", "head", WHOLE_RUN])
def test_a_fault_found_elsewhere_is_not_found_in_its_layer(layer):
    assert place(said(layer)) == Located(near=False, anywhere=True, everywhere=False)


def test_only_causes_of_the_expected_checks_count():
    nothing = Located(near=False, anywhere=False, everywhere=False)
    assert place(said("act2", check="shift")) == nothing
    assert place(said("act2", verdict="ok"), said("fc2", verdict="not measured")) == nothing
    assert place(said("act2", explained_by="units in act4")) == nothing
    assert place(said("act2", check="shift"), checks=("units", "shift")).near


def test_a_run_in_which_every_layer_is_named_is_a_false_alarm():
    assert place(said(*LAYERS)) == Located(near=False, anywhere=True, everywhere=True)
    assert place(said(*LAYERS[1:])) == Located(near=True, anywhere=True, everywhere=False)


def test_a_fault_of_the_whole_run_is_found_by_any_finding():
    assert place(said(WHOLE_RUN), planted=None).near
    assert not place(said("act0", check="shift"), planted=None).near


def test_a_place_at_the_first_layer_has_no_neighbour_before_it():
    assert place(said("fc0"), planted="act0").near
    assert place(said("fc1"), planted="act0").near
    assert not place(said("head"), planted="act0").near


def test_the_subset_has_every_check_that_a_fault_can_be_found_by():
    expected = {fault.name: fault.checks for fault in FAULTS}
    assert frozenset().union(*(expected[name] for name in QUICK_FAULTS)) == frozenset().union(*expected.values())


def test_a_movement_of_dose_none_plants_nothing():
    for fault in (*FAULTS, *TRAPS):
        if fault.twin:
            case, twin = fault.build(3, 0.0), fault.build(3, fault.doses[-1])
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
            for one in (case, twin):
                for hook in one.before:
                    hook(JUMP_AT)
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
