"""What a page says of its runs: at first sight, where nothing was recorded, and where there are several."""

from __future__ import annotations

import json

import numpy as np
import pytest

from covshift.exceptions import RecordingDamaged
from covshift.reporting import write_report


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
            browser.filter("layer", "conv0")
            assert browser.texts("#runs-2-grid tbody th") == ["conv0"]


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


def test_four_runs_by_their_checks_fit_at_1200_pixels(browser, several):
    browser.visit(several, width=1200)
    assert "linkage" in browser.texts(".of-runs thead th")
    assert browser.too_wide() == []


class TestSeveralRuns:
    def test_curves_are_drawn_with_a_line_a_group(self, browser, several):
        browser.visit(several)
        browser.until("return document.querySelectorAll('#curves canvas').length > 0")
        labels, data = browser.chart("curve-loss")
        assert [label for label in labels if "est" not in label.split(", ")[-1]] == ["step", "plain", "linked"]
        assert np.isfinite(data[:, :-1]).all()
        low, high = (data[labels.index(f"plain, {end}")][:-1] for end in ("lowest", "highest"))
        assert (low <= data[labels.index("plain")][:-1]).all()
        assert (low <= high).all()

    def test_a_layer_opens_in_the_run_it_was_clicked_in_and_the_run_can_be_changed(self, browser, several):
        browser.visit(several)
        browser.click("#run-1-details > summary")
        browser.click("#run-1-details .grid tbody tr:nth-child(2) a")
        browser.opened("act0")
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
