"""docs/fifty-cases.md lists every case with tests that exist, docs/warnings.md every warning."""

import ast
import re
from pathlib import Path

import pytest

import covshift

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


def messages():
    """What the calls of the two methods that name an incident say, with "x" where a value comes in."""
    for path in Path(covshift.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if called in ("warn_once", "note_once") and isinstance(node.args[2], ast.Constant | ast.JoinedStr):
                parts = getattr(node.args[2], "values", [node.args[2]])
                yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in parts)


def test_every_warning_is_documented_by_its_beginning():
    documented = re.findall(r"^\| `(.+?)` \|", (DOCUMENT.parent / "warnings.md").read_text(), flags=re.MULTILINE)
    patterns = [".*".join(map(re.escape, beginning.split("..."))) for beginning in documented]
    said = list(messages())
    assert len(said) >= 25
    assert [message for message in said if not any(re.match(pattern, message) for pattern in patterns)] == []
