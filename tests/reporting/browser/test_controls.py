"""Filters, headings that sort, and the keyboard; a page that reads itself again stands as its reader left it."""

from __future__ import annotations

import numpy as np

from covshift.reporting import write_report


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

    def test_layers_are_filtered_by_name_check_and_verdict(self, browser, page, names):
        browser.visit(page)
        everything = self.shown(browser)
        assert len(everything) == len(names)
        browser.click(".filter input")
        browser.keys("BLOCK")
        self.shows(browser, ["block.3.conv", "block.3.act"])
        assert browser.texts(".filter output") == ["2 layers"]
        browser.click(".filter button")
        self.shows(browser, everything)
        browser.filter("check", "gradient arrives")
        browser.filter("verdict", "bad")
        cells = browser.texts(".grid tbody tr")
        assert 0 < len(cells) < len(everything)
        told = browser.texts(".finding .told")
        assert told
        assert browser.js(
            "const word = 'gradient arrives';"
            "return [...document.querySelectorAll('.told')].every((e) => e.hidden || e.textContent.includes(word))"
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

    def test_layer_names_in_tables_lead_to_their_sections(self, browser, page, names):
        browser.visit(page)
        browser.click("#runs-0-layers > summary")
        browser.click("#runs-0-layers tbody tr:nth-child(3) a")
        browser.opened(names[2])


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


CLOCK = "window.setInterval = (turn, every) => { window.turn = turn; window.every = every; };"
"""The page's clock, turned by hand."""


def test_a_page_that_reads_itself_again_stands_as_it_was_left(browser, run, tmp_path):
    page = write_report(run, tmp_path / "live.html", figures_at_most=1, refresh_seconds=3)
    script = browser.command("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    browser.visit(page, fragment="#r0-l1")
    browser.opened("act0")
    assert browser.js("return window.every") == 3000
    browser.click("#runs-0-shift > summary")
    browser.click("#runs-0-shift-table thead th:nth-child(2) button")
    browser.click("#runs-0-shift-table thead th:nth-child(2) button")
    browser.filter("layer", "act")
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
    browser.opened("act0")
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
        browser.opened("block.3.act")

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
