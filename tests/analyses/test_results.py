"""The results pages say what the summaries hold, and nothing where there are none or too few."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import covshift
import results
from common import claims, figures, published, tables
from common.data import DATASETS, TRAINING_IMAGES
from common.files import thinned, write_json
from common.intervals import mean_interval, prediction_interval, ratio_interval
from common.pages import provenance
from common.summaries import Summaries
from covshift.datasets import digits

SEEDS = range(3)


def summary(experiment: str, variant: str, seed: int, **changed: Any) -> dict[str, Any]:
    """A run of four layers of two units, alive, carried through, at 0.5 plus a little by seed."""
    accuracy = 0.5 + 0.01 * seed
    profile = {
        "layers": ["act0", "act1", "act2", "act3"], "step": [0, 90], "rms": [[1.0] * 4] * 2,
        "zero_rate": [[0.5] * 4] * 2,
        "slope": [0.01, 0.01 + 0.001 * seed], "vanished": [0, 0],
    }  # fmt: skip
    machine = {"covshift": "0", "torch": "2", "python": "3", "device": "cpu", "cpu": "x", "cores": 2, "threads": 1}
    run = {
        "covshift_results_version": 1, "key": "k", "experiment": experiment, "preset": "cpu", "variant": variant,
        "title": claims.VARIANTS[variant].title if variant in claims.VARIANTS else variant, "condition": {},
        "seed": seed,
        "plan": {"batch_size": 32, "seeds": 3}, "distance_from_paper": {"steps": {"here": 100, "paper": 312600}},
        "data": {"name": "cifar10", "sha256": "abc", "description": "Recompressed as JPEG."},
        "machine": machine | {"commit": "f00"}, "complete": True, "steps": 100, "parameters": 1000,
        "test_accuracy": accuracy, "test_loss": 1.0,
        "curve": {"step": [50, 100], "test_accuracy": [accuracy + 0.02, accuracy], "test_loss": [1, 1]},
        "evaluations": {"count": 2, "best": accuracy + 0.02, "median": accuracy + 0.01}, "measured": [],
        "seconds": {"cpu": 3600.0, "wall": 4000.0}, "hashes": {"parameters": "d"},
        "units": {"layers": profile["layers"], "units": [2] * 4, "step": [100], "examples": 9, "silent": [[0] * 4]},
        "profiles": {"activation": profile, "activation_grad": profile},
        "diagnosis": {"sentence": "Healthy.", "worst": "ok", "checks": {}, "cause_count": 0, "causes": []},
    }  # fmt: skip
    return run | changed


def folder_of(tmp_path: Path, runs: list[dict[str, Any]]) -> Path:
    for run in runs:
        condition = [f"{name}-{value}" for name, value in run["condition"].items()]
        name = "_".join([run["experiment"], run["preset"], *condition, run["variant"], f"seed-{run['seed']}"])
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        write_json(place / "summary.json", run)
    return tmp_path / "data"


def judged(tmp_path: Path, claim: str, runs: list[dict[str, Any]]) -> claims.Judgement:
    return claims.JUDGES[claim](Summaries.of(folder_of(tmp_path, runs)))


DEEP = {"initialization": "keras", "depth": 50}


def depth_runs(silent: dict[str, list[int]], **changed: Any) -> list[dict[str, Any]]:
    """Depth runs of variants with so many silent units in the last layer, one number a seed."""
    runs = []
    for variant, counts in silent.items():
        for seed, count in enumerate(counts):
            run = summary("depth", variant, seed, condition=DEEP, **changed)
            run["units"]["silent"] = [[2, 2, 2, 2], [0, 0, 0, count]]
            runs.append(run)
    return runs


def test_intervals_are_students(tmp_path: Path) -> None:
    values = [0.3, 0.5, 0.4, 0.45]
    found = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    further = prediction_interval(values)
    reach = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * math.sqrt(1 + 1 / 4)
    assert (further.low, further.high) == pytest.approx((np.mean(values) - reach, np.mean(values) + reach))
    ratios = ratio_interval([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert (ratios.value, ratios.low, ratios.high) == pytest.approx((2, 2, 2))


def test_fewer_than_three_runs_have_no_interval() -> None:
    for values in ([], [0.1], [0.1, 0.2], [0.1, 0.2, math.nan]):
        assert not mean_interval(values).known


def test_a_prediction_of_an_accuracy_stays_between_0_and_1() -> None:
    found = prediction_interval([0.01, 0.5, 0.99])
    assert (found.low, found.high) == (0, 1)


def test_without_runs_every_claim_and_every_cell_of_ours_is_not_run(tmp_path: Path) -> None:
    judgements = results.write_pages(folder_of(tmp_path, []), tmp_path)
    assert [one.word for one in judgements] == ["not run"] * 6
    readme = (tmp_path / "README.md").read_text()
    assert readme.count("**not run**") == 6
    assert "No runs yet" in readme
    rows = [line for line in (tmp_path / "tables.md").read_text().splitlines() if line.startswith("| LK-ReLU")]
    assert len(rows) == 8
    assert all("not run" in row for row in rows)


def test_published_numbers_stand_in_the_papers_places() -> None:
    assert published.WIDTH[50]["linked-selu"] == 0.5730
    assert published.DEPTH_MEDIAN["linked-prelu"] == 0.5210
    assert published.EXTENDED["silu-wide"] == 0.7376
    assert published.EXTENDED["prelu"] == 0.7201
    assert published.ALL_CNN["linked-silu"] == 0.8971
    assert published.RESNET["selu"] == 0.9041
    assert len(published.DEPTH_MAX) == 13
    assert len(published.EXTENDED) == 12


def test_no_silent_linked_unit_in_three_seeds_supports_c1_and_one_refutes_it(tmp_path: Path) -> None:
    alive = judged(tmp_path / "a", "C1", depth_runs({"relu": [2, 1, 2], "linked-relu": [0, 0, 0]}))
    assert alive.word == "supported"
    assert alive.effects[0].number.value == pytest.approx(5 / 3 / 8)
    dead = judged(tmp_path / "b", "C1", depth_runs({"relu": [2, 2, 2], "linked-relu": [0, 1, 0]}))
    assert dead.word == "refuted"
    few = judged(tmp_path / "c", "C1", depth_runs({"relu": [2, 2], "linked-relu": [0, 0]}))
    assert few.effects[0].word == few.word == "undetermined"


@pytest.mark.parametrize(("silent", "word"), [(0, "supported"), (1, "refuted")])
def test_one_long_run_is_an_illustration_and_decides_nothing(tmp_path: Path, silent: int, word: str) -> None:
    runs = depth_runs({"relu": [2, 1, 2], "linked-relu": [silent] * 3})
    runs += depth_runs({"relu": [2], "linked-relu": [1 - silent]}, preset="cpu-9000", steps=9000, plan={"seeds": 1})
    found = judged(tmp_path, "C1", runs)
    assert sorted(effect.word for effect in found.effects) == sorted(["illustration", word])
    assert found.word == word


def test_who_leaves_chance_is_said_with_the_step_of_the_first_evaluation_above_it(tmp_path: Path) -> None:
    runs = depth_runs({"relu": [0, 0], "linked-relu": [0, 0]})
    for run, above in zip(runs, (None, None, 200, 300), strict=True):
        steps = [100, 200, 300]
        values = [0.16 if above is not None and step >= above else 0.14 for step in steps]
        run["curve"] = {"step": steps, "test_accuracy": values}
    found = tables.who_learns(Summaries.of(folder_of(tmp_path, runs))).splitlines()
    assert "| ReLU | 0 of 2 | never | 0.5050 | 100 |" in found
    assert "| LK-ReLU | 2 of 2 | 200 to 300 | 0.5050 | 100 |" in found


@pytest.mark.parametrize("check", ["gradient arrives", "scale over depth"])
def test_one_run_whose_gradient_died_refutes_c2(tmp_path: Path, check: str) -> None:
    runs = depth_runs({"linked-relu": [0, 0, 0]})
    assert judged(tmp_path / "a", "C2", runs).word == "supported"
    runs[1]["diagnosis"]["checks"] = {check: {"ok": 3, "bad": 1}}
    found = judged(tmp_path / "b", "C2", runs)
    assert found.word == "refuted"
    assert "dead in 1 of 3 runs" in found.effects[0].detail
    assert found.effects[0].number.value == pytest.approx(0.011)


def shifting(variant: str, seed: int, factor: float, stable: int) -> dict[str, Any]:
    return summary(
        "covariate_shift", variant, seed, condition=DEEP,
        shift={"equivalent_shift": [[None, None], [factor * (1 + seed), factor * (1 + seed)]]},
        measured=[{"ics_to_noise": [0.0, factor * (1 + 0.1 * seed), factor * (1 + 0.1 * seed)]}],
        operating_points={"STABLE": stable, "DRIFTING": 10 - stable},
    )  # fmt: skip


def test_c3_compares_linked_with_plain_and_with_bn_seed_by_seed(tmp_path: Path) -> None:
    runs = [
        shifting(variant, seed, factor, stable)
        for variant, factor, stable in (("relu", 2.0, 5), ("linked-relu", 1.0, 10), ("batch-norm", 1.5, 8))
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C3", runs)
    assert found.word == "supported"
    ratios = [effect.number.value for effect in found.effects]
    assert ratios == pytest.approx([0.5, 0.5, 1 / 1.5, 1 / 1.5, 1.0])


def test_c3_is_refuted_where_linked_moves_more_or_never_rests(tmp_path: Path) -> None:
    for name, factor, stable in (("moves", 3.0, 10), ("restless", 1.0, 1)):
        runs = [shifting("relu", seed, 2.0, 5) for seed in SEEDS]
        runs += [shifting("linked-relu", seed, factor, stable) for seed in SEEDS]
        assert judged(tmp_path / name, "C3", runs).word == "refuted"


def test_c3_draws_nothing_from_a_control_that_stays_at_chance(tmp_path: Path) -> None:
    controls = (("relu", 0.1), ("linked-relu", 3.0))
    runs = [shifting(variant, seed, factor, 10) for variant, factor in controls for seed in SEEDS]
    runs[1]["evaluations"]["best"] = 0.11
    ratios = judged(tmp_path, "C3", runs).effects[:2]
    assert [effect.word for effect in ratios] == ["undetermined"] * 2
    assert [effect.detail for effect in ratios] == ["5 of 6 runs left chance"] * 2


@pytest.mark.parametrize(("low", "high", "word"), [
    (1.9, 2.3, "supported"), (1.1, 1.4, "refuted"), (1.5, 2.1, "undetermined"),
])  # fmt: skip
def test_c4_asks_whether_the_whole_interval_is_about_2(tmp_path: Path, low: float, high: float, word: str) -> None:
    ratio = {"central": (low + high) / 2, "low": low, "high": high}
    ratios = {"LK-ReLU, BN / LK-ReLU": ratio, "ReLU, BN / LK-ReLU": ratio}
    arms = {"LK-ReLU": {"ms": 10.0, "parameters": 5}}
    run = summary("step_time", "resnet", 0, condition={"rounds": 30}, ratios=ratios, arms=arms)
    assert judged(tmp_path, "C4", [run]).word == word


@pytest.mark.parametrize(("loss", "word"), [(0.0, "supported"), (0.1, "refuted")])
def test_c5_asks_what_is_lost_without_standardisation(tmp_path: Path, loss: float, word: str) -> None:
    runs = [
        summary("input_shift", "linked-relu", seed, condition={"input": given}, test_accuracy=0.5 + 0.01 * seed - less)
        for given, less in (("standardised", 0.0), ("raw", loss))
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C5", runs)
    assert found.word == word
    assert found.effects[0].number.value == pytest.approx(loss)


def test_c6_compares_with_the_wide_control_in_table_e_and_the_single_net_elsewhere(tmp_path: Path) -> None:
    gains = {
        "parameter_matched": {"relu": 0.2, "relu-wide": 0.0, "linked-relu": 0.05},
        "width": {"relu": 0, "linked-relu": -0.1},
    }
    runs = [
        summary(experiment, variant, seed, test_accuracy=0.5 + 0.01 * seed + gain)
        for experiment, variants in gains.items()
        for variant, gain in variants.items()
        for seed in SEEDS
    ]
    found = judged(tmp_path, "C6", runs)
    assert [(effect.number.value, effect.word) for effect in found.effects] == [
        (pytest.approx(0.05), "supported"),
        (pytest.approx(-0.1), "refuted"),
    ]
    assert found.word == "refuted"


def test_c6_draws_nothing_from_nets_that_have_not_begun_to_learn(tmp_path: Path) -> None:
    runs = [
        summary("allcnn", variant, seed, test_accuracy=0.1) for variant in ("relu", "linked-relu") for seed in SEEDS
    ]
    assert judged(tmp_path / "a", "C6", runs).word == "supported"
    for run in runs:
        run["evaluations"]["best"] = 0.11
    (effect,) = judged(tmp_path / "b", "C6", runs).effects
    assert effect.word == "undetermined"
    assert effect.detail.endswith("; 0 of 6 runs left chance")


def test_a_run_that_overrides_its_preset_names_the_command_that_makes_it(tmp_path: Path) -> None:
    plan = {
        "steps": 9000, "dataset": "digits-32", "seeds": 1, "variants": ["relu", "linked-relu"],
        "axes": {"initialization": ["keras"], "depth": [50]},
    }  # fmt: skip
    runs = [summary("depth", "relu", 0, preset="cpu-9000-digits-32", condition=DEEP, plan=plan)]
    runs.append(summary("depth", "relu", 0, condition=DEEP))
    text = "\n".join(provenance(Summaries.of(folder_of(tmp_path, runs))))
    assert (
        "- Made by `python analyses/depth.py --data DIR --preset cpu --steps 9000 --dataset digits-32 --initialization "
        "keras --depth 50 --variants relu,linked-relu --seeds 1`"
    ) in text
    assert "- Made by `python analyses/depth.py --data DIR --preset cpu`" in text


def test_runs_of_another_preset_are_never_paired(tmp_path: Path) -> None:
    runs = [summary("width", "linked-relu", seed) for seed in SEEDS]
    runs += [summary("width", "relu", seed, preset="cpu-9000") for seed in SEEDS]
    assert judged(tmp_path, "C6", runs).word == "undetermined"


def test_table_d_shows_the_papers_statistics_of_our_runs(tmp_path: Path) -> None:
    data = folder_of(tmp_path, depth_runs({"linked-relu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    line = next(
        line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| LK-ReLU | 0.5667")
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # accuracies at the end 0.50, 0.51, 0.52, at the evaluation before 0.02 more
    assert cells[:8] == ["LK-ReLU", "0.5667", "0.5607", "0.5400", "0.5300", "0.5200", "0.5100", "0.5000 to 0.5200"]
    assert cells[8] == "[0.460, 0.560]"  # 0.51 -+ 4.303 * 0.01 * sqrt(4 / 3)
    assert cells[9:] == ["1,000", "3", "100"]


def test_silent_units_are_shown_by_layer_and_in_all(tmp_path: Path) -> None:
    data = folder_of(tmp_path, depth_runs({"relu": [2, 1, 2], "linked-relu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    readme, units = (tmp_path / "README.md").read_text(), (tmp_path / "units.md").read_text()
    assert "| ReLU | 2 of 8 | 1 to 2 | act3 | 1 | 3 |" in readme
    assert "| LK-ReLU | 0 of 8 | 0 to 0 | none | 0 | 3 |" in readme
    assert "| act3 | 2 | 0 |" in units


@pytest.mark.parametrize(("silent", "said"), [
    ({"relu": [1], "linked-relu": [0]}, "seed 0"),
    ({"relu": [1, 2, 2], "linked-relu": [0, 0, 0]}, "median over 3 seeds"),
    ({"relu": [1, 2, 2], "linked-relu": [0, 0]}, "median over 2 to 3 seeds"),
])  # fmt: skip
def test_figures_say_how_many_seeds_they_show(tmp_path: Path, silent: dict[str, list[int]], said: str) -> None:
    figures.draw(Summaries.of(folder_of(tmp_path, depth_runs(silent))), tmp_path)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 2
    # A text of matplotlib's SVG stands in a comment before its outlines.
    assert all(f", {said} -->" in path.read_text() for path in drawn)


def test_pages_state_data_hardware_commit_and_distance_and_are_the_same_again(tmp_path: Path) -> None:
    data = folder_of(tmp_path, depth_runs({"relu": [2, 2, 2], "linked-silu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    pages = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    readme = (tmp_path / "README.md").read_text()
    for stated in ("Recompressed as JPEG.", "SHA-256 abc", "commit f00", "steps 100 (paper 312600)", "2 cores"):
        assert stated in readme
    assert "carried" in (tmp_path / "claims" / "C2.md").read_text()
    results.write_pages(data, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == pages


def test_evidence_is_json_with_the_runs_behind_every_effect(tmp_path: Path) -> None:
    data = folder_of(tmp_path, depth_runs({"relu": [2, 2, 2], "linked-relu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    found = json.loads((tmp_path / "evidence" / "C1.json").read_text())
    assert found["verdict"] == "supported"
    assert set(found["effects"][0]["runs"]) == {path.name for path in data.iterdir()}


@pytest.mark.parametrize(("sizes", "fate"), [
    ([1.0, 0.1, 1e-3, 1e-9], "vanishing"), ([1.0, 2.0, 2.0, 2.0], "carried"), ([1.0, 10.0, 1e3, 1e4], "exploding"),
    ([1.0, 10.0, None, None], "not finite"),
])  # fmt: skip
def test_the_fate_of_the_signal_is_read_from_the_first_record(sizes: list[float | None], fate: str) -> None:
    run = summary("depth", "linked-silu", 0)
    run["profiles"]["activation"] = run["profiles"]["activation"] | {"rms": [sizes, [1.0] * 4]}
    assert claims.forward_fate(run) == fate


def test_judging_again_makes_anew_what_comes_from_the_recording_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "depth_cpu_relu_seed-0"
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -1.0
    with covshift.record(model, folder / "recording.zarr", every=1) as recorder:
        for _ in range(3):
            model(torch.randn(40, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        watched = torch.randn(700, 4)
        with recorder.evaluation(), torch.no_grad():
            model(watched)
    silent = model[:2](watched).eq(0).all(dim=0).sum()
    assert silent >= 1
    plan = {"seeds": 3, "train_examples": 120}
    before = summary("depth", "relu", 0, plan=plan)
    write_json(folder / "summary.json", before)
    (tmp_path / "without").mkdir()
    write_json(tmp_path / "without" / "summary.json", before)
    assert results.judge_again(tmp_path) == 1
    after = json.loads((folder / "summary.json").read_text())
    assert (after["units"]["silent"][-1], after["units"]["examples"]) == ([int(silent)], 700)
    assert after["judged_by"].startswith(f"covshift {covshift.__version__} at ")
    made = {"units", "profiles", "diagnosis", "judged_by"}
    assert {name: after[name] for name in before if name not in made} == {n: before[n] for n in before if n not in made}
    assert "Recordings judged again by covshift" in "\n".join(provenance(Summaries.of(tmp_path)))


def test_data_sets_have_as_many_training_images_as_is_said() -> None:
    assert TRAINING_IMAGES["digits-32"] == len(digits().train_images)
    assert set(TRAINING_IMAGES) == set(DATASETS)


def test_collecting_takes_everything_but_smoke_runs(tmp_path: Path) -> None:
    runs = [summary("width", "relu", 0), summary("width", "relu", 1, preset="smoke")]
    source = folder_of(tmp_path / "runs", runs)
    assert results.collect(source, tmp_path / "data", smoke=False) == 1
    assert [run["seed"] for run in Summaries.of(tmp_path / "data")] == [0]
    assert results.collect(source, tmp_path / "data", smoke=True) == 2


def test_the_pages_in_the_repository_are_those_of_its_summaries(tmp_path: Path) -> None:
    results.write_pages(results.RESULTS / "data", tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix in (".md", ".json"):
            kept = results.RESULTS / path.relative_to(tmp_path)
            assert kept.read_text() == path.read_text(), f"{kept}: run python analyses/results.py"


def test_tables_name_every_variant_of_the_paper() -> None:
    letters = [table.letter for table in tables.paper_tables()]
    assert letters == ["W", "W", "D", "E", "A", "R", "N", "N"]


def test_thinning_keeps_the_ends_and_the_order() -> None:
    for count in (0, 1, 5, 6, 7, 1000):
        kept = thinned(range(count), 6)
        assert len(kept) == min(count, 6)
        assert kept == sorted(set(kept))
        assert kept[:1] + kept[-1:] == list(range(count))[:1] + list(range(count))[-1:]
