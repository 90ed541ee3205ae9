"""A page of one run and of several: every section, narrow, light, dark, on paper and without scripts."""

from __future__ import annotations

import base64
import re

import pytest


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
        browser.opened(browser.until("return document.querySelector('#layer-name').textContent"))
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
        assert browser.too_wide() == []

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
