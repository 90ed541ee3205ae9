"""The page is one file that needs nothing else and reads as it was meant, whatever the names are."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from importlib import resources

import pytest

from covshift.reporting import vendored

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    '#1d2429 url(#x) id="y"',
    "{{ 7 * 7 }}",
    "$x^",
    "&amp;",
]


@pytest.fixture(scope="module")
def hostile(written, make_run, tmp_path_factory):
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


def test_names_may_break_at_their_dots_and_numbers_nowhere(written, make_run, tmp_path):
    names = ["block.0.conv_a", "block.0.act"]
    made = written(
        tmp_path, make_run(pairs=1, names=names, dying=True, attrs={"note": "-0.13 to 0.032, 1e-5.5 of 31 %"})
    )
    assert re.search(r"block\.<wbr>0\.<wbr>conv_<wbr>a", made.html)
    assert "-0.13 to 0.032, 1e-5.5 of 31&nbsp;%" in made.html
    assert not re.search(r"\d\.<wbr>\d", made.html)


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
