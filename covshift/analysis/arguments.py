"""What analyses and figures are given: one run, names of layers, or the result of another analysis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xarray as xr

from covshift.exceptions import InvalidArgumentError


def demand_one_run(dataset: xr.Dataset) -> None:
    """Demand that a group is of one run, not of several side by side.

    Raises
    ------
    InvalidArgumentError
        If it has a dimension ``run``; the message lists the runs.
    """
    if "run" in dataset.dims:
        runs = [str(run) for run in dataset["run"].values.tolist()]
        raise InvalidArgumentError(
            f"recording: expected one run, got {len(runs)} ({', '.join(runs)}); take one with "
            f"recording.sel(run={runs[0]!r}), or give covshift.report a list of recordings"
        )


def listed(layers: str | Sequence[str] | None) -> list[str] | None:
    """Names of layers as a list: one name stands for a list of it, None for whatever the reader takes by default."""
    return [layers] if isinstance(layers, str) else None if layers is None else list(layers)


def demand_result(
    argument: str, result: object, names: Iterable[str] = (), *, of: str, kind: type[object] = xr.Dataset
) -> None:
    """Demand that ``result`` is the ``kind`` that the function named ``of`` returns.

    A Dataset has variables of these names, a DataArray dims.

    Raises
    ------
    InvalidArgumentError
        If it is something else, such as the recording that the function takes.
    """
    expected = f"{argument}: expected the {kind.__name__} that {of} returns"
    if not isinstance(result, kind):
        what = "a recording" if isinstance(result, xr.DataTree) else type(result).__name__
        raise InvalidArgumentError(f"{expected}, got {what}; call {of} first")
    known = result.variables if isinstance(result, xr.Dataset) else getattr(result, "dims", ())
    missing = [name for name in names if name not in known]
    if missing:
        there = ", ".join(map(str, result.data_vars if isinstance(result, xr.Dataset) else known)) or "none"
        raise InvalidArgumentError(
            f"{expected}, got one without {', '.join(missing)} (it has {there}); call {of} first"
        )
