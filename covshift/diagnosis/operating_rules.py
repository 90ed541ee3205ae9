"""Rules about the operating point: whether a layer has come to rest, and whether its activation still works there."""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift.analysis import operating_parts, operating_point, rows
from covshift.analysis.active_mass import active_mass
from covshift.diagnosis import streams
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Judgement, conclude, judge
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, percent, plural, quoted

_UNSETTLED = (
    "train on, lower the learning rate towards the end or add a normalisation layer, at the price of time, of slower "
    "learning or of examples tied together; drift while the loss still falls is learning"
)
_FROZEN = (
    "check that the optimizer holds these parameters, that its learning rate is not 0 and that a gradient arrives; "
    "nothing, if they are meant to stay"
)
_SATURATED = (
    "a smaller initialisation, a normalisation layer before the activation or an unbounded one keeps z in range; the "
    "latter gives up the bound on the output"
)


_MORE_RECORDS = "more or less dependent records: a longer run, a larger every=, larger batches"
_ACTIVE = (
    "an activation of which more works: further records cannot show rest at a point like this one; `saturation` and "
    "`units` say how far it is from one"
)

_OF_STREAM = {"train": "", "probe": " of the probe", "evaluation": " of evaluation passes"}


_MARGINS = {
    "location": operating_point.LOCATION_MARGIN,
    "scale": operating_point.SCALE_MARGIN,
    "distribution": operating_point.LOCATION_MARGIN,
    "active mass": operating_parts.MASS_MARGIN,
}


def operating_points(recording: xr.DataTree, *, trained: xr.Dataset | None = None) -> list[Finding]:
    """State of each layer's distribution over the last part of the run; whether it was so before is not asked.

    STABLE is ok, DRIFTING and FROZEN are to watch, UNDETERMINED is not measured. What training rows leave undetermined
    is judged by probes, else by evaluation passes, where those are as many and reach into the last window of training.

    ``trained`` is what :func:`covshift.analysis.operating_point.stability` says of this recording, where it is known
    already.
    """
    judged, records = _of_stream(
        recording, "train", operating_point.stability(recording) if trained is None else trained
    )
    others = [
        _of_stream(recording, stream, operating_point.stability(recording, stream=stream))[0]
        for stream in streams.OTHERS
        if streams.is_recent(recording, stream, "layers")
    ]
    if not judged and not any(others):
        need = f"at least {operating_point.WINDOW_RECORDS} records there: a longer run, or a smaller every="
        return [not_measured("operating point", WHOLE_RUN, f"{WHOLE_RUN}: {_at_most(records)}", need)]
    names = dict.fromkeys([*judged, *(layer for other in others for layer in other)])
    return [_best([found[layer] for found in (judged, *others) if layer in found]) for layer in names]


def unmeasured(found: xr.Dataset) -> str:
    """Why a stability tells the state of no layer, in the words of the finding; empty where it tells that of any.

    Parameters
    ----------
    found : Dataset
        From :func:`covshift.analysis.operating_point.stability`, all layers or some.
    """
    broken, most = found["broken"].values, int(found["records"].values.max(initial=0))
    least = int(found.attrs["min_records"])
    if most >= least:
        return ""
    until = int(found["finite_until"].values.max(initial=-1))
    after = f" after step {until}" if until >= 0 else ""
    if broken.size and broken.all():
        return f"no finite value{after}"
    reason = f"{_at_most(most)}, at least {least} needed"
    return f"{reason}; no finite value in {plural(int(broken.sum()), 'layer')}{after}" if broken.any() else reason


def _at_most(records: int) -> str:
    return f"at most {plural(records, 'record')} in the last half of the run"


def _best(findings: list[Finding]) -> Finding:
    """The first of a layer's findings that comes to a verdict, else the first."""
    return next((finding for finding in findings if finding.verdict != "not measured"), findings[0])


def _of_stream(recording: xr.DataTree, stream: str, found: xr.Dataset) -> tuple[dict[str, Finding], int]:
    """Findings of the layers by one stream's rows, none with too few of them, and the most records of any layer."""
    outputs = rows.layer_rows(recording, signal="activation", stream=stream)["count"].values
    ran = np.asarray((outputs > 0).any(axis=0))
    records = found["records"].values
    most = int(records[ran].max(initial=0))
    if ran.any() and most < operating_point.WINDOW_RECORDS:
        return {}, most
    columns = {str(name): found[name].values for name in found.data_vars}
    window = found.attrs["window_start"]
    findings = {
        str(layer): _of_layer(str(layer), {name: column[index] for name, column in columns.items()}, window, stream)
        for index, layer in enumerate(rows.names(found))
        if ran[index]
    }
    return findings, most


def _of_layer(layer: str, point: dict[str, float], window_start: int, stream: str) -> Finding:
    state = str(point["state"])
    threshold = THRESHOLDS["drift"]
    if state == "FROZEN":
        records = plural(int(point["records"]), "record")
        reason = (
            f"{quoted(layer)}: frozen: its parameters and those before it do not move, or no gradient arrives; "
            f"{records} from step {window_start}, perhaps longer"
        )
        return Finding(
            "operating point",
            layer,
            "watch",
            None,
            0.0,
            None,
            threshold,
            reason,
            _FROZEN,
            reached_step=int(window_start),
        )
    parts = _parts(point)
    reason = "; ".join(
        [*parts, f"{plural(int(point['records']), 'record')}{_OF_STREAM[stream]} from step {window_start}"]
    )
    if state == "STABLE":
        since = f", since step {int(point['settled_step'])}" if point["settled_step"] >= 0 else ""
        reason = f"stable{since}: {reason}"
        value, interval = _sizes(point)["location"]
        return conclude(layer, reason, [Judgement(threshold, value, None, "", interval)])
    if state == "DRIFTING":
        sizes = _sizes(point)
        value, interval = max(sizes[part] for part in str(point["drifts_by"]).split(", "))
        judged = Judgement(threshold, value, None, _UNSETTLED, interval, reached_step=int(window_start))
        return conclude(layer, f"drifting: {reason}", [judged])
    said, need = "neither stable nor drifting is shown", _MORE_RECORDS
    if point["active_mass"] < operating_point.LEAST_MASS:
        said = f"no drift is shown, and no rest where under {percent(operating_point.LEAST_MASS)} is active"
        need = _ACTIVE
    return not_measured("operating point", layer, f"{quoted(layer)}: {said}: {reason}", need, threshold=threshold)


def _parts(point: dict[str, float]) -> list[str]:
    """Drift of location, scale, shape and active mass in words, as far as they are known."""
    parts = []
    if np.isfinite(point["location_drift"]):
        interval = between((float(point["location_low"]), float(point["location_high"])))
        by = "units by" if point["by_units"] else "mean by"
        parts.append(f"{by} {number(float(point['location_drift']))} sd {interval}")
    if np.isfinite(point["scale_drift"]):
        interval = between((float(point["scale_low"]), float(point["scale_high"])))
        parts.append(f"ln sd by {number(float(point['scale_drift']))} {interval}")
    if np.isfinite(point["shape_high"]):
        parts.append(f"distribution by at most {number(float(point['shape_high']))} sd")
    if np.isfinite(point["active_mass"]):
        parts.append(f"active mass {percent(float(point['active_mass']))}")
    return parts


def _sizes(point: dict[str, float]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Size of the drift of each part with its interval, relative to the part's margin, in the unit of that on location.

    Drifts are turned so that they are positive.
    """
    drifts = {
        "location": (point["location_drift"], point["location_low"], point["location_high"]),
        "scale": (point["scale_drift"], point["scale_low"], point["scale_high"]),
        "distribution": (point["shape_shift"], point["shape_low"], point["shape_high"]),
        # The interval is Student's, about the drift.
        "active mass": ((point["mass_low"] + point["mass_high"]) / 2, point["mass_low"], point["mass_high"]),
    }
    sizes = {}
    for part, drift in drifts.items():
        central, *ends = (float(end) * operating_point.LOCATION_MARGIN / _MARGINS[part] for end in drift)
        low, high = ends if central >= 0 else (-ends[1], -ends[0])
        sizes[part] = abs(central), (low, high)
    return sizes


def saturation(recording: xr.DataTree) -> list[Finding]:
    """How much of each tanh or sigmoid works where its derivative is nearly zero; nothing where there are none.

    Rectifiers and their kin are judged by the zeros of their gradient.
    """
    kind = {str(n): str(k) for n, k in _kinds(recording) if k in ("Tanh", "Sigmoid")}
    if not kind:
        return []
    mass = active_mass(recording).sel(layer=list(kind))
    steps = mass["step"].values
    findings = []
    for index, (layer, activation) in enumerate(kind.items()):
        series = 1 - mass.values[:, index]
        known = np.flatnonzero(np.isfinite(series))
        window = slice(int(known[rows.last_window(len(known))][0]), None) if len(known) else slice(0, 0)
        if not len(known):
            reason = f"{quoted(layer)}: no histogram of its input z was recorded"
            findings.append(not_measured("saturation", layer, reason, "histograms_every= with preactivation recorded"))
            continue
        share = float(rows.median(series[window]))
        reason = (
            f"{percent(share)} of its inputs z lie where the derivative of {activation} is below a tenth of its "
            f"maximum; median of the last {plural(int(np.isfinite(series[window]).sum()), 'histogram')}"
        )
        findings.append(conclude(layer, reason, [judge("saturated_share", series, steps, window, _SATURATED)]))
    return findings


def _kinds(recording: xr.DataTree) -> list[tuple[str, str]]:
    layers = rows.group(recording, "layers")
    return list(zip(rows.names(layers).tolist(), rows.names(layers, "activation").tolist(), strict=True))
