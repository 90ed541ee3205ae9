"""The results pages say what the summaries hold, and nothing where there are none or too few."""

import json
import re

import pytest
import torch
from torch import nn

import covshift
import results
from common import figures, published, tables
from common.data import DATASETS, TRAINING_IMAGES
from common.files import thinned, write_json
from common.pages import all_tables, provenance
from common.summaries import Summaries
from covshift.datasets import digits

DEEP = {"initialization": "keras", "depth": 50}


def test_without_runs_every_claim_and_every_cell_of_ours_is_not_run(tmp_path, folder_of):
    judgements = results.write_pages(folder_of(tmp_path, []), tmp_path)
    assert [one.word for one in judgements] == ["not run"] * 6
    readme = (tmp_path / "README.md").read_text()
    assert readme.count("**not run**") == 6
    assert "No runs yet" in readme
    rows = [line for line in (tmp_path / "tables.md").read_text().splitlines() if line.startswith("| LK-ReLU")]
    assert len(rows) == 8
    assert all("not run" in row for row in rows)


def test_published_numbers_stand_in_the_papers_places():
    assert published.WIDTH[50]["linked-selu"] == 0.5730
    assert published.DEPTH_MEDIAN["linked-prelu"] == 0.5210
    assert published.EXTENDED["silu-wide"] == 0.7376
    assert published.EXTENDED["prelu"] == 0.7201
    assert published.ALL_CNN["linked-silu"] == 0.8971
    assert published.RESNET["selu"] == 0.9041
    assert len(published.DEPTH_MAX) == 13
    assert len(published.EXTENDED) == 12


def test_who_leaves_chance_is_said_with_the_step_of_the_first_evaluation_above_it(tmp_path, folder_of, depth_runs):
    runs = depth_runs({"relu": [0, 0], "linked-relu": [0, 0]})
    for run, above in zip(runs, (None, None, 200, 300), strict=True):
        steps = [100, 200, 300]
        values = [0.16 if above is not None and step >= above else 0.14 for step in steps]
        run["curve"] = {"step": steps, "test_accuracy": values}
    found = tables.who_learns(Summaries.of(folder_of(tmp_path, runs))).splitlines()
    assert "| ReLU | 0 of 2 | never | 0.5050 | 100 |" in found
    assert "| LK-ReLU | 2 of 2 | 200 to 300 | 0.5050 | 100 |" in found


def test_a_run_that_overrides_its_preset_names_the_command_that_makes_it(tmp_path, summary, folder_of):
    plan = {
        "steps": 9000, "dataset": "digits-32", "seeds": 1, "variants": ["relu", "linked-relu"],
        "axes": {"initialization": ["keras"], "depth": [50]},
    }  # fmt: skip
    runs = [summary("depth", "relu", 0, preset="cpu-9000-digits-32", condition=DEEP, plan=plan)]
    runs.append(summary("depth", "relu", 0, condition=DEEP))
    text = "\n".join(provenance(Summaries.of(folder_of(tmp_path, runs))))
    assert (
        "- Made, at its commit, by `python analyses/depth.py --data DIR --preset cpu --steps 9000 --dataset digits-32 "
        "--initialization keras --depth 50 --variants relu,linked-relu --seeds 1`"
    ) in text
    assert "- Made, at its commit, by `python analyses/depth.py --data DIR --preset cpu`" in text


def test_table_d_shows_the_papers_statistics_of_our_runs(tmp_path, folder_of, depth_runs):
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


def test_along_a_setting_runs_of_another_preset_or_condition_have_a_table_of_their_own(tmp_path, summary, folder_of):
    settings = [("cpu", "keras", 10, 0.4), ("cpu", "keras", 50, 0.1), ("cpu", "glorot", 50, 0.2)]
    runs = []
    for preset, start, depth, end in [*settings, ("cpu-9000", "keras", 50, 0.9)]:
        condition = {"initialization": start, "depth": depth}
        runs += [
            summary("depth", "relu", seed, preset=preset, condition=condition, test_accuracy=end) for seed in range(3)
        ]
    text = all_tables(Summaries.of(folder_of(tmp_path, runs)))
    depths = text[text.index("### Depths") :]
    assert re.findall("### Depths, (.*)", depths) == ["preset cpu, initialization keras"]
    assert "| ReLU | 0.400 (0.400 to 0.400) | 0.100 (0.100 to 0.100) |" in depths.splitlines()
    assert "0.900" not in depths


def test_runs_of_another_plan_are_not_mixed_with_older_ones(tmp_path, summary, folder_of):
    runs = [summary("allcnn", "relu", seed, plan={"seeds": 3, "steps": 50}) for seed in range(3)]
    runs[0]["plan"] = {"seeds": 1, "variants": ["relu"], "steps": 50}
    results.write_pages(folder_of(tmp_path / "a", runs), tmp_path)
    runs[0]["plan"]["steps"] = 300
    with pytest.raises(ValueError, match=r"allcnn_cpu_relu_seed-0: 300 steps, .*remove the older ones"):
        results.write_pages(folder_of(tmp_path / "b", runs), tmp_path)


def test_runs_that_all_ended_alike_predict_no_interval(tmp_path, summary, folder_of):
    runs = [summary("width", "relu", seed, condition={"width": 50}, test_accuracy=0.1) for seed in range(3)]
    text = all_tables(Summaries.of(folder_of(tmp_path, runs)))
    assert "| 0.1000 to 0.1000 | all equal |" in text


def test_whose_movement_it_was_is_told_by_variant_and_depth(tmp_path, summary, folder_of):
    runs = []
    for depth in (10, 50):
        for seed in range(3):
            moments = [{"upstream_share": [0.0, 0.2 + 0.1 * seed, None]}, {"upstream_share": [0.0, depth / 100, 0.9]}]
            condition = {"initialization": "keras", "depth": depth}
            runs.append(summary("covariate_shift", "linked-relu", seed, condition=condition, measured=moments))
    text = all_tables(Summaries.of(folder_of(tmp_path, runs)))
    assert "### Whose movement, preset cpu, initialization keras" in text
    # of 0.2, 0.3, 0.4 by seed beside 0.1 (0.5) and 0.9: the middle one of three
    assert "| LK-ReLU | 0.30 (0.20 to 0.40) | 0.50 (0.50 to 0.50) |" in text


def test_what_the_paper_has_no_experiment_for_is_not_said_to_differ_from_it(tmp_path, summary, folder_of):
    runs = [summary("input_shift", "relu", 0, condition={"input": "raw"}), summary("width", "relu", 0)]
    stated = "\n".join(provenance(Summaries.of(folder_of(tmp_path, runs))))
    assert "- input_shift, cpu: no experiment of the paper; " in stated
    assert "steps 100 (there 312600)" in stated
    assert "- width, cpu: steps 100 (paper 312600)" in stated
    assert "at commit f00, torch 2, cpu (x, 2 cores, 1 threads a run): input_shift, width" in stated


def test_silent_units_are_shown_by_layer_and_in_all(tmp_path, folder_of, depth_runs):
    data = folder_of(tmp_path, depth_runs({"relu": [2, 1, 2], "linked-relu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    readme, units = (tmp_path / "README.md").read_text(), (tmp_path / "units.md").read_text()
    assert "| ReLU | 2 of 8 | 1 to 2 | act3 | 1 | 3 |" in readme
    assert "| LK-ReLU | 0 of 8 | 0 to 0 | none | 0 | 3 |" in readme
    assert "| act3 | 2 | 0 |" in units


@pytest.mark.parametrize(("silent", "said"), [
    ({"relu": [1], "linked-relu": [0]}, "seed 0"),
    ({"relu": [1, 2, 2], "linked-relu": [0, 0, 0]}, "over 3 seeds"),
    ({"relu": [1, 2, 2], "linked-relu": [0, 0]}, "over 2 to 3 seeds"),
])  # fmt: skip
def test_figures_say_how_many_seeds_they_show(tmp_path, silent, said, folder_of, depth_runs):
    figures.draw(Summaries.of(folder_of(tmp_path, depth_runs(silent))), tmp_path)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 2
    # A text of matplotlib's SVG stands in a comment before its outlines.
    assert all(f"{said} -->" in path.read_text() for path in drawn)


def test_every_curve_is_seen_beside_chance_in_the_panel_of_its_base(tmp_path, folder_of, depth_runs):
    runs = depth_runs({name: [0, 0, 0] for name in ("relu", "relu-wide", "linked-relu", "linked-selu")})
    figures.draw(Summaries.of(folder_of(tmp_path, runs)), tmp_path)
    drawn = next(tmp_path.glob("depth-accuracy-*.svg")).read_text()
    texts = re.findall("<!-- (.*) -->", drawn)
    assert [texts.count(name) for name in ("ReLU", "SELU", "Swish")] == [1, 1, 0]
    assert [texts.count(name) for name in ("chance", "single", "linked", "sqrt(2) wide", "BN")] == [1, 1, 1, 1, 0]


def test_pages_state_data_hardware_commit_and_distance_and_are_the_same_again(tmp_path, folder_of, depth_runs):
    data = folder_of(tmp_path, depth_runs({"relu": [2, 2, 2], "linked-silu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    pages = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    readme = (tmp_path / "README.md").read_text()
    for stated in ("Recompressed as JPEG.", "SHA-256 abc", "commit f00", "steps 100 (paper 312600)", "2 cores"):
        assert stated in readme
    assert "carried" in (tmp_path / "claims" / "C2.md").read_text()
    results.write_pages(data, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == pages


def test_evidence_is_json_with_the_runs_behind_every_effect(tmp_path, folder_of, depth_runs):
    data = folder_of(tmp_path, depth_runs({"relu": [2, 2, 2], "linked-relu": [0, 0, 0]}))
    results.write_pages(data, tmp_path)
    found = json.loads((tmp_path / "evidence" / "C1.json").read_text())
    assert found["verdict"] == "supported"
    assert set(found["effects"][0]["runs"]) == {path.name for path in data.iterdir()}


def test_judging_again_makes_anew_what_comes_from_the_recording_and_nothing_else(tmp_path, summary):
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
    stated = "\n".join(provenance(Summaries.of(tmp_path)))
    assert f"- Of 1 of 2 runs the recording was judged again by covshift {covshift.__version__} at " in stated


def test_data_sets_have_as_many_training_images_as_is_said():
    assert TRAINING_IMAGES["digits-32"] == len(digits().train_images)
    assert set(TRAINING_IMAGES) == set(DATASETS)


def test_collecting_takes_everything_but_smoke_runs(tmp_path, summary, folder_of):
    runs = [summary("width", "relu", 0), summary("width", "relu", 1, preset="smoke")]
    source = folder_of(tmp_path / "runs", runs)
    assert results.collect(source, tmp_path / "data", smoke=False) == 1
    assert [run["seed"] for run in Summaries.of(tmp_path / "data")] == [0]
    assert results.collect(source, tmp_path / "data", smoke=True) == 2


def test_the_pages_in_the_repository_are_those_of_its_summaries(tmp_path):
    results.write_pages(results.RESULTS / "data", tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix in (".md", ".json"):
            kept = results.RESULTS / path.relative_to(tmp_path)
            assert kept.read_text() == path.read_text(), f"{kept}: run python analyses/results.py"


def test_tables_name_every_variant_of_the_paper():
    letters = [table.letter for table in tables.paper_tables()]
    assert letters == ["W", "W", "D", "E", "A", "R", "N", "N"]


def test_thinning_keeps_the_ends_and_the_order():
    for count in (0, 1, 5, 6, 7, 1000):
        kept = thinned(range(count), 6)
        assert len(kept) == min(count, 6)
        assert kept == sorted(set(kept))
        assert kept[:1] + kept[-1:] == list(range(count))[:1] + list(range(count))[-1:]
