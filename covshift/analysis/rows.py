"""Rows of a recording by label: one group of one stream, one signal of all layers, and the moments a row holds.

The schema stores a tensor once, under its producer; this room offers the joined view in which every nonlinearity has
its pre-activation again. It refuses to estimate anything beyond what follows from one row, and it never fills in: what
was not recorded is counted 0 and reads NaN once divided.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.analysis import arguments, local_loss
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded

STREAM_PATHS = {"train": "", "evaluation": "evaluation/", "probe": "probe/"}
"""Names of the streams of rows, and where their groups stand in the tree."""

PRODUCER_SIGNAL = {"preactivation": "activation", "preactivation_grad": "activation_grad"}
"""Signal under which a producer holds its consumer's pre-activation, and the gradient with respect to it."""

_WORDS = {
    "input": "input of the model",
    "preactivation": "input of a nonlinearity",
    "activation": "output of a layer",
    "activation_grad": "gradient of a layer's output",
    "preactivation_grad": "gradient of a nonlinearity's input",
}

WINDOW_SHARE, WINDOW_RECORDS = 0.2, 5

HELD_BYTES = 2**27
"""Largest group that is read as a whole: a thousand records of a hundred layers take half of it."""

_HELD: dict[int, dict[str, dict[str, xr.Dataset]]] = {}
"""Rows asked for so far, by stream and signal, of each tree of :func:`in_memory`: a page asks sixty times a run."""


def group(recording: xr.DataTree, name: str, *, stream: str = "train") -> xr.Dataset:
    """One group of one stream.

    Parameters
    ----------
    recording : DataTree
        See :mod:`covshift.schema`.
    name : str
        ``"layers"``, ``"histograms"``, ``"units"``, ``"parameters"`` or ``"scalars"``.
    stream : {"train", "evaluation", "probe"}
        Rows recorded while training, or during evaluation passes.

    Returns
    -------
    Dataset
        The group as it stands, lazily where the recording is lazy.

    Raises
    ------
    InvalidArgumentError
        If ``recording`` is no DataTree, or one of several runs, or ``stream`` is unknown.
    SignalNotRecorded
        If the group is missing; the message lists the groups that are there.
    """
    if not isinstance(recording, xr.DataTree):
        raise InvalidArgumentError(
            f"recording: expected the xarray.DataTree that covshift.open returns, got {type(recording).__name__}"
        )
    if stream not in STREAM_PATHS:
        raise InvalidArgumentError(f"stream={stream!r}: expected one of {', '.join(map(repr, STREAM_PATHS))}")
    path = STREAM_PATHS[stream] + name
    if f"/{path}" not in recording.groups:
        there = ", ".join(part.lstrip("/") for part in recording.groups if part != "/") or "none"
        raise SignalNotRecorded(f"recording: no group '{path}'; it holds {there}")
    node = recording[path]
    assert isinstance(node, xr.DataTree)  # a path listed in ``groups`` is a node, never an array
    dataset = node.to_dataset()
    arguments.demand_one_run(dataset)
    return dataset


def in_memory(recording: xr.DataTree) -> xr.DataTree:
    """A copy whose small groups are read once; what is too large to hold is read by whoever needs it, as far as needed.

    Histograms, which are read step by step, stay where they are; superseded rows are nobody's business. Nobody may
    change the copy: :func:`layer_rows` remembers what it has answered of it.
    """
    copy = recording.copy()
    _HELD[id(copy)] = {}
    weakref.finalize(copy, _HELD.pop, id(copy), None)
    for path in schema.paths():
        node = copy[path] if f"/{path}" in copy.groups else None
        if isinstance(node, xr.DataTree) and not path.endswith("histograms") and node.nbytes <= HELD_BYTES:
            node.load()
            _HELD[id(copy)][path] = {}
    return copy


def names(dataset: xr.Dataset | xr.DataArray, coordinate: str = "layer") -> NDArray[np.str_]:
    """Labels of a text coordinate as plain numpy strings, whatever string type the store gave them."""
    # Not astype: numpy cannot cast the strings of variable width that plain xarray reads.
    return np.array([str(label) for label in dataset[coordinate].values.tolist()], dtype=str)


def layer_rows(recording: xr.DataTree, *, signal: str, stream: str = "train") -> xr.Dataset:
    """Rows of one signal for all layers.

    For ``"preactivation"`` and ``"preactivation_grad"`` this is the joined view: where a nonlinearity's input was
    summarised under the layer that produced it (``preactivation_of``), the producer's row stands in its place.
    ``structural_zero_count`` always is the nonlinearity's own. A producer's gradient is the sum over all consumers
    of its output, so the joined ``preactivation_grad`` is dL/dz only where z has no other consumer. Gradients are as
    recorded, of each rank's local loss; :func:`moments` rescales them.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str
        One of :data:`covshift.schema.SIGNALS`.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        Every variable of the group ``layers`` with dims ``(step, layer)``; counts are 0 where nothing was recorded.

    Raises
    ------
    SignalNotRecorded
        If no row of the signal has any status but ``absent``; the message lists the signals that are there.
    """
    layers = group(recording, "layers", stream=stream)
    known = _HELD.get(id(recording), {}).get(f"{STREAM_PATHS[stream]}layers", {})
    if signal in known:
        return known[signal].copy()
    known[signal] = _rows_of_signal(layers, signal, stream)
    return known[signal].copy()


def _rows_of_signal(layers: xr.Dataset, signal: str, stream: str) -> xr.Dataset:
    status = layers["status"].transpose("signal", ...).values
    recorded = [name for name, of_signal in zip(names(layers, "signal"), status, strict=True) if of_signal.any()]
    if signal not in recorded:
        of_stream = "" if stream == "train" else f"{stream} "
        where = f"{layers.sizes['step']} {of_stream}records of {layers.sizes['layer']} layers"
        raise SignalNotRecorded(
            f"signal={signal!r}: no {_WORDS.get(signal, signal)} was recorded ({where}); recorded there: "
            f"{', '.join(recorded) or 'nothing'}; signals= of covshift.record says what is"
        )
    own = layers.sel(signal=signal, drop=True)
    if signal not in PRODUCER_SIGNAL:
        return own
    return _joined(own, layers.sel(signal=PRODUCER_SIGNAL[signal], drop=True))


def finite_count(layers: xr.Dataset) -> NDArray[np.float64]:
    """Elements of every tensor that are neither NaN nor infinite, in the shape of its counts."""
    parts = ("count", "nan_count", "posinf_count", "neginf_count")
    count, *broken = (layers[name].values.astype(np.float64) for name in parts)
    return np.asarray(count - sum(broken))


def is_broken(layers: xr.Dataset) -> NDArray[np.bool_]:
    """Where a tensor holds NaN or infinities and nothing finite but zeros, in the shape of its counts."""
    finite = finite_count(layers)
    return np.asarray((finite < layers["count"].values) & (layers["zero_count"].values >= finite))


def ended_before(values: NDArray[np.float64]) -> int:
    """Records at the end without a number, where those are more than ever lay between two numbers before; else 0.

    Examples
    --------
    >>> nan = float("nan")
    >>> ended_before(np.array([2.0, 1.0, nan, nan])), ended_before(np.array([2.0, nan, 1.0, nan])), ended_before([])
    (2, 0, 0)
    """
    known = np.flatnonzero(np.isfinite(values))
    gone = len(values) - 1 - known[-1] if known.size else 0
    return int(gone) if gone > np.diff(known, prepend=known[:1] - 1).max(initial=0) - 1 else 0


def is_left_open(recording: xr.DataTree) -> bool:
    """Whether the file of a recording was not closed when it was read: it is being written, or its writer died."""
    return schema.attribute(recording.attrs, "covshift_commit", {}).get("closed") is False


def producer_index(layers: xr.Dataset) -> NDArray[np.int64]:
    """Position of the layer that produced each layer's pre-activation, shape ``(layer,)``; -1 for none."""
    position = {name: index for index, name in enumerate(names(layers))}
    return np.array([position.get(name, -1) for name in names(layers, "preactivation_of")], dtype=np.int64)


def _joined(own: xr.Dataset, producers: xr.Dataset) -> xr.Dataset:
    source = producer_index(own)
    from_producer = (own["count"].values == 0) & (source >= 0)
    joined = {
        name: (own[name].dims, np.where(from_producer, producers[name].values[:, source], own[name].values))
        for name in own.data_vars
        if name != "structural_zero_count"
    }
    return own.assign(joined)


def nonlinear(layers: xr.Dataset) -> NDArray[np.bool_]:
    """Which layers are nonlinearities, shape ``(layer,)``."""
    return np.asarray(names(layers, "activation") != "")


def nonlinearities(layers: xr.Dataset) -> NDArray[np.int64]:
    """Positions of the nonlinearities on the layer axis.

    Raises
    ------
    SignalNotRecorded
        If there is none.
    """
    chosen = np.flatnonzero(nonlinear(layers))
    if not len(chosen):
        raise SignalNotRecorded("recording: no layer is a nonlinearity; record the activation modules too")
    return chosen


def moments(
    recording: xr.DataTree, *, signal: str = "activation", stream: str = "train", as_recorded: bool = False
) -> xr.Dataset:
    """Exact moments of the finite elements of every recorded tensor.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    signal : str, default "activation"
        One of :data:`covshift.schema.SIGNALS`; pre-activations are the joined view of :func:`layer_rows`.
    stream : {"train", "evaluation", "probe"}
        Which rows.
    as_recorded : bool, default False
        Leave gradients those of each rank's local loss. By default they are those of one loss over the examples of all
        ranks, so that runs of different numbers of ranks compare; see :mod:`covshift.analysis.local_loss`.

    Returns
    -------
    Dataset
        Dims ``(step, layer)``: ``n`` finite elements, ``n_examples``, ``mean``, ``sd`` (population), ``rms``,
        ``skewness`` (third standardised moment) and ``kurtosis`` (fourth, minus 3, so 0 for a normal). NaN where
        nothing finite was recorded; skewness and kurtosis also where ``sd`` is 0.

    Raises
    ------
    SignalNotRecorded
        If the signal was not recorded.

    References
    ----------
    Central power sums after Pebay (2008); skewness and kurtosis are the biased sample versions g1 and g2.
    """
    rows = layer_rows(recording, signal=signal, stream=stream)
    raw = {name: rows[name].values.astype(np.float64) for name in ("sum", "m2", "m3", "m4")}
    n = finite_count(rows)
    mean, spread = ratio(raw["sum"], n), np.sqrt(ratio(raw["m2"], n))
    shape = {"skewness": ratio(ratio(raw["m3"], n), spread**3), "kurtosis": ratio(ratio(raw["m4"], n), spread**4) - 3.0}
    factor = None if as_recorded else local_loss.factors(recording.attrs, rows, signal=signal, stream=stream)
    if factor is not None:
        mean, spread = mean * factor[:, None], spread * factor[:, None]
    columns = {
        "n": n,
        "n_examples": rows["example_count"].values,
        "mean": mean,
        "sd": spread,
        "rms": np.hypot(mean, spread),
        **shape,
    }
    return xr.Dataset({name: (("step", "layer"), column) for name, column in columns.items()}, rows.coords)


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """``numerator / denominator`` where the denominator is positive, NaN elsewhere; shapes broadcast."""
    blank = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=blank, where=np.asarray(denominator) > 0))


def mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over runs (the first axis) of what is finite, NaN where nothing is; of equal numbers exactly that number.

    A plain sum of equal numbers may round, and their spread would then not be 0.

    Examples
    --------
    >>> mean_of_known(np.array([[0.1, 1.0], [0.1, np.nan], [0.1, 2.0]]))
    array([0.1, 1.5])
    """
    known = np.isfinite(values)
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    first = np.take_along_axis(values, known.argmax(axis=0)[None], axis=0)[0]
    start = np.where(known.any(axis=0), first, 0.0)
    return start + ratio((np.where(known, values, start) - start).sum(axis=0), known.sum(axis=0))


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over records (the first axis) of what was measured; NaN where nothing was.

    Examples
    --------
    >>> median(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]]))
    array([ 2., nan])
    """
    known = np.isfinite(values).sum(axis=0)
    if not known.any():
        return np.full(values.shape[1:], np.nan)
    ordered = np.sort(np.where(np.isfinite(values), values, np.inf), axis=0)
    middle = np.stack([np.maximum(known - 1, 0) // 2, known // 2])
    low, high = np.take_along_axis(ordered, middle, axis=0)
    return np.where(known > 0, (low + high) / 2, np.nan)


def layer_coordinate(recording: xr.DataTree, name: str, *, stream: str = "train") -> xr.DataArray:
    """A static coordinate of the layers, dims ``(layer,)``, such as ``depth`` or ``module_type``."""
    layers = group(recording, "layers", stream=stream)
    coordinate: xr.DataArray = layers[name].reset_coords(drop=True)
    return coordinate


def last_window(records: int) -> slice:
    """Records that a verdict about "now" rests on: the last fifth, and at least the last five, of ``records``.

    The share is the default interval of an operating point (the last 20 % of a run).

    Examples
    --------
    >>> last_window(1000), last_window(12), last_window(3)
    (slice(800, 1000, None), slice(7, 12, None), slice(0, 3, None))
    """
    size = max(math.ceil(records * WINDOW_SHARE), WINDOW_RECORDS)
    return slice(max(records - size, 0), records)
