"""Layers are paired by name, and by depth only where names have little in common."""

import numpy as np

from covshift.analysis.matching import common_names
from covshift.schema import Layer


def recording(make_recording, names, *, nonlinear=()):
    layers = [
        Layer(name, "ReLU" if name in nonlinear else "Linear", depth, 1, 0, 2, activation="ReLU" * (name in nonlinear))
        for depth, name in enumerate(names)
    ]
    ones = np.ones((2, 2), np.float32)
    return make_recording({0: {name: {"activation": ones} for name in names}}, layers=layers)


def test_equal_names_are_kept_and_so_are_those_of_one_run_alone(make_recording):
    runs = {
        "plain": recording(make_recording, ["a", "b", "c"]),
        "normed": recording(make_recording, ["a", "norm", "b", "c"]),
    }
    names, by_depth = common_names(runs)
    assert names["normed"] == {name: name for name in ("a", "norm", "b", "c")}
    assert by_depth == {}


def test_strangers_are_paired_by_depth_nonlinearities_apart(make_recording):
    runs = {
        "first": recording(make_recording, ["a", "act", "b", "act2"], nonlinear=("act", "act2")),
        "other": recording(make_recording, ["x", "y", "relu", "z"], nonlinear=("relu",)),
    }
    names, by_depth = common_names(runs)
    assert names["other"] == {"x": "a", "y": "b", "relu": "act", "z": "z (own)"}
    assert by_depth == {"other": 3}
