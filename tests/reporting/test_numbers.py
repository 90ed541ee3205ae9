"""Numbers on the page are those of the JSON twin, and those are the ones of the analysis and of the recording."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from covshift.diagnosis import diagnose
from covshift.schema import Layer


def number_of(text: str, kind: str) -> tuple[float, float]:
    """Value a printed number stands for, and how far from it the exact one may be."""
    bound = text.startswith(("<", ">"))
    plain = text.lstrip("<> ").replace(",", "")
    if plain == "\N{EN DASH}":
        return np.nan, 0.0
    if kind == "duration":
        units = {"s": 1.0, "min": 60.0, "h": 3600.0}
        parts = re.findall(r"([\d.e-]+) (s|min|h)", plain)
        return sum(float(size) * units[unit] for size, unit in parts), 60.0 if "h" in plain else 0.51
    scale = 0.01 if plain.endswith("%") else 1.0
    digits = plain.removesuffix(" %")
    mantissa, _, power = digits.partition("e")
    places = len(mantissa.partition(".")[2])
    whole = len(mantissa.strip("-").replace(".", "").lstrip("0")) - places
    slack = 0.51 * 10.0 ** (int(power or 0) - places)
    if not places and whole > 2 and kind not in ("count", "step"):
        slack *= 10.0 ** (whole - 2)
    return float(digits) * scale, np.inf if bound else slack * scale


def at(told, pointer: str):
    for part in pointer.strip("/").split("/"):
        told = told[int(part)] if isinstance(told, list) else told[part]
    return told


def numbers_of(page) -> Iterator[tuple[str, str, str]]:
    """Path, kind and printed text of every number: of its own element, or by its place in a table."""
    for element in page.walk():
        if "data-key" in element.attributes:
            yield element.attributes["data-key"], element.attributes["data-kind"], element.words
    for table in page.find("table"):
        base = table.attributes.get("data-base")
        columns = [tuple(column.split(":")) for column in (table.attributes.get("data-columns") or "").split()]
        for position, row in enumerate(table.find("tbody")[0].find("tr") if base else []):
            cells = [cell for cell in row.children if cell.tag in ("th", "td")]
            for (key, kind), cell in zip(columns, cells, strict=True):
                if kind:
                    yield f"{base}/{position}/{key}", kind, cell.words


def test_every_number_on_the_page_is_the_one_at_its_path_in_the_json(report):
    numbers = list(numbers_of(report.page))
    assert len(numbers) > 300
    for path, kind, text in numbers:
        exact = at(report.told, path)
        read, slack = number_of(text, kind)
        if exact is None:
            assert np.isnan(read), (path, text)
        else:
            assert abs(read - exact) <= slack, (path, text)


def test_no_number_stands_in_a_table_without_a_path(report):
    text_columns = {"nonlinearity", "layer", "type", "state", "parameter", "check", "quantity", "unit", "source", ""}
    for table in report.page.find("table", class_="numbers"):
        heads = [cell.words for cell in table.find("thead")[0].find("th")]
        columns = [column.partition(":")[2] for column in (table.attributes.get("data-columns") or "").split()]
        for row in table.find("tbody")[0].find("tr"):
            cells = [c for c in row.children if c.tag in ("th", "td")]
            for head, kind, cell in zip(heads, columns or [""] * len(heads), cells, strict=True):
                inside = any("data-key" in element.attributes for element in cell.walk())
                assert head in text_columns or kind or inside or cell.words in ("", "never"), (head, cell.words)


def test_the_json_twin_is_versioned_and_holds_the_findings(several, runs):
    assert several.told["format"] == "covshift-report"
    assert several.told["version"] == 3
    for run, (name, recording) in zip(several.told["runs"], runs.items(), strict=True):
        assert run["name"] == name
        assert run["findings"] == diagnose(recording).to_dict()["findings"]


def test_numbers_by_layer_are_those_of_the_analysis(several, runs):
    from covshift.analysis import comparison, gradient_health

    paired = comparison.paired_layers(runs)
    for run in several.told["runs"]:
        for row in run["layers"]:
            for measure in paired.data_vars:
                exact = float(paired[measure].sel(run=run["name"], layer=row["layer"]))
                assert row[measure] == (None if np.isnan(exact) else exact)
    profile = gradient_health.norm_profile(runs["linked"])
    assert several.told["runs"][1]["depth"]["slope"] == float(profile["slope"][-1])
    assert several.told["runs"][1]["depth"]["fitted"]["step"] == several.told["runs"][1]["depth"]["step"]


@pytest.fixture(scope="module")
def starved(make_recording):
    """Gradients of eight layers that shrink over depth until, halfway, all but the last get none."""
    rng, names = np.random.default_rng(0), [f"fc{at}" for at in range(8)]
    steps = {}
    for step in range(10):
        kept = [10.0 ** (at - 8) * (step < 5 or at == 7) for at in range(8)]
        steps[step] = {
            name: {"activation": rng.normal(size=(8, 4)), "activation_grad": kept[at] * rng.normal(size=(8, 4))}
            for at, name in enumerate(names)
        }
    return make_recording(steps, layers=[Layer(name, "Linear", at, 1, 0, 4) for at, name in enumerate(names)])


def test_a_slope_of_an_earlier_record_stands_with_its_step_and_never_for_the_last_one(written, starved, runs, tmp_path):
    from covshift.analysis import gradient_health

    report = written(tmp_path, {"starved": starved, "linked": runs["linked"]})
    told, compared = report.told["runs"][0]["depth"], report.told["comparison"]["rows"]
    profile = gradient_health.norm_profile(starved)
    assert (told["step"], told["vanished"], told["layers"], told["slope"]) == (9, 7, 8, None)
    assert told["fitted"]["step"] == 4
    assert told["fitted"]["slope"] == float(profile["slope"][4])
    words = report.page.find("details", id="runs-0-gradient")[0].words
    assert "of 8 of one kind at step 9" in words
    assert words.count("the last that could be fitted, at step 4") == 2
    rows = {row["name"]: row["values"][0] for row in compared if "gradient slope" in row["name"]}
    rows |= {row["name"]: row["values"][0] for row in compared if "all-zero gradient at" in row["name"]}
    assert list(rows.values()) == [None, 7.0]


def test_the_figure_of_units_says_of_which_examples_it_counts_and_agrees_with_the_table_on_those(single):
    told = single.told["runs"][0]["units"]
    assert told["stream"] == "evaluation"
    section = single.page.find("details", id="runs-0-units")[0].words
    said = [
        figure.attributes["aria-label"]
        for figure in single.page.find("svg")
        if "Evaluation pass" in (figure.attributes.get("aria-label") or "")
    ]
    assert len(said) == 1
    assert said[0].startswith("Training batches: ")
    assert f"Evaluation pass: {told['dead']} of {told['units']} dead at step 50" in said[0]
    assert "Counted over the last evaluation pass" in section


def test_each_layers_course_is_what_was_recorded_at_the_first_middle_and_last_step(single, runs):
    stored = runs["plain"]["layers"].to_dataset()
    updates = runs["plain"]["parameters"].to_dataset()
    course = single.told["runs"][0]["course"]
    layers = stored["layer"].values.astype(str).tolist()
    assert [(row["layer"], row["step"]) for row in course] == [(name, at) for name in layers for at in (0, 20, 50)]
    for row in course:
        here = stored.sel(step=row["step"]).isel(layer=layers.index(row["layer"]))
        output, gradient = (here.sel(signal=signal) for signal in ("activation", "activation_grad"))
        n, mean = float(output["count"]), float(output["sum"]) / float(output["count"])
        assert row["mean"] == pytest.approx(mean)
        assert row["sd"] == pytest.approx(float(output["m2"] / n) ** 0.5)
        assert row["zero_rate"] == float(output["zero_count"]) / n
        assert row["gradient_zero_rate"] == float(gradient["zero_count"] / gradient["count"])
        square = float(gradient["m2"] / gradient["count"]) + float(gradient["sum"] / gradient["count"]) ** 2
        assert row["gradient_rms"] == pytest.approx(square**0.5)
        if row["layer"].startswith("conv"):
            weight = updates.sel(step=row["step"], parameter=f"{row['layer']}.weight")
            assert row["update_ratio"] == pytest.approx(float(weight["update_norm"] / weight["weight_norm"]))
        else:
            assert row["update_ratio"] is None
