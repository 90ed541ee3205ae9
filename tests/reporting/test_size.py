"""However many layers and records there are, the page stays small enough to be opened."""

from __future__ import annotations

import re

from covshift.reporting import embedding
from covshift.reporting import report as reporting


def test_the_course_of_a_hundred_layers_takes_less_than_100_kilobytes(written, make_run, tmp_path):
    html = written(tmp_path, make_run(pairs=50, steps=(0, 10, 20))).html
    start = html.index('data-base="/runs/0/course"')
    table = html[start : html.index("</table>", start)]
    assert table.count("<tr>") == 301
    assert len(table) < 100_000


def test_a_page_of_very_many_layers_leaves_their_courses_to_the_json_twin(written, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("covshift.reporting.page.MOST_COURSES", 3)
    report = written(tmp_path, make_run(pairs=2, steps=(0, 10)))
    assert "course" not in report.html
    assert len(report.told["runs"][0]["course"]) == 8


def test_a_page_of_many_layers_stays_small(written, make_run, tmp_path):
    report = written(tmp_path, make_run(pairs=32, steps=(0, 10)))
    assert len(report.html) < 600_000
    rows = report.page.find("table", class_="grid")[0].find("tbody")[0].find("tr")
    assert len(rows) == len(report.told["runs"][0]["grid"]["layer"]) - 1


def drawn_steps(html):
    """Most records drawn of any run, on any axis of its charts."""
    block = re.search(r'id="layer-data">\s*([^<]*?)\s*</script>', html)
    assert block is not None
    return max(len(steps) for run in embedding.unpacked(block[1])["runs"] for steps in run["steps"].values())


def test_a_page_beyond_its_size_draws_fewer_records_until_it_fits(written, make_run, tmp_path, monkeypatch):
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
