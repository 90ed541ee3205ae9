"""Layers are paired within a kind: by name, and by depth where names have little in common or mislead."""

from itertools import permutations

import numpy as np
import pytest

from covshift.analysis.comparison import paired_layers
from covshift.analysis.differences import group_differences
from covshift.analysis.matching import matched_layers, merged_order
from covshift.schema import Layer

NONLINEAR = ("ReLU", "Tanh", "LinkedReLU")


def recording(make_recording, modules):
    """Layers in forward order, ``modules`` as pairs of name and type."""
    layers = [
        Layer(name, kind, depth, 1, 0, 2, activation=kind * (kind in NONLINEAR))
        for depth, (name, kind) in enumerate(modules)
    ]
    rng = np.random.default_rng(0)
    return make_recording({0: {name: {"activation": rng.normal(size=(4, 2))} for name, _ in modules}}, layers=layers)


def sequential(make_recording, *kinds):
    return recording(make_recording, [("(input)", "input"), *((str(at), kind) for at, kind in enumerate(kinds))])


def block(make_recording, *, act="ReLU", norm=None, blocks=3):
    """Named modules, as of a model that registers them one by one."""
    modules = [("(input)", "input")]
    for at in range(blocks):
        modules += [(f"conv{at}", "Conv2d"), *([(f"norm{at}", norm)] if norm else []), (f"act{at}", act)]
    return recording(make_recording, [*modules, ("head", "Linear")])


def types(run):
    layers = run["layers"].to_dataset()
    return dict(zip(layers["layer"].values.tolist(), layers["module_type"].values.tolist(), strict=True))


def test_equal_names_are_kept_and_so_are_those_of_one_run_alone(make_recording):
    runs = {"plain": block(make_recording), "normed": block(make_recording, norm="BatchNorm2d")}
    matched = matched_layers(runs)
    for name, run in runs.items():
        assert matched.names[name] == {layer: layer for layer in types(run)}
    assert (matched.by_depth, matched.alone) == ({}, 3)
    assert matched.note == "Layers of one kind are paired by name; 3 of 11 are not in every run."


def test_strangers_are_paired_by_depth_within_each_kind(make_recording):
    runs = {
        "first": recording(make_recording, [("a", "Linear"), ("act", "ReLU"), ("b", "Linear"), ("act2", "ReLU")]),
        "other": recording(make_recording, [("x", "Linear"), ("y", "Linear"), ("relu", "ReLU"), ("z", "Linear")]),
    }
    matched = matched_layers(runs)
    assert matched.names["other"] == {"x": "a", "y": "b", "relu": "act", "z": "z (Linear)"}
    assert matched.by_depth == {"other": 3}
    assert "by order of depth within each kind in other (3 of 4)" in matched.note
    assert matched.note.endswith("; 2 of 5 are not in every run.")


@pytest.mark.parametrize("inserted", [("BatchNorm1d",), ("BatchNorm1d", "Dropout"), ("Dropout",)])
@pytest.mark.parametrize("turned", [False, True])
def test_modules_inserted_into_a_container_never_set_different_kinds_side_by_side(make_recording, inserted, turned):
    plain = ["Linear", "ReLU"] * 4 + ["Linear"]
    normed = [part for kind in plain for part in ([*inserted, kind] if kind == "ReLU" else [kind])]
    runs = {"plain": sequential(make_recording, *plain), "normed": sequential(make_recording, *normed)}
    runs = dict(reversed(runs.items())) if turned else runs
    matched = matched_layers(runs)
    found = {run: {key: types(runs[run])[name] for name, key in names.items()} for run, names in matched.names.items()}
    shared = found["plain"].keys() & found["normed"].keys()
    assert len(shared) == len(plain) + 1
    assert all(found["plain"][key] == found["normed"][key] for key in shared)
    for kind in ("Linear", "ReLU"):
        of_kind = [[key for key in matched.names[run].values() if found[run][key] == kind] for run in runs]
        assert of_kind[0] == of_kind[1]
    assert matched.by_depth == {list(runs)[1]: 10}


@pytest.mark.parametrize("where", range(1, 9))
def test_one_module_inserted_anywhere_leaves_every_other_layer_paired_with_itself(make_recording, where):
    plain = ["Linear", "ReLU"] * 4 + ["Linear"]
    longer = [*plain[:where], "LayerNorm", *plain[where:]]
    runs = {"plain": sequential(make_recording, *plain), "longer": sequential(make_recording, *longer)}
    names = matched_layers(runs).names["longer"]
    for at in range(len(plain)):
        assert names[str(at if at < where else at + 1)] == str(at)


@pytest.mark.parametrize("act", NONLINEAR)
def test_another_nonlinearity_or_linked_units_in_place_of_relu_still_pair_by_name(make_recording, act):
    for make in (block, lambda make, act="ReLU": sequential(make, "Linear", act, "Linear", act, "Linear")):
        runs = {"relu": make(make_recording), "other": make(make_recording, act=act)}
        matched = matched_layers(runs)
        assert matched.names["other"] == matched.names["relu"]
        assert (matched.by_depth, matched.alone) == ({}, 0)
        assert matched.note == "Layers of one kind are paired by name."


@pytest.mark.parametrize(("here", "there"), [("ReLU", "BatchNorm1d"), ("ReLU", "Linear"), ("Linear", "Conv2d")])
def test_one_name_of_two_kinds_is_two_layers_and_the_others_stay_paired_by_name(make_recording, here, there):
    fixed = [("stem", "Linear"), ("first", "ReLU"), ("last", "ReLU"), ("head", "Linear")]
    runs = {
        run: recording(make_recording, [*fixed[:2], ("middle", kind), *fixed[2:]])
        for run, kind in (("one", here), ("two", there))
    }
    matched = matched_layers(runs)
    assert matched.names["two"] == {name: name for name, _ in fixed} | {"middle": f"middle ({there})"}
    assert matched.by_depth == {}
    table = paired_layers(runs)["activation_sd"]
    assert np.isfinite(table.sel(layer="middle")).values.tolist() == [True, False]
    assert np.isfinite(table.sel(layer=f"middle ({there})")).values.tolist() == [False, True]


def test_seeds_of_an_inserted_kind_pair_among_themselves(make_recording):
    plain, normed = ["Linear", "ReLU"] * 2, ["Linear", "BatchNorm1d", "ReLU"] * 2
    runs = {f"plain{at}": sequential(make_recording, *plain) for at in range(2)}
    runs |= {f"normed{at}": sequential(make_recording, *normed) for at in range(2)}
    matched = matched_layers(runs)
    assert matched.names["normed0"] == matched.names["normed1"]
    assert matched.by_depth == {"normed0": 5, "normed1": 5}
    apart = group_differences(runs, groups={run: run[:-1] for run in runs})
    assert apart["layer"].values.tolist() == ["(input)", "0", "1", "2", "3"]
    assert apart.attrs["layers_left_out"] == 2
    assert apart.attrs["matching"] == paired_layers(runs).attrs["matching"] == matched.note


def test_no_two_layers_of_a_run_are_compared_under_one_name(make_recording):
    kinds = (["Linear", "ReLU"], ["Dropout", "Linear"], ["Linear"] * 4, ["ReLU", "Dropout", "Dropout", "Linear"])
    made = {"-".join(some): sequential(make_recording, *some) for some in kinds}
    for order in permutations(made):
        matched = matched_layers({run: made[run] for run in order})
        kind_of: dict[str, str] = {}
        for run, names in matched.names.items():
            assert len(set(names.values())) == len(names)
            for name, key in names.items():
                assert kind_of.setdefault(key, types(made[run])[name]) == types(made[run])[name]


def test_layers_stand_where_depth_puts_them_whichever_run_comes_first(make_recording):
    made = {
        "relu": block(make_recording),
        "linked": block(make_recording, act="LinkedReLU"),
        "normed": block(make_recording, norm="BatchNorm2d"),
    }
    parts = [part for at in range(3) for part in (f"conv{at}", f"norm{at}", f"act{at}")]
    for order in permutations(made):
        found = paired_layers({run: made[run] for run in order})
        assert found["layer"].values.tolist() == ["(input)", *parts, "head"]


def test_a_merged_order_keeps_that_of_every_sequence_and_does_not_depend_on_theirs():
    rng = np.random.default_rng(0)
    whole = [f"layer{at}" for at in rng.permutation(30)]
    for _ in range(20):
        parts = [[name for name in whole if rng.random() < 0.6] for _ in range(3)]
        found = merged_order(parts)
        assert sorted(found) == sorted({name for part in parts for name in part})
        for part in parts:
            assert [name for name in found if name in part] == part
        assert all(merged_order(order) == found for order in permutations(parts))


def test_sequences_that_contradict_each_other_lose_no_name():
    assert sorted(merged_order([["a", "b", "c"], ["c", "b", "a"]])) == ["a", "b", "c"]
    assert merged_order([["a", "b", "c"], ["c", "b", "a"]]) == merged_order([["c", "b", "a"], ["a", "b", "c"]])
    assert merged_order([]) == []
