"""Names that read as numbers, and names too long for where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from covshift.diagnosis import diagnose
from covshift.reporting import write_report

NUMBERED = ["2.0", "2.1", "2.10", "2.11", "2.2", "2.a.1", "2", "10"]


LONG = [f"encoder.blocks.{block}.attention.projection.{part}" for block in (0, 1) for part in ("linear", "activation")]


@pytest.fixture(scope="module")
def named(make_run, tmp_path_factory) -> Path:
    names = [*NUMBERED, *LONG]
    run = make_run(pairs=len(names) // 2, names=names, dying=True, name="named")
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
                assert browser.order(table) == expected

    def test_a_layer_is_found_by_the_name_it_has_not_by_the_part_of_it_that_is_shown(self, browser, named):
        browser.visit(named)
        assert LONG[0] not in browser.texts(".grid tbody th")
        browser.filter("layer", "blocks.0.attention.projection.linear")
        assert browser.texts(".filter output") == ["1 layers"]
        assert len(browser.texts(".grid tbody th")) == 1

    def test_findings_that_fit_the_filter_are_seen_also_what_was_not_measured(self, browser, named):
        browser.visit(named)
        assert not browser.js("return document.querySelector('#unknown-0').open")
        browser.filter("verdict", "not measured")
        fitting = browser.js("return document.querySelectorAll('.told:not([hidden])').length")
        assert fitting == len(browser.texts(".told")) > 0
        browser.filter("verdict", "ok")
        assert not browser.texts(".finding, .folded")


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
        assert browser.too_wide() == []

    def test_stand_shortened_and_apart_in_every_table_and_in_full_in_the_title(self, browser, both):
        browser.visit(both)
        browser.js(OPEN)
        for table in ("grid", "shift-table", "layers-table"):
            assert sorted(browser.order(f"#runs-1-{table}")) == sorted(ENDLESS)
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
