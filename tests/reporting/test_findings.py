"""What is told of one run: its verdicts, findings and causes, where they lead, and what was recorded."""

from __future__ import annotations

import re
from collections import defaultdict
from copy import deepcopy

import pytest

from covshift.diagnosis import Finding, diagnose
from covshift.diagnosis.wording import quoted
from covshift.plots.labels import amount
from covshift.reporting.content import _groups
from covshift.reporting.page import render


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
    causes = [cause.layer for cause in diagnose(runs["plain"]).causes]
    first_of = [
        causes.index(findings[group["lead"]]["layer"]) for group in groups if group["verdict"] != "not measured"
    ]
    assert first_of == sorted(first_of)
    assert first_of[0] == 0
    first = single.page.find("li", class_="finding")[0]
    assert (
        f"Consequences: {groups[0]['consequences'][0]['check']} ({groups[0]['consequences'][0]['count']})"
        in first.words
    )


def test_the_page_leads_with_the_cause_from_which_most_follows_whichever_began_first():
    def one(check, layer, since, because=""):
        return Finding(check, layer, "bad", since, 1.0, None, None, "", "", explained_by=because)

    findings = [one("units", "early", 1), one("shift", "most", 9), one("units", "late", 9)]
    findings += [one("gradient zeros", f"under{n}", 9, "shift in most") for n in range(3)]
    findings += [one("gradient zeros", "under", 9, "units in late")]
    told = [(group["check"], findings[group["lead"]].layer, group["others"]) for group in _groups(findings)]
    assert told == [("shift", "most", []), ("units", "late", [0])]


def test_a_cause_that_ranks_by_what_follows_from_it_says_its_own_verdict(single):
    content = deepcopy(single.told)
    (run,) = content["runs"]
    group = run["groups"][0]
    run["findings"][group["lead"]]["verdict"] = "watch"
    head = re.search(r'<p class="finding-head">.*?</p>', render(content, pictures=[defaultdict(tuple)]), re.DOTALL)[0]
    assert f'>{group["check"]}</strong> <span class="more">watch, its consequences bad</span>' in head
    assert "its consequences" not in single.page.find("p", class_="finding-head")[0].words


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


def test_of_many_kinds_of_findings_the_three_worst_stand_open(written, make_run, tmp_path, monkeypatch):
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


def test_a_loss_with_a_single_number_is_told_once_and_that_none_came_after(written, make_run, tmp_path):
    run = make_run(pairs=1, steps=(0, 10))
    scalars = run["scalars"].to_dataset()
    run["scalars"] = scalars.assign(loss=scalars["loss"].where(scalars["step"] == 0))
    told = written(tmp_path, run).page.find("ul", class_="facts")[0].words
    assert f"loss 2.3 at step 0, no number in the {scalars.sizes['step'] - 1} records after" in told
    assert told.count("at step") == 1


def test_the_header_says_what_was_recorded(single):
    facts = single.page.find("ul", class_="facts")[0].words
    for fact in ("variant plain", "seed 0", "16 layers", "6 records, steps 0 to 50", "torch 2.13.0, cpu", "5.0 s from"):
        assert fact in facts


def test_given_diagnoses_are_used(written, make_run, tmp_path):
    run = make_run(pairs=1, steps=(0, 10), name="a")
    other = diagnose(make_run(pairs=1, steps=(0, 10), dying=True))
    told = written(tmp_path, run, diagnoses={"a": other}).told
    assert told["runs"][0]["sentence"] == other.sentence
