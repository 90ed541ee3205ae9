"""docs/fifty-cases.md lists every case with tests that exist."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = Path(__file__).parents[3] / "docs" / "fifty-cases.md"


def table():
    """Links of every case: number to pairs of a test (file::name) and the path that its link leads to."""
    rows = re.findall(r"^\| (\d+) \|.*\| (\[.*\]\(.*\)) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return {int(number): re.findall(r"\[`(.+?)`\]\((.+?)\)", links) for number, links in rows}


def defined_in(path):
    return re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)


def test_all_fifty_cases_are_listed_in_order():
    assert list(table()) == list(range(1, 51))


@pytest.mark.parametrize("number", range(1, 51))
def test_every_case_links_tests_that_exist(number):
    links = table()[number]
    assert links
    for test, path in links:
        file, _, name = test.partition("::")
        target = (DOCUMENT.parent / path).resolve()
        assert target == HERE / file
        assert name in defined_in(target)
    assert any(f"test_case_{number:02}_" in test for test, _ in links)


def test_every_test_of_a_case_is_linked_in_its_row():
    listed = {test: number for number, links in table().items() for test, _ in links}
    for path in HERE.glob("test_*.py"):
        for name in defined_in(path):
            case = re.match(r"test_case_(\d\d)_", name)
            if case:
                assert listed.get(f"{path.name}::{name}") == int(case[1]), name
