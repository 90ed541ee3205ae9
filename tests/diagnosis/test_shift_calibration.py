"""How often the shift rule speaks: hardly ever without a shift, nearly always with a clear one."""

import math

import numpy as np
import pytest

from covshift.diagnosis.shift_rules import distribution_shift


def clustered(rng, shift, records=6, examples=24, positions=6, correlation=0.3):
    """One layer's records, elements of an example correlated, its mean moving by ``shift`` sd a record."""
    for record in range(records):
        common, own = rng.normal(size=(examples, 1)), rng.normal(size=(examples, positions))
        yield record * shift + math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


@pytest.fixture(scope="module")
def findings(make_recording):
    rng = np.random.default_rng(11)
    names = {f"{kind}{index}": shift for kind, shift in (("still", 0.0), ("moving", 0.6)) for index in range(40)}
    series = {name: list(clustered(rng, shift)) for name, shift in names.items()}
    steps = {step: {name: {"activation": records[step]} for name, records in series.items()} for step in range(6)}
    return {finding.layer: finding for finding in distribution_shift(make_recording(steps))}


def test_hardly_a_layer_without_a_shift_is_flagged(findings):
    still = [finding for layer, finding in findings.items() if layer.startswith("still")]
    flagged = sum(finding.verdict == "watch" for finding in still)
    # At a true rate of 5 % more than 6 of 40 have probability 0.003.
    assert flagged <= 6
    covered = sum(finding.interval is None or finding.interval[0] == 0 for finding in still)
    assert covered >= 34


def test_nearly_every_layer_with_a_clear_shift_is_flagged_with_its_size(findings):
    moving = [finding for layer, finding in findings.items() if layer.startswith("moving")]
    assert sum(finding.verdict == "watch" for finding in moving) >= 38
    assert np.mean([finding.value for finding in moving if finding.verdict == "watch"]) == pytest.approx(0.6, abs=0.05)
