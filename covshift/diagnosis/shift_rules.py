"""The rule about shift: whether a layer's distribution moves by more than sampling explains, and whether any does.

A shift is judged after its sampling noise has been taken off. Where that noise cannot be known (batch norm in training
mode) probes or evaluation passes answer, if there are any; else the answer is ``not measured``, not a guess.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from covshift.analysis import rows
from covshift.analysis.inference import MIN_PAIRS
from covshift.diagnosis import streams
from covshift.diagnosis.comparisons import FEWEST_PAIRS, SHIFTS, Comparison, onset_of_squares
from covshift.diagnosis.finding import WHOLE_RUN, Finding, not_measured
from covshift.diagnosis.judgement import Judgement, conclude
from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, plural, quoted
from covshift.exceptions import SignalNotRecorded

LEVEL = 0.05
"""Largest adjusted p-value with which a layer is listed as shifting, or the run is said to have moved."""


def distribution_shift(recording: xr.DataTree, *, trained: xr.Dataset | None = None) -> list[Finding]:
    """Whether each layer's distribution still moves from one histogram to the next, in the last window.

    The noise-corrected squared distance, which is unbiased, is averaged over the pairs of the window, and its root
    reported as an equivalent shift of the mean. Where the bins cannot resolve a layer (mean beyond 8 sd) the squared
    standardised mean difference stands in, less ``2 / n``, the most that sampling ``n`` independent examples can add.
    Units that move against one another, which the pooled distribution hides, are judged by their own means.

    Layers that training rows say nothing of are judged by the probe, else by evaluation passes, where these reach into
    the last window of training. On the same examples there is no sampling noise.

    Where at least ten disjoint pairs were tested, a layer is flagged only if its adjusted p-value (Benjamini and
    Hochberg over the layers) is at most 5 %, too. The finding of the whole run rests on Holm's adjusted p-values, which
    bound the chance of any false statement: it is flagged if some layer passes both 5 % and the threshold.

    ``trained`` is what :func:`covshift.analysis.shift.between_steps` says of this recording, where it is known already.
    """
    compared = _comparisons(recording, trained)
    names = rows.names(rows.group(recording, "layers"))
    ran = (rows.layer_rows(recording, signal="activation")["count"].values > 0).any(axis=0)
    told = np.array([any(one.tells_of(layer) for one in compared) for layer in names.tolist()], dtype=bool)
    layers = names[ran | told].tolist()
    return [_of_run(compared[0]), *(_of_layer(layer, compared, recording) for layer in layers)]


def _comparisons(recording: xr.DataTree, moved: xr.Dataset | None) -> list[Comparison]:
    """Training rows first, where they have histograms."""
    recent = [stream for stream in streams.OTHERS if streams.is_recent(recording, stream, "histograms")]
    try:
        trained = [Comparison.of(recording, "train", moved=moved)]
    except SignalNotRecorded:
        if not recent:
            raise
        trained = []
    return [*trained, *(Comparison.of(recording, stream) for stream in recent)]


def _of_layer(layer: str, compared: list[Comparison], recording: xr.DataTree) -> Finding:
    """The first comparison that comes to a verdict, else the first that has anything to say."""
    findings = [_judged(layer, one) for one in compared if one.tells_of(layer)]
    measured = [finding for finding in findings if finding.verdict != "not measured"]
    if findings:
        return (measured or findings)[0]
    if compared[0].is_tied(layer) and compared[0].known(layer).any():
        return _under_batch_norm(layer, recording)
    return _too_few_pairs(layer, int(compared[0].known(layer).sum()))


def _judged(layer: str, compared: Comparison) -> Finding:
    place, threshold = compared.place[layer], THRESHOLDS["shift"]
    value, interval = compared.size(layer), compared.interval(layer)
    reason = _words(layer, compared, value, interval)
    begun, crossed = onset_of_squares(threshold, compared.steps, compared.squares[:, place])
    units = compared.units.get(layer)
    of_units = None if units is None else units.judgement
    units_move = of_units is not None and of_units.verdict == "watch"
    if of_units is not None and units_move and of_units.interval is not None:
        reason += f"; its units by {number(of_units.value)} sd each {between(of_units.interval)}"
    explained = not compared.same_examples and (interval[0] == 0 or compared.q[place] > LEVEL)
    if threshold.verdict(value) != "ok" and explained and not units_move:
        need = "more pairs or larger batches: sampling alone may explain this"
        return not_measured("shift", layer, f"{quoted(layer)}: {reason}", need, threshold=threshold)
    pooled = Judgement(threshold, 0.0 if explained else value, begun, SHIFTS, interval, crossed=crossed)
    return conclude(layer, reason, [pooled] if of_units is None else [pooled, of_units])


def _words(layer: str, compared: Comparison, value: float, interval: tuple[float, float]) -> str:
    place, row = compared.place[layer], streams.ROW_NAMES[compared.stream]
    pairs, examples = plural(int(compared.known(layer).sum()), "pair"), plural(int(compared.examples[place]), "example")
    gap = plural(int(np.median(np.diff(compared.steps)[compared.window.start - len(compared.steps) :])), "step")
    side = f"on the same {examples}" if compared.same_examples else f"with {examples} a side"
    apart = f"from one {row} to the next, {gap} apart"
    reason = f"moved by {number(value)} sd {between(interval)} {apart}; mean of {pairs} {side}"
    if compared.stream != "train":
        reason += f", in {compared.modes}"
    if compared.off_centre[place]:
        reason += ", by moments: its mean lies beyond 8 sd from 0, or its values outside the bins (6e-8 to 65,536)"
    if math.isfinite(compared.p[place]):
        tests = plural(int(np.isfinite(compared.p).sum()), "test")
        reason += (
            f"; p = {number(float(compared.p[place]))} over {compared.pairs_tested} disjoint pairs, "
            f"{number(float(compared.q[place]))} after Benjamini-Hochberg over {tests}"
        )
    return reason


def _of_run(compared: Comparison) -> Finding:
    """Whether anything moved at all, by Holm's p-values over the layers."""
    tested = np.isfinite(compared.p)
    threshold = THRESHOLDS["run_shift"]
    if not tested.any():
        reason = f"{WHOLE_RUN}: {plural(compared.pairs_tested, 'disjoint pair')} of histograms were tested, of no layer"
        need = (
            f"at least {MIN_PAIRS} disjoint pairs of training histograms ({2 * MIN_PAIRS} histograms) of a layer that "
            "batch norm in training mode does not reach: a longer run or a smaller histograms_every="
        )
        return not_measured("shift", WHOLE_RUN, reason, need, threshold=threshold)
    names = list(compared.place)
    moved = tested & (compared.p_holm <= LEVEL)
    listed = int((tested & (compared.q <= LEVEL)).sum())
    sizes = {names[index]: compared.size(names[index]) for index in np.flatnonzero(moved)}
    known = {name: size for name, size in sizes.items() if math.isfinite(size)}
    said = "something moved" if moved.any() else "nothing is shown to have moved"
    reason = (
        f"{said}: smallest p-value {number(float(np.nanmin(compared.p_holm)))} after Holm over "
        f"{plural(int(tested.sum()), 'test')}, one a layer of {compared.pairs_tested} disjoint pairs; {listed} of them "
        f"at most {number(LEVEL)} after Benjamini-Hochberg"
    )
    if known:
        most = max(known, key=lambda name: known[name])
        reason += f"; of those that moved by Holm's, '{most}' moved most, by {number(known[most])} sd"
    # What moved by less than a small effect is learning; the statement stands, and is no fault.
    value = max(known.values(), default=0.0)
    begun = int(compared.steps[compared.window][0])
    return conclude(WHOLE_RUN, reason, [Judgement(threshold, value, None, SHIFTS, reached_step=begun)])


def _under_batch_norm(layer: str, recording: xr.DataTree) -> Finding:
    reason = (
        f"{quoted(layer)}: batch norm in training mode, here or before, normalises the example groups together, so the "
        "sampling noise of its output is not known"
    )
    have = [stream for stream in streams.OTHERS if streams.is_recorded(recording, stream, "histograms")]
    if "probe" in have:
        needed = (
            f"at least {FEWEST_PAIRS + 1} probes up to the end of training, of this layer too: a smaller probe_every="
        )
    elif have:
        needed = (
            f"at least {FEWEST_PAIRS + 1} evaluation passes through this layer, in eval mode and up to the end of "
            "training; or record(probe=batch)"
        )
    else:
        needed = "record(probe=batch), or evaluation passes in eval mode inside recorder.evaluation()"
    return not_measured("shift", layer, reason, needed)


def _too_few_pairs(layer: str, pairs: int) -> Finding:
    reason = f"{quoted(layer)}: {plural(pairs, 'pair')} of histograms with a known noise floor in the last window"
    need = (
        f"at least {FEWEST_PAIRS} such pairs: a smaller histograms_every=, batches of 2 examples or more, a known "
        "example axis, and an output that is no constant"
    )
    return not_measured("shift", layer, reason, need)
