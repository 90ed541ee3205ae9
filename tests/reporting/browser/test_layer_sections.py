"""The section of one layer: how it is opened, the numbers its charts hold, and its name as it is."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from covshift.analysis import distributions, gradient_health, linkage, rows, shift

STEPS = (0, 10, 20, 30, 40, 50)


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
        browser.opened("act0")
        assert browser.js("return document.activeElement.id") == "layer-heading"
        assert browser.js("return document.querySelector('#layer').getBoundingClientRect().top") < 200

    def test_its_charts_hold_the_numbers_of_the_analysis(self, browser, page, run):
        browser.visit(page, fragment="#r0-l1")
        browser.opened("act0")
        steps = np.array(STEPS, dtype=float)

        split = linkage.violation_rate(run)
        labels, data = browser.chart("zeros")
        assert labels == ["step", "all zeros of dL/dz", "structural", "other"]
        parts = ("gradient_zero_rate", "structural_rate", "other_rate")
        close(data, np.stack([steps, *(layer_of(run, split[part], "act0") for part in parts)]))

        moved = shift.between_steps(run)
        labels, data = browser.chart("shift")
        assert labels[1:] == ["W1", "noise floor"]
        exact = [layer_of(run, moved[part], "act0") for part in ("w1", "noise_floor")]
        resolved = ~layer_of(run, moved["off_centre"], "act0")
        close(data[1:], np.where(resolved, exact, np.nan))

        z = rows.moments(run, signal="preactivation")
        mean, sd = (layer_of(run, z[part], "act0") for part in ("mean", "sd"))
        close(browser.chart("track")[1], np.stack([steps, mean + sd, mean, mean - sd]))

        river = distributions.river(run, layer="act0", signal="preactivation", cells=64)
        labels, data = browser.chart("river")
        assert labels[1:] == ["1%", "25%", "50%", "75%", "99%"]
        close(data, np.vstack([steps, river["quantile"].values.T]))
        x, *ridges = browser.chart("ridges")[1]
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
        browser.opened("act0")
        assert browser.js(inked) > 150
        swatches = browser.js(
            "const marks = [...document.querySelectorAll('#chart-river .u-legend .u-marker')].slice(1);"
            "return marks.map((mark) => getComputedStyle(mark).borderTop)"
        )
        assert swatches == swatches[::-1]
        assert len(swatches) == 5
        assert len(set(swatches)) == 3
        browser.visit(page, fragment="#r0-l0")
        browser.opened("conv0")
        assert browser.js(inked) == 0

    def test_gradients_and_updates_are_those_of_the_analysis_and_zeros_are_not_drawn(self, browser, page, run):
        browser.visit(page, fragment="#r0-l6")
        browser.opened("block.3.conv")
        rms = layer_of(run, rows.moments(run, signal="activation_grad")["rms"], "block.3.conv")
        sd = layer_of(run, rows.moments(run)["sd"], "block.3.conv")
        _, data = browser.chart("sizes")
        close(data[1:], np.stack([np.where(rms > 0, rms, np.nan), sd]))
        labels, data = browser.chart("updates")
        assert labels == ["step", "weight"]
        close(data[1], gradient_health.update_ratio(run).sel(parameter="block.3.conv.weight").values)

    def test_previous_next_and_the_list_walk_through_the_layers(self, browser, page):
        browser.visit(page, fragment="#r0-l0")
        browser.opened("conv0")
        assert browser.texts("#layer-places a, .layer-places a") == ["next"]
        browser.click("#layer-next")
        browser.opened("act0")
        browser.js(
            "const list = document.querySelector('#layer-of'); list.value = 7; list.dispatchEvent(new Event('change'))"
        )
        browser.opened("block.3.act")
        assert browser.texts(".layer-places a") == ["previous"]
        browser.driver.back()
        browser.opened("act0")

    @pytest.mark.parametrize("number", range(8))
    def test_names_are_shown_as_they_are_and_never_obeyed(self, browser, page, names, number):
        browser.visit(page, fragment=f"#r0-l{number}")
        browser.opened(names[number])
        assert browser.js("return window.taken") is None
        assert browser.js("return document.querySelectorAll('script').length") == 3
        assert names[number] in browser.texts("#layer-heading")[0]

    def test_a_record_without_a_neighbour_is_a_point_where_others_are_joined(self, browser, page):
        browser.visit(page, fragment="#r0-l1")
        browser.opened("act0")
        marked = browser.js(
            "const { filter } = document.querySelector('#chart-sizes').plot.series[1].points;"
            "const of = (values) => filter({ data: [[], values] }, 1, false);"
            "return [of([1, null, 2, 3, null, 4]), of([1, 2]), of([null])]"
        )
        assert marked == [[0, 5], None, None]

    def test_findings_of_the_layer_stand_above_its_charts(self, browser, page, run):
        browser.visit(page, fragment="#r0-l1")
        browser.opened("act0")
        told = browser.texts("#layer-findings li")
        assert any("units" in text and "dead" in text for text in told)

    def test_every_chart_says_what_it_shows(self, browser, page):
        browser.visit(page, fragment="#r0-l1")
        browser.opened("act0")
        labels = browser.js("return [...document.querySelectorAll('#layer-charts [role=img]')].map((e) => e.ariaLabel)")
        assert len(labels) == 7
        assert all(label.startswith("act0: ") and len(label) > 30 for label in labels)

    def test_a_browser_that_cannot_unpack_says_so(self, browser, page):
        script = browser.command("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
        browser.visit(page, fragment="#r0-l1")
        assert "cannot unpack" in browser.texts("#layer-state")[0]
        browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
