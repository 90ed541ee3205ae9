"""The report says what the recordings say, in one file that needs nothing else, whatever the names are."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from covshift.diagnosis import diagnose
from covshift.diagnosis.wording import percent, quoted
from covshift.exceptions import RecordingDamaged
from covshift.plots.labels import amount
from covshift.reporting import embedding, vendored, write_report
from covshift.reporting import report as reporting
from covshift.schema import Layer

VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}
"""Elements that have no end tag; those of SVG end themselves."""


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            e
            for e in self.walk()
            if e.tag == tag
            and all(value in (e.attributes.get(name) or "").split(" ") for name, value in wanted.items())
        ]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class Page(HTMLParser):
    """The page as a tree; it fails where a tag is not closed as it was opened."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root], f"not closed: {[element.tag for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag == self.open[-1].tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.text += data


@dataclass(frozen=True)
class Report:
    html: str
    told: dict
    page: Element


def written(folder: Path, recordings, **options) -> Report:
    """A report without overview figures, unless they are asked for: drawing them is most of the work."""
    options.setdefault("figures_at_most", 0)
    path = write_report(recordings, folder / "report.html", json=folder / "report.json", **options)
    html = path.read_text(encoding="utf-8")
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return Report(html, told, Page(html).root)


@pytest.fixture(scope="module")
def runs(make_run):
    return {
        "plain": make_run(pairs=8, dying=True, name="plain"),
        "linked": make_run(pairs=8, linked=True, name="linked", seed=1),
    }


@pytest.fixture(scope="module")
def single(runs, tmp_path_factory):
    return written(tmp_path_factory.mktemp("single"), runs["plain"], figures_at_most=15)


@pytest.fixture(scope="module")
def several(runs, tmp_path_factory):
    return written(tmp_path_factory.mktemp("several"), runs, figures_at_most=6)


@pytest.fixture(params=["single", "several"])
def report(request):
    return request.getfixturevalue(request.param)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    '#1d2429 url(#x) id="y"',
    "{{ 7 * 7 }}",
    "$x^",
    "&amp;",
]


@pytest.fixture(scope="module")
def hostile(make_run, tmp_path_factory):
    attrs = {
        "variant": "<b>bold</b>",
        "<i>accuracy": 0.5,
        "note": "</style><script>alert(3)</script>",
    }
    run = make_run(pairs=3, steps=(0, 10), names=HOSTILE, dying=True, name="<u>run</u>", attrs=attrs)
    run["scalars"] = run["scalars"].to_dataset().rename(loss="<svg onload=alert(4)>loss")
    other = make_run(pairs=3, steps=(0, 10), names=HOSTILE, name="'--><script>")
    folder = tmp_path_factory.mktemp("hostile")
    return written(folder, [run, other], title="<script>title</script>", figures_at_most=7)


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


def numbers_of(page: Element) -> Iterator[tuple[str, str, str]]:
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


def test_the_page_needs_nothing_from_outside(report):
    scripts = report.page.find("script")
    markup = re.sub(r"<script.*?</script>|base64,[^\"]*", "", report.html, flags=re.DOTALL)
    assert "http:" not in markup
    assert "https:" not in markup
    # the only address in a script is the library's own, in its banner
    assert set(re.findall(r"https?:[^\s)*]*", " ".join(s.text for s in scripts))) == {
        "https://github.com/leeoniya/uPlot"
    }
    assert not any("src" in script.attributes for script in scripts)
    assert not report.page.find("link")
    for element in report.page.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,")), (element.tag, name, value[:40])


def test_only_the_scripts_of_the_page_itself_may_run(report):
    policies = [e.attributes for e in report.page.find("meta") if e.attributes.get("http-equiv")]
    (policy,) = [meta["content"] for meta in policies if meta["http-equiv"] == "Content-Security-Policy"]
    allowed = re.search(r"script-src ([^;]*)", policy)[1].split()
    run = [script.text for script in report.page.find("script") if "type" not in script.attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert allowed == [f"'sha256-{digest}'" for digest in hashes]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_what_is_vendored_is_what_was_released_and_keeps_its_licence(report):
    told = vendored.manifest()
    folder = resources.files("covshift.reporting.vendored")
    for name, digest in told["sha256"].items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest
    assert len(vendored.script()) + len(vendored.style_sheet()) < 400_000
    assert "MIT License" in report.page.find("script")[-2].text
    assert f"(v{told['version']})" in report.page.find("script")[-2].text


def test_references_within_the_page_lead_somewhere_and_identifiers_are_unique(report):
    identifiers = [e.attributes["id"] for e in report.page.walk() if e.attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    values = [v for e in report.page.walk() for v in e.attributes.values() if v and not v.startswith("data:")]
    used = {r for v in values for r in re.findall(r"^#(.+)|url\(#([^)]+)\)", v) for r in r if r}
    assert used <= set(identifiers)


def test_every_colour_variable_has_a_value_on_light_and_dark_pages(report):
    sheet = report.page.find("style")[0].text
    used = set(re.findall(r"var\(--([\w-]+)\)", report.html))
    light, dark = (set(re.findall(r"--([\w-]+):", block)) for block in re.findall(r":root \{([^}]*)\}", sheet)[:2])
    assert used <= light == dark


def test_the_sentence_and_the_verdict_come_first(single, runs):
    diagnosis = diagnose(runs["plain"])
    sentence = single.page.find("p", class_="sentence")[0]
    assert sentence.words == f"bad{diagnosis.sentence}"
    assert single.html.index('class="sentence"') < single.html.index("<figure")
    assert single.told["runs"][0]["verdict"] == diagnosis.worst == "bad"


def test_the_grid_shows_every_verdict_as_word_and_mark(single, runs):
    grid = diagnose(runs["plain"]).grid()
    (table,) = single.page.find("table", class_="grid")
    heads = [cell.words for cell in table.find("thead")[0].find("th")]
    shown = {}
    for row in table.find("tbody")[0].find("tr"):
        for head, cell in zip(heads[2:], row.find("td")[1:], strict=True):
            shown[row.find("th")[0].words, head] = cell.words
            assert cell.attributes.get("class", "") == (f"v-{cell.words.replace(' ', '-')}" if cell.words else "")
    for word in single.page.find("p", class_="whole-run")[0].find("span")[1:]:
        verdict = word.attributes["class"][2:].replace("-", " ")
        assert word.words.endswith(verdict)
        shown["whole run", word.words.removesuffix(f" {verdict}")] = verdict
    for layer in grid["layer"].values:
        for check in grid["check"].values:
            assert shown.get((layer, check), "") == str(grid.sel(layer=layer, check=check).values)


def test_the_first_column_after_the_layer_is_its_worst_verdict(single):
    order = ["bad", "watch", "ok", "not measured"]
    for row in single.page.find("table", class_="grid")[0].find("tbody")[0].find("tr"):
        worst, *words = [cell.words for cell in row.find("td")]
        assert worst == min((word for word in words if word), key=order.index)


def test_every_finding_that_is_not_ok_is_told_with_its_reason_and_every_cause_with_its_advice(single, runs):
    text = " ".join(single.page.text.split())
    told = [finding for finding in diagnose(runs["plain"]).findings if finding.verdict != "ok"]
    assert told
    for finding in told:
        bare = finding.reason.removeprefix(f"{quoted(finding.layer)}: ")
        assert " ".join(bare.split()) in text
    for cause in diagnose(runs["plain"]).causes:
        assert " ".join(cause.advice.split()) in text


def test_causes_come_first_and_say_what_they_explain(single, runs):
    findings = single.told["runs"][0]["findings"]
    groups = single.told["runs"][0]["groups"]
    verdicts = [group["verdict"] for group in groups]
    assert verdicts == sorted(verdicts, key=["bad", "watch", "not measured"].index)
    assert verdicts[0] == "bad"
    explained = [position for group in groups for position in group["explains"]]
    leads = [position for group in groups for position in (group["lead"], *group["others"])]
    assert sorted([*explained, *leads]) == [n for n, finding in enumerate(findings) if finding["verdict"] != "ok"]
    assert all(findings[position]["explained_by"] for position in explained)
    assert not any(findings[position]["explained_by"] for position in leads)
    assert explained
    first = single.page.find("li", class_="finding")[0]
    assert (
        f"Consequences: {groups[0]['consequences'][0]['check']} ({groups[0]['consequences'][0]['count']})"
        in first.words
    )


def test_a_layer_named_in_the_findings_or_the_grid_leads_to_its_section(single):
    layers = [row["layer"] for row in single.told["runs"][0]["layers"]]
    links = [e for e in single.page.find("a") if e.attributes["href"].startswith("#r0-l")]
    assert len(links) > len(layers)
    for link in links:
        number = int(link.attributes["href"].removeprefix("#r0-l"))
        assert link.words.removesuffix(".weight") == layers[number] or link.attributes["href"] == "#layer"
    rows = [e.attributes["id"] for e in single.page.find("tr") if "id" in e.attributes]
    assert set(rows) == {f"r0-l{number}" for number in range(len(layers))}


def test_a_layer_or_parameter_named_in_the_sentence_or_a_reason_leads_to_its_section(single):
    run = single.told["runs"][0]
    numbers = {row["layer"]: number for number, row in enumerate(run["layers"])}
    sentence = single.page.find("p", class_="sentence")[0]
    quoted_there = re.findall(r"'([^']*)'", run["sentence"])
    assert quoted_there
    assert [(a.words, a.attributes["href"]) for a in sentence.find("a")] == [
        (name, f"#r0-l{numbers[name]}") for name in quoted_there
    ]
    parameters = [a for a in single.page.find("a") if a.words.endswith(".weight")]
    assert parameters
    for link in parameters:
        assert link.attributes["href"] == f"#r0-l{numbers[link.words.removesuffix('.weight')]}"


def test_names_may_break_at_their_dots_and_numbers_nowhere(make_run, tmp_path):
    names = ["block.0.conv_a", "block.0.act"]
    made = written(
        tmp_path, make_run(pairs=1, names=names, dying=True, attrs={"note": "-0.13 to 0.032, 1e-5.5 of 31 %"})
    )
    assert re.search(r"block\.<wbr>0\.<wbr>conv_<wbr>a", made.html)
    assert "-0.13 to 0.032, 1e-5.5 of 31&nbsp;%" in made.html
    assert not re.search(r"\d\.<wbr>\d", made.html)


def test_a_recording_of_nothing_but_nan_has_a_report_without_a_warning(make_recording, tmp_path):
    lost = {name: np.full((16, 4), np.nan, dtype=np.float32) for name in ("activation", "activation_grad")}
    run = make_recording({step: {"a": lost, "b": lost} for step in (0, 10, 20)})
    made = written(tmp_path, run, figures_at_most=15)
    assert "NaN" in made.page.text


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


def test_of_many_kinds_of_findings_the_three_worst_stand_open(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("covshift.reporting.content._groups", lambda findings: [_lone(findings, n) for n in range(5)])
    page = written(tmp_path, make_run(pairs=1, steps=(0, 10), dying=True)).page
    (folded,) = page.find("details", class_="folded")
    assert len(page.find("li", class_="finding")) == 5
    assert len(folded.find("li", class_="finding")) == 2


def _lone(findings, position):
    check = {"check": f"check {position}", "verdict": "watch", "lead": position, "count": 1}
    return check | {"others": [], "explains": [], "consequences": []}


def test_the_header_says_whether_the_loss_fell_and_up_to_which_step_it_was_a_number(single, runs):
    (loss,) = single.told["runs"][0]["facts"]["losses"]
    logged = runs["plain"]["scalars/loss"]
    first, *_, last = [
        (int(step), float(value)) for step, value in zip(logged.step, logged, strict=True) if value == value
    ]
    assert last[0] < logged.step.values[-1]
    assert (loss["first_step"], loss["first"], loss["last_step"], loss["last"]) == pytest.approx((*first, *last))
    told = single.page.find("ul", class_="facts")[0].words
    assert f"loss {amount(first[1])} at step {first[0]}, {amount(last[1])} at step {last[0]}" in told


def test_the_header_says_what_was_recorded(single):
    facts = single.page.find("ul", class_="facts")[0].words
    for fact in ("variant plain", "seed 0", "16 layers", "6 records, steps 0 to 50", "torch 2.13.0, cpu", "5.0 s from"):
        assert fact in facts


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


def test_headings_descend_without_gaps(report):
    levels = [int(e.tag[1]) for e in report.page.walk() if re.fullmatch(r"h\d", e.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_figure_says_in_words_what_it_shows(report):
    figures = report.page.find("figure")
    assert len(figures) >= 5
    for figure in figures:
        (canvas,) = [svg for svg in figure.find("svg") if svg.attributes.get("role") == "img"]
        caption = figure.find("figcaption")[0].words
        assert len(caption) > 40
        assert not re.search(r"\b(dark|light)(er)?\b", caption), "a dark page turns heat maps round"
        assert caption in " ".join(canvas.attributes["aria-label"].split())


def test_methods_print_every_threshold_with_its_source(report):
    text = " ".join(report.page.find("section", id="methods")[0].text.split())
    for threshold in report.told["methods"]["thresholds"]:
        assert " ".join(threshold["quantity"].split()) in text
        assert " ".join(threshold["source"].split()) in text


def test_hostile_names_are_shown_and_never_obeyed(hostile, single):
    scripts = hostile.page.find("script")
    own = [script for script in scripts if "type" not in script.attributes]
    assert [script.text for script in own] == [s.text for s in single.page.find("script") if "type" not in s.attributes]
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]*", s.text) for s in scripts if "type" in s.attributes)
    assert not hostile.page.find("img")
    assert not any(name.startswith("on") for e in hostile.page.walk() for name in e.attributes)
    (style,) = hostile.page.find("style")
    assert "alert" not in style.text
    text = hostile.page.text
    for name in [
        *HOSTILE,
        "<u>run</u>",
        "'--><script>",
        "<b>bold</b>",
        "<i>accuracy",
        "</style><script>alert(3)</script>",
    ]:
        assert name in text
    assert "49" not in {cell.words for cell in hostile.page.find("th")}


def test_hostile_names_stand_unchanged_in_the_figures(hostile):
    drawn = {text.words for text in hostile.page.find("text")}
    assert {name for name in HOSTILE if len(name) <= 24} <= drawn


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


def test_a_slope_of_an_earlier_record_stands_with_its_step_and_never_for_the_last_one(starved, runs, tmp_path):
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


def test_the_course_of_a_hundred_layers_takes_less_than_150_kilobytes(make_run, tmp_path):
    html = written(tmp_path, make_run(pairs=50, steps=(0, 10, 20))).html
    start = html.index('data-base="/runs/0/course"')
    table = html[start : html.index("</table>", start)]
    assert table.count("<tr>") == 301
    assert len(table) < 100_000


def test_a_page_of_very_many_layers_leaves_their_courses_to_the_json_twin(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("covshift.reporting.page.MOST_COURSES", 3)
    report = written(tmp_path, make_run(pairs=2, steps=(0, 10)))
    assert "course" not in report.html
    assert len(report.told["runs"][0]["course"]) == 8


def test_differences_of_groups_are_drawn_in_the_comparison_part(several):
    part = several.page.find("section", id="comparison")[0]
    captions = [caption.words for caption in part.find("figcaption")]
    assert len(captions) == 2
    assert "Where either group is a single run there is no interval" in captions[1]
    assert "linked minus plain (one seed each: an illustration)" in part.find("figure")[1].find("svg")[0].text


def test_the_range_over_seeds_is_left_out_where_it_reads_as_one_number(make_run, tmp_path):
    same = make_run(pairs=1, steps=(0, 10))
    report = written(
        tmp_path,
        {f"plain seed {seed}": same for seed in range(2)}
        | {"linked seed 0": make_run(pairs=1, steps=(0, 10), linked=True)},
    )
    table = report.page.find("table", class_="side-by-side")[0]
    ranges = [note.words.split(" to ") for note in table.find("span", class_="note") if " to " in note.words]
    assert all(low != high for low, high in ranges)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 1e-3])
def test_equal_numbers_of_all_seeds_read_as_no_difference(rate):
    from covshift.reporting.side_by_side import _effect

    assert _effect([rate] * 3, [rate] * 3) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    moved = _effect([rate] * 3, [2 * rate] * 3)
    assert moved["low"] == moved["high"] == moved["difference"] == rate


def test_a_page_of_equal_groups_says_no_difference_where_it_printed_rounding(make_run, tmp_path):
    runs = {f"{group} seed {seed}": make_run(pairs=1, steps=(0, 10)) for group in ("a", "b") for seed in range(3)}
    for name, run in runs.items():
        run.attrs["variant"] = name[0]
    table = written(tmp_path, runs).page.find("table", class_="side-by-side")[0].words
    assert "no difference" in table
    assert "difference 0" not in table


def test_numbers_of_seeds_stand_with_their_difference_and_welchs_interval(make_run, tmp_path):
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


def test_given_diagnoses_are_used(make_run, tmp_path):
    run = make_run(pairs=1, steps=(0, 10), name="a")
    other = diagnose(make_run(pairs=1, steps=(0, 10), dying=True))
    told = written(tmp_path, run, diagnoses={"a": other}).told
    assert told["runs"][0]["sentence"] == other.sentence


def test_a_recording_without_records_gets_a_page_that_says_so(make_run, tmp_path):
    report = written(tmp_path, make_run(steps=(), name="empty"))
    assert "Nothing was recorded: the recording holds 0 records of 6 layers" in report.page.text
    assert report.told["runs"][0]["verdict"] == "not measured"


@pytest.mark.parametrize("given", ["tree", "error"])
def test_a_damaged_recording_gets_a_page_that_says_so_beside_the_whole_one(make_run, tmp_path, given):
    whole = make_run(pairs=1, steps=(0, 10))
    damaged = xr.DataTree.from_dict({"layers": whole["layers"].to_dataset().drop_vars("count")})
    damaged.attrs = whole.attrs
    error = RecordingDamaged("recording 'x' is damaged: group 'layers' has no variable 'count'")
    report = written(tmp_path, {"good": whole, "bad": damaged if given == "tree" else error})
    assert [run["recorded"] for run in report.told["runs"]] == [True, False]
    assert re.search(r"Cannot be read: .*no variable 'count'", report.told["runs"][1]["sentence"])
    assert "no variable 'count'" in report.page.text


def test_a_chunk_that_cannot_be_read_is_damage_not_a_crash(make_run, tmp_path):
    whole = make_run(pairs=1, steps=(0, 10))
    torn = whole.copy()
    layers = torn["layers"].to_dataset()
    lazy = layers["m2"].chunk()
    failing = lazy.data.map_blocks(_fail, dtype=lazy.dtype, meta=np.zeros((0, 0, 0)))
    torn["layers"] = layers.assign(m2=(layers["m2"].dims, failing, layers["m2"].attrs))
    report = written(tmp_path, torn)
    assert "Cannot be read: layers/m2: checksum does not match" in report.told["runs"][0]["sentence"]


def _fail(block):
    raise RuntimeError("checksum does not match")


def test_an_empty_run_stands_beside_a_recorded_one(make_run, tmp_path):
    report = written(tmp_path, {"empty": make_run(steps=()), "full": make_run(pairs=1, steps=(0, 10))})
    assert [run["recorded"] for run in report.told["runs"]] == [False, True]
    assert report.told["comparison"] is None
    assert "Nothing was recorded" in report.page.text


@pytest.mark.parametrize("group", ["histograms", "units", "parameters", "scalars", "evaluation"])
def test_a_recording_without_one_group_still_has_a_report(make_run, tmp_path, group):
    run = make_run(pairs=1, steps=(0, 10))
    without = xr.DataTree.from_dict({path: run[path].to_dataset() for path in run.groups if f"/{group}" not in path})
    without.attrs = run.attrs
    report = written(tmp_path, without)
    assert ("not measured" in report.page.text) or group in ("scalars", "evaluation")


def test_a_page_of_many_layers_stays_small(make_run, tmp_path):
    report = written(tmp_path, make_run(pairs=32, steps=(0, 10)))
    assert len(report.html) < 600_000
    rows = report.page.find("table", class_="grid")[0].find("tbody")[0].find("tr")
    assert len(rows) == len(report.told["runs"][0]["grid"]["layer"]) - 1


def test_runs_are_named_by_their_attribute_and_told_apart(make_run, tmp_path):
    told = written(tmp_path, [make_run(steps=(), name=name) for name in ("a", "a", "")]).told
    assert [run["name"] for run in told["runs"]] == ["a", "a (2)", "run 3"]


def drawn_steps(html):
    """Most records drawn of any run, on any axis of its charts."""
    block = re.search(r'id="layer-data">\s*([^<]*?)\s*</script>', html)
    assert block is not None
    return max(len(steps) for run in embedding.unpacked(block[1])["runs"] for steps in run["steps"].values())


def test_a_page_beyond_its_size_draws_fewer_records_until_it_fits(make_run, tmp_path, monkeypatch):
    runs = {name: make_run(steps=tuple(range(0, 240, 10)), name=name) for name in ("one", "two")}
    whole = written(tmp_path, runs).html
    assert drawn_steps(whole) == 24
    most = len(whole.encode()) - 4000
    monkeypatch.setattr(reporting, "MOST_BYTES", most)
    fitting = written(tmp_path, runs, overwrite=True).html
    assert len(fitting.encode()) <= most
    assert 2 <= drawn_steps(fitting) < 24
    monkeypatch.setattr(reporting, "MOST_BYTES", 1000)
    assert drawn_steps(written(tmp_path, runs, overwrite=True).html) == 2
