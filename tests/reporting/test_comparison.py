"""What is told of several runs side by side, and of the seeds of several groups."""

from __future__ import annotations

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.diagnosis.wording import percent


def test_findings_that_come_or_go_name_every_layer_with_a_link_into_a_run_that_has_it(several):
    (table,) = several.page.find("table", class_="changes")
    changes = several.told["comparison"]["findings"]
    assert max(len(change["gone"]) for change in changes) > 6
    for change, row in zip(changes, table.find("tbody")[0].find("tr"), strict=True):
        for key, cell, run in (("gone", row.find("td")[4], 0), ("new", row.find("td")[5], 1)):
            numbers = {row["layer"]: number for number, row in enumerate(several.told["runs"][run]["layers"])}
            names = [name for name in change[key] if name.removesuffix(".weight") in numbers]
            links = [(a.words, a.attributes["href"]) for a in cell.find("a")]
            assert links == [(name, f"#r{run}-l{numbers[name.removesuffix('.weight')]}") for name in names]
            assert len(cell.find("details")) == (len(change[key]) > 6)


def test_the_grid_of_runs_holds_the_worst_verdict_of_every_check(several, runs):
    (table,) = several.page.find("table", class_="of-runs")
    checks = [cell.words for cell in table.find("thead")[0].find("th")][1:]
    order = ["bad", "watch", "ok", "not measured"]
    for (name, recording), row in zip(runs.items(), table.find("tbody")[0].find("tr"), strict=True):
        assert row.find("th")[0].words == name
        grid = diagnose(recording).grid()
        shown = dict(zip(checks, [cell.words for cell in row.find("td")], strict=True))
        for check in grid["check"].values.tolist():
            words = {word for word in grid.sel(check=check).values.tolist() if word}
            assert shown.get(check, "") == min(words, key=order.index, default="")


def test_several_runs_are_compared_before_each_is_told(several):
    places = [several.html.index(mark) for mark in ('id="comparison"', 'side-by-side">', 'id="runs"', 'id="methods"')]
    assert places == sorted(places)
    rows = {
        row.find("th")[0].words: [cell.words for cell in row.find("td")]
        for row in several.page.find("table", class_="side-by-side")[0].find("tbody")[0].find("tr")
    }
    assert rows["test accuracy, last logged"] == ["8.1 %", "91.3 %"]
    assert rows["loss, last logged"] == ["2.30", "1.79"]
    assert rows["dead units"] == ["8", "0"]
    assert rows["linked units with a silent member"] == ["\N{EN DASH}", "0"]
    assert rows["layers of that kind with an all-zero gradient at the last record"][1] == "0"


def test_each_run_keeps_its_mark_and_colour_throughout(several):
    marks: dict[str, set] = {}
    for name in several.page.find("span", class_="run-name"):
        look = (name.find("use")[0].attributes["href"], name.find("svg")[0].attributes["style"])
        marks.setdefault(name.words, set()).add(look)
    assert set(marks) == {"plain", "linked"}
    assert all(len(looks) == 1 for looks in marks.values())
    assert marks["plain"] != marks["linked"]


def test_differences_between_single_runs_are_called_an_illustration(several):
    assert "Differences between single runs are an illustration" in several.page.text


def test_differences_of_groups_are_drawn_in_the_comparison_part(several):
    part = several.page.find("section", id="comparison")[0]
    captions = [caption.words for caption in part.find("figcaption")]
    assert len(captions) == 2
    assert "Where either group is a single run there is no interval" in captions[1]
    assert "linked minus plain (one seed each: an illustration)" in part.find("figure")[1].find("svg")[0].text


def test_the_range_over_seeds_is_left_out_where_it_reads_as_one_number(written, make_run, tmp_path):
    def ranges(plain):
        linked = {"linked seed 0": make_run(pairs=1, steps=(0, 10), linked=True)}
        report = written(tmp_path, {f"plain seed {n}": run for n, run in enumerate(plain)} | linked, overwrite=True)
        (table,) = report.page.find("table", class_="side-by-side")
        return [note.words.split(" to ") for note in table.find("span", class_="note") if " to " in note.words]

    runs = [make_run(pairs=1, steps=(0, 10), dying=dying, attrs={"seed": int(dying)}) for dying in (False, True)]
    again = runs[0].copy()
    again.attrs["seed"] = 1
    assert ranges([runs[0], again]) == []
    differing = ranges(runs)
    assert differing
    assert all(low != high for low, high in differing)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 1e-3])
def test_equal_numbers_of_all_seeds_read_as_no_difference(rate):
    from covshift.reporting.side_by_side import _effect

    assert _effect([rate] * 3, [rate] * 3) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    moved = _effect([rate] * 3, [2 * rate] * 3)
    assert moved["low"] == moved["high"] == moved["difference"] == rate


def test_a_page_of_equal_groups_says_no_difference_where_it_printed_rounding(written, make_run, tmp_path):
    runs = {f"{group} seed {seed}": make_run(pairs=1, steps=(0, 10)) for group in ("a", "b") for seed in range(3)}
    for name, run in runs.items():
        run.attrs |= {"variant": name[0], "seed": int(name[-1])}
    table = written(tmp_path, runs).page.find("table", class_="side-by-side")[0].words
    assert "no difference" in table
    assert "difference 0" not in table


def test_numbers_of_seeds_stand_with_their_difference_and_welchs_interval(written, make_run, tmp_path):
    from scipy import stats

    runs = {
        f"{name} seed {seed}": make_run(pairs=2, steps=(0, 10), linked=linked, dying=seed == 0, seed=seed)
        for name, linked in (("plain", False), ("linked", True))
        for seed in range(3)
    }
    report = written(tmp_path, runs)
    (row,) = [one for one in report.told["comparison"]["rows"] if one["name"].startswith("structural zeros")]
    values = [np.median([entry["structural_rate"] for entry in run["linkage"]]) for run in report.told["runs"]]
    expected = stats.ttest_ind(values[3:], values[:3], equal_var=False).confidence_interval(0.9)
    assert row["effects"][0] is None
    effect = row["effects"][1]
    assert effect["difference"] == pytest.approx(np.mean(values[3:]) - np.mean(values[:3]))
    assert (effect["low"], effect["high"]) == pytest.approx(tuple(expected))
    table = report.page.find("table", class_="side-by-side")[0].words
    assert f"difference {percent(effect['difference'])}" in table


def test_runs_are_named_by_their_attribute_and_told_apart(written, make_run, tmp_path):
    told = written(tmp_path, [make_run(steps=(), name=name) for name in ("a", "a", "")]).told
    assert [run["name"] for run in told["runs"]] == ["a", "a (2)", "run 3"]
