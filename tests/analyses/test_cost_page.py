"""The page on what recording costs says what was measured: every number of its tables is that of the file beside it."""

import json
import statistics
from pathlib import Path

import pytest

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts"
MEASURED = json.loads((CONCEPTS / "cost.json").read_text())
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (CONCEPTS / "cost.md").read_text().splitlines()
    if line.startswith("|")
]


def told(ratio, digits):
    return f"{ratio['central']:.{digits}f} [{ratio['low']:.{digits}f}, {ratio['high']:.{digits}f}]"


@pytest.mark.parametrize("network", MEASURED["steps"].values(), ids=lambda network: network["title"])
def test_ratios_of_steps_are_those_measured(network):
    arms = [told(arm["cpu"], 2) for name, arm in network["rows"].items() if name != "bare"]
    plain = f"{network['rows']['bare']['cpu_ms_per_step']:.0f} ms"
    shown = [cell for row in ROWS if row[0] == network["title"] for cell in row[1:]]
    assert shown[:1] == [plain]
    assert sorted(cell for cell in shown[1:] if cell in arms) == sorted(arms)


def test_peaks_of_memory_are_those_measured():
    for row in (row for part in MEASURED["memory"].values() for row in part["rows"]):
        peaks = [f"{statistics.median(row['peak_above_level_mb'][arm]):.0f}" for arm in ("bare", "recorded")]
        assert [row["title"], row["allocator"], *peaks, told(row["ratio"], 3)] in ROWS
