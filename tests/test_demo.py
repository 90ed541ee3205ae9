"""Every number of the demo's JSON twin is recounted from the store, by plain zarr and numpy, without the analysis.

``tests/reporting`` compares the page with the JSON number by number, so the two tests together trace the page to data.
"""

import json
from statistics import median

import numpy as np
import pytest
import zarr

from covshift.demo import Plan, run_demo
from covshift.exceptions import InvalidArgumentError
from covshift.reporting import write_report
from covshift.store import reader

WINDOW_SHARE = 0.2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    runs = run_demo(folder, Plan(("relu", "linked-relu"), depth=5, steps=30))
    recordings = {run.name: reader.open(run.path) for run in runs}
    write_report(recordings, folder / "report.html", json=folder / "findings.json")
    content = json.loads((folder / "findings.json").read_text())
    stores = {run.name: zarr.open_group(run.path, mode="r") for run in runs}
    return {entry["name"]: (entry, stores[entry["name"]]) for entry in content["runs"]}, runs


@pytest.fixture(scope="module", params=["relu seed 0", "linked-relu seed 0"])
def run(request, demo):
    return demo[0][request.param]


def labels(array):
    return [str(label) for label in array[:]]


def window(records):
    """Positions of the last fifth of the records, five at the least."""
    return slice(max(0, records - max(5, int(np.ceil(records * WINDOW_SHARE)))), records)


def column(group, name, signal):
    return group[name][:, :, labels(group["signal"]).index(signal)].astype(np.float64)


def test_facts_are_those_of_the_store(run):
    entry, store = run
    layers = store["layers"]
    steps = layers["step"][:].tolist()
    facts = entry["facts"]
    assert (facts["records"], facts["first_step"], facts["last_step"]) == (len(steps), steps[0], steps[-1])
    assert facts["layers"] == len([name for name in labels(layers["layer"]) if name != "(input)"])
    assert facts["histograms"] == store["histograms/step"].shape[0]
    assert facts["wall_seconds"] == pytest.approx(np.ptp(store["scalars/wall_time"][:]), abs=1e-5)


def test_logged_scalars_are_those_of_the_store(run, demo):
    entry, store = run
    logged = {scalar["name"]: scalar for scalar in entry["logged"]}
    assert set(logged) == {"learning_rate", "loss", "train_accuracy", "test_accuracy"}
    for name, scalar in logged.items():
        values = store["scalars"][name][:]
        values = values[np.isfinite(values)]
        assert (scalar["first"], scalar["last"], scalar["n"]) == (values[0], values[-1], len(values))
    accuracies = {run.name: run.test_accuracy for run in demo[1]}
    assert logged["test_accuracy"]["last"] == accuracies[entry["name"]]


def test_gradient_zero_rates_and_sizes_are_recounted(run):
    entry, store = run
    group = store["layers"]
    count, zeros = column(group, "count", "activation_grad"), column(group, "zero_count", "activation_grad")
    total, m2 = column(group, "sum", "activation_grad"), column(group, "m2", "activation_grad")
    recent = window(len(count))
    with np.errstate(invalid="ignore"):
        rates = np.median((zeros / count)[recent], axis=0)
        sizes = np.median(np.sqrt((m2 + total**2 / count) / count)[recent], axis=0)
    for layer, rate, size in zip(entry["layers"], rates, sizes, strict=True):
        if np.isnan(rate):
            assert layer["gradient_zero_rate"] is None
        else:
            assert layer["gradient_zero_rate"] == pytest.approx(rate, abs=1e-12)
            assert layer["gradient_rms"] == pytest.approx(size, rel=1e-9)


def test_structural_zeros_are_recounted_from_the_producers_rows(run):
    entry, store = run
    group = store["layers"]
    names = labels(group["layer"])
    structural = column(group, "structural_zero_count", "preactivation")
    count, zeros = column(group, "count", "activation"), column(group, "zero_count", "activation")
    recent = window(len(count))
    producers = dict(zip(names, labels(group["preactivation_of"]), strict=True))
    assert [row["layer"] for row in entry["linkage"]] == [f"act{index}" for index in range(5)]
    for row in entry["linkage"]:
        z = names.index(producers[row["layer"]])
        own = names.index(row["layer"])
        rate = np.median((structural[:, own] / count[:, z])[recent])
        assert row["structural_rate"] == pytest.approx(rate, abs=1e-12)
        assert row["zero_atom_rate"] == pytest.approx(np.median((zeros[:, z] / count[:, z])[recent]), abs=1e-12)


def test_dead_units_and_silent_members_are_recounted_from_the_evaluation_pass(run):
    entry, store = run
    units, layers = store["evaluation/units"], store["evaluation/layers"]
    names, members = labels(layers["layer"]), layers["linkage_members"][:]
    active = column(units, "unit_active_examples", "activation")[-1]
    owner, linked = units["layer_index"][:], units["linked_unit"][:]
    dead, silent_member, silent_linkage = {}, {}, {}
    for index, name in enumerate(names):
        mine = active[owner == index]
        groups = linked[owner == index] if members[index] else np.arange(mine.size)
        silent = [mine[groups == group] == 0 for group in np.unique(groups)]
        dead[name] = sum(part.all() for part in silent)
        silent_member[name] = sum(part.any() and not part.all() for part in silent)
        silent_linkage[name] = dead[name]
    assert entry["units"]["examples"] == 1400
    assert entry["units"]["units"] == 20
    assert {row["layer"]: row["dead"] for row in entry["units"]["by_layer"]} == {
        f"act{i}": dead[f"act{i}"] for i in range(5)
    }
    assert entry["units"]["dead"] == sum(dead[f"act{i}"] for i in range(5))
    for row in entry["linkage"]:
        if members[names.index(row["layer"])]:
            assert row["one_member_silent"] == silent_member[row["layer"]]
            assert row["all_members_silent"] == silent_linkage[row["layer"]]


def test_update_ratios_are_recounted(run):
    entry, store = run
    group = store["parameters"]
    ratios = group["update_norm"][:] / np.where(group["weight_norm"][:] > 0, group["weight_norm"][:], np.nan)
    recent = window(len(ratios))
    expected = dict(zip(labels(group["parameter"]), np.median(ratios[recent], axis=0), strict=True))
    for row in entry["parameters"]:
        assert row["update_ratio"] == pytest.approx(expected[row["parameter"]], rel=1e-9)


def test_the_comparison_repeats_the_runs_own_numbers(demo):
    entries = [entry for entry, _ in demo[0].values()]
    for entry in entries:
        assert entry["verdict"] in ("ok", "watch", "bad")
    rates = [median(row["structural_rate"] for row in entry["linkage"]) for entry in entries]
    assert rates[1] < rates[0]


@pytest.mark.parametrize("plan", [{"steps": 0}, {"depth": 0}, {"seeds": 0}, {"variants": ()}, {"device": "nowhere"}])
def test_a_plan_that_makes_no_sense_is_refused_with_the_argument_named(plan):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(plan))}="):
        Plan(**plan)


def test_every_variant_of_one_seed_sees_the_same_batches(demo):
    stores = [store for _, store in demo[0].values()]
    inputs = [column(store["layers"], "sum", "input")[:, 0] for store in stores]
    np.testing.assert_array_equal(*inputs)
