"""The page as people use it: every control, by mouse and by keyboard, wide and narrow, light, dark and on paper."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from covshift.analysis import distributions, gradient_health, linkage, rows, shift
from covshift.diagnosis import diagnose
from covshift.exceptions import RecordingDamaged
from covshift.reporting import write_report

NAMES = [
    "conv0",
    "act0",
    "<script>alert(1)</script>",
    "</script><script>window.taken = 1</script>",
    "quotes \"double\" and 'single'",
    "act2",
    "block.3.conv",
    "block.3.act",
]
STEPS = (0, 10, 20, 30, 40, 50)


@pytest.fixture(scope="module")
def run(make_run) -> xr.DataTree:
    return make_run(pairs=4, names=NAMES, steps=STEPS, dying=True, name="sick")


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    return write_report(run, tmp_path_factory.mktemp("single") / "report.html", figures_at_most=2)


@pytest.fixture(scope="module")
def several(make_run, tmp_path_factory) -> Path:
    runs = [
        make_run(pairs=3, linked=kind == "linked", dying=kind == "plain", name=f"{kind} seed {seed}", seed=seed)
        for seed in (0, 1)
        for kind in ("plain", "linked")
    ]
    return write_report(runs, tmp_path_factory.mktemp("several") / "report.html", figures_at_most=1)


@pytest.fixture(autouse=True)
def quiet(request) -> Iterator[None]:
    """Whatever a test does: the console stays empty, and nothing is asked for but the page itself."""
    browser = request.getfixturevalue("browser")
    browser.media()
    yield
    assert browser.problems() == []
    assert all(url.startswith(("file://", "data:", "about:", "blob:")) for url in browser.requests())
    browser.command("Emulation.setScriptExecutionDisabled", value=False)


def opened(browser, layer: str) -> None:
    browser.until("return document.querySelector('#layer-name').textContent === arguments[0]", layer)
    browser.until("return document.querySelectorAll('#layer-charts figure canvas').length > 0")


def chart(browser, key: str) -> tuple[list[str], np.ndarray]:
    """Labels and numbers of a chart as the browser holds them, x first; NaN where it holds nothing."""
    labels, data = browser.js(
        "const plot = document.querySelector('#chart-' + arguments[0]).plot;"
        "return [plot.series.map((s) => s.label), plot.data.map((part) => [...part])]",
        key,
    )
    return labels, np.array(data, dtype=float)


def close(read: np.ndarray, exact: np.ndarray) -> None:
    """Equal to three digits."""
    np.testing.assert_allclose(read, exact, rtol=5.1e-3, atol=1e-12)


def layer_of(run: xr.DataTree, values: xr.DataArray, name: str) -> np.ndarray:
    return values.sel(layer=name).values


class TestLayerSections:
    def test_a_click_on_a_layers_name_opens_its_section_and_moves_the_focus_there(self, browser, page):
        browser.visit(page)
        assert not browser.texts("#layer")
        browser.click(".grid tbody tr:nth-child(2) a")
        opened(browser, "act0")
        assert browser.js("return document.activeElement.id") == "layer-heading"
        assert browser.js("return document.querySelector('#layer').getBoundingClientRect().top") < 200

    def test_its_charts_hold_the_numbers_of_the_analysis(self, browser, page, run):
        browser.visit(page, fragment="#r0-l1")
        opened(browser, "act0")
        steps = np.array(STEPS, dtype=float)

        split = linkage.violation_rate(run)
        labels, data = chart(browser, "zeros")
        assert labels == ["step", "all zeros of dL/dz", "structural", "other"]
        parts = ("gradient_zero_rate", "structural_rate", "other_rate")
        close(data, np.stack([steps, *(layer_of(run, split[part], "act0") for part in parts)]))

        moved = shift.between_steps(run)
        labels, data = chart(browser, "shift")
        assert labels[1:] == ["W1", "noise floor"]
        exact = [layer_of(run, moved[part], "act0") for part in ("w1", "noise_floor")]
        resolved = ~layer_of(run, moved["off_centre"], "act0")
        close(data[1:], np.where(resolved, exact, np.nan))

        z = rows.moments(run, signal="preactivation")
        mean, sd = (layer_of(run, z[part], "act0") for part in ("mean", "sd"))
        close(chart(browser, "track")[1], np.stack([steps, mean + sd, mean, mean - sd]))

        river = distributions.river(run, layer="act0", signal="preactivation", cells=64)
        labels, data = chart(browser, "river")
        assert labels[1:] == ["1%", "25%", "50%", "75%", "99%"]
        close(data, np.vstack([steps, river["quantile"].values.T]))
        x, *ridges = chart(browser, "ridges")[1]
        np.testing.assert_allclose(x, (river["lower"] + river["upper"]) / 2, rtol=1e-6, atol=1e-9)
        for read, at in zip(ridges, (0, 3, 5), strict=True):
            counts = river["count"].values[at]
            np.testing.assert_allclose(read, counts / counts.sum(), atol=6e-5)

    def test_the_derivative_is_drawn_beside_the_track_and_each_swatch_is_like_its_line(self, browser, page):
        inked = (
            "const plot = document.querySelector('#chart-track').plot;"
            "const { left, width, top, height } = plot.bbox;"
            "const pixels = plot.ctx.getImageData(left + width + 2, top, plot.ctx.canvas.width, height).data;"
            "return pixels.filter((value, at) => at % 4 === 3 && value > 200).length"
        )
        browser.visit(page, fragment="#r0-l1")
        opened(browser, "act0")
        assert browser.js(inked) > 150
        swatches = browser.js(
            "const marks = [...document.querySelectorAll('#chart-river .u-legend .u-marker')].slice(1);"
            "return marks.map((mark) => getComputedStyle(mark).borderTop)"
        )
        assert swatches == swatches[::-1]
        assert len(swatches) == 5
        assert len(set(swatches)) == 3
        browser.visit(page, fragment="#r0-l0")
        opened(browser, "conv0")
        assert browser.js(inked) == 0

    def test_gradients_and_updates_are_those_of_the_analysis_and_zeros_are_not_drawn(self, browser, page, run):
        browser.visit(page, fragment="#r0-l6")
        opened(browser, "block.3.conv")
        rms = layer_of(run, rows.moments(run, signal="activation_grad")["rms"], "block.3.conv")
        sd = layer_of(run, rows.moments(run)["sd"], "block.3.conv")
        _, data = chart(browser, "sizes")
        close(data[1:], np.stack([np.where(rms > 0, rms, np.nan), sd]))
        labels, data = chart(browser, "updates")
        assert labels == ["step", "weight"]
        close(data[1], gradient_health.update_ratio(run).sel(parameter="block.3.conv.weight").values)

    def test_previous_next_and_the_list_walk_through_the_layers(self, browser, page):
        browser.visit(page, fragment="#r0-l0")
        opened(browser, "conv0")
        assert browser.texts("#layer-places a, .layer-places a") == ["next"]
        browser.click("#layer-next")
        opened(browser, "act0")
        browser.js(
            "const list = document.querySelector('#layer-of'); list.value = 7; list.dispatchEvent(new Event('change'))"
        )
        opened(browser, "block.3.act")
        assert browser.texts(".layer-places a") == ["previous"]
        browser.driver.back()
        opened(browser, "act0")

    @pytest.mark.parametrize("number", range(len(NAMES)))
    def test_names_are_shown_as_they_are_and_never_obeyed(self, browser, page, number):
        browser.visit(page, fragment=f"#r0-l{number}")
        opened(browser, NAMES[number])
        assert browser.js("return window.taken") is None
        assert browser.js("return document.querySelectorAll('script').length") == 3
        assert NAMES[number] in browser.texts("#layer-heading")[0]

    def test_findings_of_the_layer_stand_above_its_charts(self, browser, page, run):
        browser.visit(page, fragment="#r0-l1")
        opened(browser, "act0")
        told = browser.texts("#layer-findings li")
        assert any("units" in text and "dead" in text for text in told)

    def test_every_chart_says_what_it_shows(self, browser, page):
        browser.visit(page, fragment="#r0-l1")
        opened(browser, "act0")
        labels = browser.js("return [...document.querySelectorAll('#layer-charts [role=img]')].map((e) => e.ariaLabel)")
        assert len(labels) == 7
        assert all(label.startswith("act0: ") and len(label) > 30 for label in labels)

    def test_a_browser_that_cannot_unpack_says_so(self, browser, page):
        script = browser.command("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
        browser.visit(page, fragment="#r0-l1")
        assert "cannot unpack" in browser.texts("#layer-state")[0]
        browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


class TestFilterAndSort:
    def shown(self, browser) -> list[str]:
        return browser.texts(".grid tbody th")

    def shows(self, browser, layers: list[str]) -> None:
        """A filter is heeded when the browser comes to it, after the event."""
        browser.until(
            "const layers = [...document.querySelectorAll('.grid tbody th')].filter((e) => e.checkVisibility());"
            "const names = layers.map((e) => e.innerText.trim());"
            "return names.length === arguments[0].length && names.every((name, n) => name === arguments[0][n])",
            layers,
        )

    def test_layers_are_filtered_by_name_check_and_verdict(self, browser, page):
        browser.visit(page)
        everything = self.shown(browser)
        assert len(everything) == len(NAMES)
        browser.click(".filter input")
        browser.keys("BLOCK")
        self.shows(browser, ["block.3.conv", "block.3.act"])
        assert browser.texts(".filter output") == ["2 layers"]
        browser.click(".filter button")
        self.shows(browser, everything)
        self.choose(browser, "check", "gradient arrives")
        self.choose(browser, "verdict", "bad")
        cells = browser.texts(".grid tbody tr")
        assert 0 < len(cells) < len(everything)
        told = browser.texts(".finding .told")
        assert told
        assert browser.js(
            "const word = 'gradient arrives';"
            "return [...document.querySelectorAll('.told')].every((e) => e.hidden || e.textContent.includes(word))"
        )

    def choose(self, browser, name: str, value: str) -> None:
        browser.js(
            "const list = document.querySelector(`.filter [name=${arguments[0]}]`); list.value = arguments[1];"
            "list.dispatchEvent(new Event('input', { bubbles: true }))",
            name,
            value,
        )

    def test_a_heading_sorts_up_then_down_then_as_it_was(self, browser, page):
        browser.visit(page)
        before = self.shown(browser)
        worst = "return [...document.querySelectorAll('.grid tbody tr')].map((row) => row.cells[1].textContent)"
        order = ["bad", "watch", "not measured", "ok"]
        button = ".grid thead th:nth-child(2) button"
        browser.click(button)
        assert browser.js(worst) == sorted(browser.js(worst), key=order.index)
        assert browser.js("return document.querySelector('.grid th[aria-sort]').ariaSort") == "ascending"
        browser.click(button)
        assert browser.js(worst) == sorted(browser.js(worst), key=order.index, reverse=True)
        browser.click(button)
        self.shows(browser, before)

    def test_numbers_sort_by_their_size_and_missing_ones_last(self, browser, page):
        browser.visit(page)
        browser.click("#runs-0-layers > summary")
        table = "[data-base='/runs/0/layers']"
        browser.click(f"{table} thead th:nth-child(5) button")
        cells = browser.js(
            f'return [...document.querySelectorAll("{table} tbody tr")].map((row) => row.cells[4].textContent)'
        )
        numbers = [np.inf if cell == "\N{EN DASH}" else float(cell.replace(",", "")) for cell in cells]
        assert numbers == sorted(numbers)
        assert len(set(numbers)) > 2

    def test_layer_names_in_tables_lead_to_their_sections(self, browser, page):
        browser.visit(page)
        browser.click("#runs-0-layers > summary")
        browser.click("#runs-0-layers tbody tr:nth-child(3) a")
        opened(browser, NAMES[2])


def order(browser, table: str, column: int = 0) -> list[str]:
    cells = "[...document.querySelectorAll(`${arguments[0]} tbody tr`)].map((row) => row.cells[arguments[1]])"
    return browser.js(f"return {cells}.map((cell) => cell.title || cell.textContent.trim())", table, column)


NUMBERED = ["2.0", "2.1", "2.10", "2.11", "2.2", "2.a.1", "2", "10"]
LONG = [f"encoder.blocks.{block}.attention.projection.{part}" for block in (0, 1) for part in ("linear", "activation")]


@pytest.fixture(scope="module")
def named(make_run, tmp_path_factory) -> Path:
    names = [*NUMBERED, *LONG]
    run = make_run(pairs=len(names) // 2, names=names, steps=STEPS, dying=True, name="named")
    for group in ("units", "histograms"):
        del run[group]
    return write_report(run, tmp_path_factory.mktemp("named") / "report.html", figures_at_most=0)


class TestNames:
    """Names that read as numbers, and names too long for the grid."""

    def test_they_sort_by_their_segments_each_part_by_its_number(self, browser, named):
        browser.visit(named)
        right = ["2", "2.0", "2.1", "2.2", "2.10", "2.11", "2.a.1", "10", *sorted(LONG)]
        for table in ("#runs-0-grid", "#runs-0-layers-table"):
            for expected in (right, right[::-1]):
                browser.js(f"document.querySelector('{table} thead button').click()")
                assert order(browser, table) == expected

    def test_a_layer_is_found_by_the_name_it_has_not_by_the_part_of_it_that_is_shown(self, browser, named):
        browser.visit(named)
        assert LONG[0] not in browser.texts(".grid tbody th")
        browser.js(FILTER, "layer", "blocks.0.attention.projection.linear")
        assert browser.texts(".filter output") == ["1 layers"]
        assert len(browser.texts(".grid tbody th")) == 1

    def test_findings_that_fit_the_filter_are_seen_also_what_was_not_measured(self, browser, named):
        browser.visit(named)
        assert not browser.js("return document.querySelector('#unknown-0').open")
        browser.js(FILTER, "verdict", "not measured")
        fitting = browser.js("return document.querySelectorAll('.told:not([hidden])').length")
        assert fitting == len(browser.texts(".told")) > 0
        browser.js(FILTER, "verdict", "ok")
        assert not browser.texts(".finding, .folded")


FILTER = """
const field = document.querySelector(`.filter [name=${arguments[0]}]`);
field.value = arguments[1];
field.dispatchEvent(new Event('input', { bubbles: true }));
"""


def test_headings_of_the_grid_stay_on_top_of_what_is_scrolled_under_them(browser, page):
    browser.visit(page)
    covered = browser.js(
        "const grid = document.querySelector('.grid'); grid.parentElement.style.maxHeight = '6rem';"
        "grid.parentElement.scrollTo(0, 40); grid.scrollIntoView({ block: 'center' });"
        "return [...grid.tHead.rows[0].cells].filter((cell) => {"
        "  const { left, top, width, height } = cell.getBoundingClientRect();"
        "  return !cell.contains(document.elementFromPoint(left + 12, top + height - 6));"
        "}).map((cell) => cell.textContent)"
    )
    assert covered == []


class TestWithoutRecords:
    @pytest.mark.parametrize("which", ["empty", "damaged", "mixed"])
    def test_a_page_says_so_and_what_is_whole_beside_it_can_be_filtered(self, browser, make_run, tmp_path, which):
        empty = make_run(steps=(), name="empty")
        damaged = RecordingDamaged("recording 'x' is damaged: group 'layers' has no variable 'count'")
        runs = {"empty": {"empty": empty}, "damaged": {"damaged": damaged}}
        mixed = {"empty": empty, "damaged": damaged, "whole": make_run(pairs=1, steps=(0, 10))}
        page = write_report(runs.get(which, mixed), tmp_path / "report.html", figures_at_most=0)
        browser.visit(page)
        shown = " ".join(browser.texts("main"))
        assert ("Nothing was recorded" in shown) == (which != "damaged")
        assert ("Cannot be read" in shown) == (which != "empty")
        assert browser.js("return document.querySelectorAll('.filter').length") == (which == "mixed")
        if which == "mixed":
            browser.click("#run-2-details > summary")
            browser.js(FILTER, "layer", "conv0")
            assert browser.texts("#runs-2-grid tbody th") == ["conv0"]


CLOCK = "window.setInterval = (turn, every) => { window.turn = turn; window.every = every; };"
"""The page's clock, turned by hand."""


def test_a_page_that_reads_itself_again_stands_as_it_was_left(browser, run, tmp_path):
    page = write_report(run, tmp_path / "live.html", figures_at_most=1, refresh_seconds=3)
    script = browser.command("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    browser.visit(page, fragment="#r0-l1")
    opened(browser, "act0")
    assert browser.js("return window.every") == 3000
    browser.click("#runs-0-shift > summary")
    browser.click("#runs-0-shift-table thead th:nth-child(2) button")
    browser.click("#runs-0-shift-table thead th:nth-child(2) button")
    browser.js(FILTER, "layer", "act")
    browser.click(".others[open] > summary")
    browser.js("document.querySelector('.grid').parentElement.scrollTo(40, 0); window.scrollTo(0, 700)")
    browser.js("document.querySelector('.filter [name=check]').focus({ preventScroll: true })")
    left = browser.js(STANDS)
    assert left["layer"] == "act0"
    assert "runs-0-shift" in left["open"]
    assert left["seen"] == 700
    assert left["focused"] == "check"
    assert left["sorted"] == ["descending"]

    browser.js("document.querySelector('#hold').click(); window.turn()")
    browser.js("window.stale = true; document.querySelector('#hold').click()")
    write_report(run, page, figures_at_most=1, overwrite=True)
    browser.js("document.querySelector('.filter [name=check]').focus({ preventScroll: true }); window.turn()")
    browser.until("return !window.stale && document.readyState === 'complete'")
    opened(browser, "act0")
    browser.until("return window.scrollY === 700")
    assert browser.js(STANDS) == left
    assert browser.js("return window.every") is None
    assert not browser.texts(".eyebrow label")
    browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


STANDS = """
return {
  layer: document.querySelector('#layer-name').textContent,
  open: [...document.querySelectorAll('details[open]')].map((details) => details.id),
  filter: [...document.querySelector('.filter').elements].map(({ value }) => value),
  rows: [...document.querySelectorAll('.grid tbody tr')].filter((row) => !row.hidden).map((row) => row.id),
  sorted: [...document.querySelectorAll('[aria-sort]')].map((heading) => heading.ariaSort),
  order: [...document.querySelectorAll('#runs-0-shift-table tbody tr')].map((row) => row.textContent),
  across: document.querySelector('.grid').parentElement.scrollLeft,
  seen: window.scrollY,
  focused: document.activeElement.name,
};
"""


IN_VIEW = """
return [...document.querySelectorAll(arguments[0])].filter((e) => {
  const { top, bottom, height } = e.getBoundingClientRect();
  return height && top >= 0 && bottom <= 900;
}).length
"""


def test_the_first_screen_holds_findings_with_advice_and_the_grid(browser, page, several):
    browser.visit(page)
    assert browser.js(IN_VIEW, ".grid tbody tr") >= 3
    assert browser.js(IN_VIEW, ".advice") >= 1
    browser.visit(several)
    assert browser.js(IN_VIEW, ".of-runs tbody tr") == 4
    verdicts = browser.texts(".run-line > [class^=v-]")
    assert browser.js(IN_VIEW, ".run-sentence .told b:first-of-type a") == verdicts.count("bad") > 0
    assert browser.js(IN_VIEW, ".run-sentence .advice") == verdicts.count("bad")


class TestKeyboard:
    def test_everything_is_reached_and_worked_by_keys(self, browser, page):
        browser.visit(page)
        reached = []
        for _ in range(80):
            browser.keys("\ue004")  # Tab
            tag, text = browser.js(
                "const e = document.activeElement; return [e.tagName, e.textContent.trim().slice(0, 20)]"
            )
            reached.append((tag, text))
            if (tag, text) == ("A", "block.3.act"):
                break
        tags = {tag for tag, _ in reached}
        assert {"A", "SUMMARY", "INPUT", "SELECT", "BUTTON", "DIV"} <= tags
        browser.keys("\ue007")  # Enter
        opened(browser, "block.3.act")

    def test_enter_opens_a_section_and_sorts_a_table(self, browser, page):
        browser.visit(page)
        browser.js("document.querySelector('#runs-0-shift > summary').focus()")
        browser.keys("\ue007")
        assert browser.js("return document.querySelector('#runs-0-shift').open")
        browser.js("document.querySelector('#runs-0-shift thead button').focus()")
        browser.keys("\ue00d")  # Space
        assert browser.js("return document.querySelector('#runs-0-shift th[aria-sort]').ariaSort") == "ascending"

    def test_the_focus_is_seen(self, browser, page):
        browser.visit(page)
        browser.keys("\ue004")
        assert browser.js("return getComputedStyle(document.activeElement).outlineStyle") != "none"


TOO_WIDE = """
return [...document.querySelectorAll('.scroll')]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth).map((e) => e.ariaLabel)
"""

OPEN = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"

ENDLESS = ["L" * 200, "L" * 199 + "M", "block." + "N" * 200, f"block.{'N' * 99}_{'N' * 100}"]


@pytest.fixture(scope="module")
def endless(make_run) -> list[xr.DataTree]:
    return [
        make_run(pairs=2, names=ENDLESS, dying=dying, linked=not dying, name=f"dying {dying}")
        for dying in (False, True)
    ]


@pytest.fixture(scope="module")
def both(endless, tmp_path_factory) -> Path:
    return write_report(endless, tmp_path_factory.mktemp("endless") / "report.html", figures_at_most=0)


class TestEndlessNames:
    def test_push_no_number_of_any_table_out_of_view(self, browser, both):
        browser.visit(both)
        browser.js(OPEN)
        assert browser.js("return document.querySelectorAll('.scroll').length") > 10
        assert browser.js("return document.querySelectorAll('#changes [title]').length") > 0
        assert browser.js(TOO_WIDE) == []

    def test_stand_shortened_and_apart_in_every_table_and_in_full_in_the_title(self, browser, both):
        browser.visit(both)
        browser.js(OPEN)
        for table in ("grid", "shift-table", "layers-table"):
            assert sorted(order(browser, f"#runs-1-{table}")) == sorted(ENDLESS)
            shown = browser.texts(f"#runs-1-{table} tbody th")
            assert len(set(shown)) == len(ENDLESS)
            assert max(map(len, shown)) <= 32

    @pytest.mark.parametrize(("table", "which"), [("layers-table", ENDLESS), ("parameters-table", ENDLESS[::2])])
    def test_lead_from_tables_to_their_sections(self, browser, both, table, which):
        browser.visit(both)
        links = browser.js(
            "return [...document.querySelectorAll(`#runs-1-${arguments[0]} tbody th`)]"
            ".map((cell) => [cell.title.replace(/\\.weight$/, ''), cell.firstElementChild.getAttribute('href')])",
            table,
        )
        assert sorted(links) == sorted([name, f"#r1-l{ENDLESS.index(name)}"] for name in which)

    def test_leave_the_evidence_of_findings_in_view_in_a_notebook(self, browser, endless, tmp_path):
        diagnosis = diagnose(endless[1])
        shown = [diagnosis, *(one for one in diagnosis.findings if one.layer in ENDLESS)]
        assert len(shown) > 4
        boxes = "".join(f'<div style="width: 900px; overflow-x: auto">{one._repr_html_()}</div>' for one in shown)
        page = tmp_path / "notebook.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><body>{boxes}', encoding="utf-8")
        browser.visit(page)
        assert browser.js("return Math.max(...[...document.querySelectorAll('div')].map((e) => e.scrollWidth))") <= 900


def test_four_runs_by_their_checks_fit_at_1200_pixels(browser, several):
    browser.visit(several, width=1200)
    assert "linkage" in browser.texts(".of-runs thead th")
    assert browser.js(TOO_WIDE) == []


@pytest.mark.parametrize("which", ["page", "several"])
class TestEverywhere:
    def test_every_section_opens_by_a_click(self, browser, request, which):
        browser.visit(request.getfixturevalue(which))
        browser.js("document.querySelectorAll('#run-0-details').forEach((d) => { d.open = true; })")
        for identifier in browser.js(
            "return [...document.querySelectorAll('details.section[id^=runs-0]')].map((d) => d.id)"
        ):
            browser.click(f"#{identifier} > summary")
            assert browser.js("return document.getElementById(arguments[0]).open", identifier)

    def test_at_400_pixels_nothing_runs_out_of_the_page(self, browser, request, which):
        browser.visit(request.getfixturevalue(which), fragment="#r0-l1", width=400, height=800)
        opened(browser, browser.until("return document.querySelector('#layer-name').textContent"))
        browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert browser.js("return document.documentElement.scrollWidth") <= 400

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_the_contrast_of_aa(self, browser, request, which, scheme):
        browser.media(scheme=scheme)
        browser.visit(request.getfixturevalue(which), fragment="#r0-l1")
        browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        faint = browser.js(CONTRAST)
        assert not faint
        paper = browser.js("return getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", paper)[:3])) < 60) == (scheme == "dark")

    def test_on_paper_every_section_is_open_and_controls_are_gone(self, browser, request, which):
        browser.visit(request.getfixturevalue(which))
        browser.media(kind="print")
        height = "return document.querySelector('#runs-0-shift table').getBoundingClientRect().height"
        assert browser.until(height) > 50
        assert not browser.texts(".filter")
        assert not browser.texts(".layer-places")
        pdf = base64.b64decode(browser.command("Page.printToPDF", printBackground=True)["data"])
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2

    def test_on_paper_no_table_runs_out_of_its_box_where_the_next_thing_stands(self, browser, request, which):
        browser.visit(request.getfixturevalue(which), width=720, height=100)
        browser.media(kind="print")
        browser.until("return document.querySelector('#runs-0-shift table').getBoundingClientRect().height > 50")
        low = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollHeight > e.clientHeight)"
        assert browser.js(f"return {low}.map((e) => e.ariaLabel)") == []
        assert browser.js(TOO_WIDE) == []

    def test_on_paper_headings_hold_no_boxes_which_are_blank_where_a_heading_is_repeated(self, browser, request, which):
        browser.visit(request.getfixturevalue(which))
        browser.media(kind="print")
        buttons = browser.js(
            "return [...document.querySelectorAll('.sortable thead button')].map((e) => e.getClientRects().length)"
        )
        assert len(buttons) > 10
        assert not any(buttons)

    def test_without_scripts_verdicts_findings_and_tables_are_there(self, browser, request, which):
        browser.command("Emulation.setScriptExecutionDisabled", value=True)
        browser.visit(request.getfixturevalue(which))
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
        assert browser.texts(".sentence, .run-sentence")
        assert browser.texts("noscript")
        assert not browser.texts("#layer, .filter")
        assert browser.js("return document.querySelectorAll('.grid tbody tr').length") >= 6

    def test_without_scripts_a_link_opens_the_table_of_each_layers_numbers(self, browser, request, which):
        browser.command("Emulation.setScriptExecutionDisabled", value=True)
        browser.visit(request.getfixturevalue(which))
        browser.click("noscript a")
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
        shown = (
            "[...document.querySelectorAll('[data-base=\"/runs/0/course\"] tbody tr')].filter(r => r.checkVisibility())"
        )
        assert browser.until(f"return {shown}.length") in (18, 24)


CONTRAST = """
const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255);
};
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ground = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
  const over = (under, [r, g, b, a]) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  return layers.reverse().reduce(over, [1, 1, 1]);
};
const faint = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  const text = node.textContent.trim();
  if (!text || !element.checkVisibility() || element.closest('svg, .uplot, script, option')) continue;
  const [a, b] = [luminance(rgba(getComputedStyle(element).color)), luminance(ground(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) faint.add(`${ratio.toFixed(2)} ${element.tagName}.${element.className}: ${text.slice(0, 30)}`);
}
return [...faint];
"""


class TestSeveralRuns:
    def test_curves_are_drawn_with_a_line_a_group(self, browser, several):
        browser.visit(several)
        browser.until("return document.querySelectorAll('#curves canvas').length > 0")
        labels, data = chart(browser, "curve-loss")
        assert [label for label in labels if "est" not in label.split(", ")[-1]] == ["step", "plain", "linked"]
        assert np.isfinite(data[:, :-1]).all()
        low, high = (data[labels.index(f"plain, {end}")][:-1] for end in ("lowest", "highest"))
        assert (low <= data[labels.index("plain")][:-1]).all()
        assert (low <= high).all()

    def test_a_layer_opens_in_the_run_it_was_clicked_in_and_the_run_can_be_changed(self, browser, several):
        browser.visit(several)
        browser.click("#run-1-details > summary")
        browser.click("#run-1-details .grid tbody tr:nth-child(2) a")
        opened(browser, "act0")
        selected = "const list = document.querySelector('#layer-run'); return list.options[list.selectedIndex].text"
        assert browser.js(selected) == "linked seed 0"
        browser.js(
            "const list = document.querySelector('#layer-run'); list.value = 0; list.dispatchEvent(new Event('change'))"
        )
        browser.until("return location.hash === '#r0-l1'")
        browser.until(f"return (() => {{ {selected} }})() === 'plain seed 0'")


def test_the_data_block_is_json_with_the_runs_of_the_page(browser, several):
    browser.visit(several)
    told = json.loads(
        browser.driver.execute_async_script(
            "const done = arguments[0];"
            "const text = document.querySelector('#layer-data').textContent;"
            "const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));"
            "new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).text().then(done)"
        )
    )
    assert [run["name"] for run in told["runs"]] == ["plain seed 0", "linked seed 0", "plain seed 1", "linked seed 1"]
