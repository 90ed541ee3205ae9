"""Layers and rows to write, and what the store must give back of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from covshift import schema
from covshift.schema import Layer, Row, SparseCounts


def stacked(rows: list[Row], name: str, lengths: dict[str, int]) -> np.ndarray:
    """What the store must give back, cell by cell from the rows."""
    known = {variable.name: variable for variable in schema.group_of(rows[0].group).variables}
    variable = known.get(name, schema.Variable(name, (), "f8", ""))
    fixed = {dim: len(labels) for dim, labels in schema.group_of(rows[0].group).labels.items()}
    shape = tuple((lengths | fixed)[dim] for dim in variable.dims)
    expected = np.full((len(rows), *shape), np.nan if np.dtype(variable.dtype).kind == "f" else 0, variable.dtype)
    for position, row in enumerate(rows):
        cells = row.variables.get(name)
        if cells is not None:
            cells = cells.dense() if isinstance(cells, SparseCounts) else np.asarray(cells)
            expected[(position, *(slice(length) for length in cells.shape))] = cells
    return expected


def _assert_holds(recording: xr.DataTree, rows: list[Row], lengths: dict[str, int]) -> None:
    assert {row.group for row in rows} | {"layers"} == set(recording.attrs["covshift_commit"]["records"])
    for path in {row.group for row in rows}:
        own = [row for row in rows if row.group == path]
        dataset = recording[path].to_dataset()
        assert dataset.step.values.tolist() == [row.step for row in own]
        if "source" in dataset:
            assert dataset.source.values.tolist() == [row.source for row in own]
            assert dataset["mode"].values.tolist() == [row.mode for row in own]
        for name in dataset.data_vars:
            expected = stacked(own, name, lengths)
            found = dataset[name].values
            if name == "wall_time":
                found = np.where(np.isnat(found), np.nan, (found - np.datetime64(0, "s")) / np.timedelta64(1, "s"))
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=f"{path}/{name}")


def _a_layer(name: str = "fc", **fields: Any) -> Layer:
    return Layer(name, module_type="Linear", depth=0, **fields)


def _counts_row(step: int, layers: int = 1, **fields: Any) -> Row:
    counts = np.arange(step, step + layers * 5, dtype="u8").reshape(layers, 5)
    return Row("layers", step, {"count": counts, "sum": counts / 7}, **fields)


@pytest.fixture(scope="session")
def a_layer() -> Callable[..., Layer]:
    """A linear layer by the name it is given, or ``fc``."""
    return _a_layer


@pytest.fixture(scope="session")
def counts_row() -> Callable[..., Row]:
    """A row of counts and sums that tell its step."""
    return _counts_row


@pytest.fixture(scope="session")
def assert_holds() -> Callable[[xr.DataTree, list[Row], dict[str, int]], None]:
    """Demand that a recording holds exactly these rows, on axes of these lengths."""
    return _assert_holds
