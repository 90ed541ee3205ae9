"""The part of a report that sets runs side by side: numbers, curves and figures of results that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from covshift.analysis.differences import group_differences
from covshift.analysis.matching import Matching, matched_layers
from covshift.analysis.seeds import seed_groups
from covshift.reporting import embedding, figures
from covshift.reporting.curves import curves
from covshift.reporting.results import Results
from covshift.reporting.side_by_side import comparison_content

MOST_APART = 3
"""Groups whose differences from the first one are drawn: each takes the height of all layers once more."""


@dataclass(frozen=True)
class Comparison:
    """What a page needs: content, figures, and the curves it draws."""

    content: dict[str, Any]
    pictures: list[figures.Picture]
    curve_data: str


def compare(told: Sequence[Mapping[str, Any]], results: Mapping[str, Results], *, most: int) -> Comparison:
    """The comparison of all runs that have records.

    Parameters
    ----------
    told : sequence of mapping
        Content of every run of the report, in its order.
    results : mapping of str to Results
        Of those with records, by name.
    most : int
        Most figures.
    """
    recordings = {name: result.recording for name, result in results.items()}
    groups = seed_groups(recordings)
    matched = matched_layers(recordings)
    known = [(position, run) for position, run in enumerate(told) if run["recorded"]]
    compared = comparison_content(
        [run for _, run in known],
        groups=groups,
        positions=[position for position, _ in known],
        matched=matched,
    )
    drawn = figures.comparison_pictures(_paired(results, matched), groups) if most else []
    if most > 1 and len(set(groups.values())) > 1:
        drawn += figures.difference_pictures(_apart(recordings, groups))
    return Comparison(compared, drawn, embedding.block({"curves": curves(recordings, groups)}))


def _apart(recordings: Mapping[str, xr.DataTree], groups: Mapping[str, str]) -> xr.Dataset:
    """Differences of the first few groups from the first."""
    told = list(dict.fromkeys(groups.values()))[: 1 + MOST_APART]
    return group_differences({run: one for run, one in recordings.items() if groups[run] in told}, groups=groups)


def _paired(results: Mapping[str, Results], matched: Matching) -> xr.Dataset:
    """What :func:`covshift.analysis.comparison.paired_layers` gives, under the names that runs are compared by."""
    tables = [
        result.measures.assign_coords(layer=[matched.names[run][layer] for layer in result.measures["layer"].values])
        for run, result in results.items()
    ]
    aligned = [table.reindex(layer=matched.layers) for table in tables]
    joined = xr.concat(aligned, xr.DataArray(list(results), dims="run", name="run"))
    return joined.assign_attrs(matching=matched.note)
