"""Which layer of one run stands beside which of another: layers of one kind, by name, or by depth where names mislead.

A name alone does not make a layer: a module inserted into an ``nn.Sequential`` moves the numbers of all behind it. It
refuses to pair layers of different kinds, whatever they are called.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import xarray as xr

from covshift.analysis import rows

SHARED_NAMES = 0.5
"""Least share of the smaller run's layers that both must have, by name and kind, for names to be trusted."""

INPUT = "input"
MOST_NAMED = 3
"""Runs that the note names before it counts."""

_Kinds = dict[str, str]


@dataclass(frozen=True)
class Matching:
    """Names under which layers of several runs are compared.

    Attributes
    ----------
    names : dict of str to dict of str to str
        Name to compare under, by run and layer, from the input side.
    by_depth : dict of str to int
        Runs that were matched to the first by depth, and how many of their layers it has.
    layers : list of str
        All names to compare under, from the input side; the same whichever run comes first.
    alone : int
        How many of ``layers`` some run lacks.
    """

    names: dict[str, dict[str, str]]
    by_depth: dict[str, int]
    layers: list[str]
    alone: int

    @property
    def note(self) -> str:
        """How layers were paired and how many lack a counterpart, in words."""
        told = [f"{run} ({count} of {len(self.names[run])})" for run, count in list(self.by_depth.items())[:MOST_NAMED]]
        more = len(self.by_depth) - len(told)
        parts = ["Layers of one kind are paired by name"]
        if told:
            runs = ", ".join(told) + (f" and {more} more" if more else "")
            parts.append(
                f", but by order of depth within each kind in {runs}, whose names are not those of the first run"
            )
        verb = "is" if self.alone == 1 else "are"
        parts.append(f"; {self.alone} of {len(self.layers)} {verb} not in every run." if self.alone else ".")
        return "".join(parts)


def matched_layers(recordings: Mapping[str, xr.DataTree], *, stream: str = "train") -> Matching:
    """What each layer of each run is called where runs are compared.

    Layers pair only within a kind: nonlinearities, linked units among them, are one, normalizations another, any other
    type of module is its own. A run whose names agree with those of an earlier one has the names of that. In another,
    the k-th layer of a kind by depth takes the name of the k-th known so far. What is left over keeps its own name,
    with its type where that name stands for another layer.

    Names agree where at least half of the smaller run's layers are in both by name and kind. Where a number, the place
    in a container, stands for another kind, names have to pair as many layers as depth does, too.

    Parameters
    ----------
    recordings : mapping of str to DataTree
        Runs by name.
    stream : {"train", "evaluation", "probe"}
        Whose layers.
    """
    types = {run: _types(rows.group(recording, "layers", stream=stream)) for run, recording in recordings.items()}
    kinds = {run: {name: kind for name, (kind, _) in told.items()} for run, told in types.items()}
    names: dict[str, dict[str, str]] = {}
    known: _Kinds = {}
    apart: list[str] = []
    for run, own in kinds.items():
        like = next((other for other in names if _agree(own, kinds[other])), None)
        by_depth = bool(names) and (like is None or like in apart)
        if like is None:
            pairs = _by_depth(own, known)
        else:
            pairs = {name: names[like][name] for name, kind in own.items() if kinds[like].get(name) == kind}
        for name, kind in own.items():
            if name not in pairs:
                pairs[name] = _own_name(name, kind, known, type_=types[run][name][1], run=run, by_depth=by_depth)
            known.setdefault(pairs[name], kind)
        names[run] = {name: pairs[name] for name in own}
        apart += [run] * by_depth
    return _matching(names, apart)


def _matching(names: dict[str, dict[str, str]], apart: Sequence[str]) -> Matching:
    sequences = [list(of_run.values()) for of_run in names.values()]
    first = set(sequences[0]) if sequences else set()
    counts = Counter(name for sequence in sequences for name in sequence)
    return Matching(
        names,
        {run: len(first & set(names[run].values())) for run in apart},
        merged_order(sequences),
        sum(count < len(sequences) for count in counts.values()),
    )


def merged_order(sequences: Sequence[Sequence[str]]) -> list[str]:
    """One order of all names that keeps that of every sequence, whichever sequence comes first.

    What no sequence orders goes by its mean relative place, then by name; so does what sequences contradict.

    Examples
    --------
    >>> merged_order([["conv", "act", "head"], ["conv", "norm", "act", "head"]])
    ['conv', 'norm', 'act', 'head']
    """
    places: dict[str, list[float]] = {}
    following: dict[str, set[str]] = {}
    for sequence in sequences:
        for at, name in enumerate(sequence):
            places.setdefault(name, []).append(at / len(sequence))
            following.setdefault(name, set()).update(sequence[at + 1 : at + 2])
    ranks = {name: (fmean(found), name) for name, found in places.items()}
    before = Counter(name for names in following.values() for name in names)
    free = [ranks[name] for name in ranks if not before[name]]
    heapq.heapify(free)
    waiting = dict.fromkeys(sorted(ranks, key=ranks.__getitem__))
    ordered: list[str] = []
    while waiting:
        name = heapq.heappop(free)[1] if free else next(iter(waiting))
        del waiting[name]
        ordered.append(name)
        for later in following[name] & waiting.keys():
            before[later] -= 1
            if not before[later]:
                heapq.heappush(free, ranks[later])
    return ordered


def _types(layers: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Kind and type of every layer, in the order of depth."""
    order = np.argsort(layers["depth"].values, kind="stable")
    columns = (rows.names(layers), rows.names(layers, "module_type"), rows.nonlinear(layers))
    names, types, nonlinear = (column[order].tolist() for column in columns)
    return {name: (_kind(type_, is_one), type_) for name, type_, is_one in zip(names, types, nonlinear, strict=True)}


def _kind(module_type: str, nonlinear: bool) -> str:
    if nonlinear:
        return "nonlinearity"
    return "normalization" if "Norm" in module_type else module_type.removeprefix("Parametrized")


def _agree(own: _Kinds, other: _Kinds) -> bool:
    """Whether the same name stands for the same layer in two runs."""
    shared = [name for name, kind in own.items() if name in other and kind != INPUT]
    same = [name for name in shared if own[name] == other[name]]
    counts, others = (Counter(kind for kind in one.values() if kind != INPUT) for one in (own, other))
    if len(same) < SHARED_NAMES * min(counts.total(), others.total()):
        return False
    moved = any(name.rpartition(".")[2].isdigit() for name in shared if own[name] != other[name])
    return not moved or len(same) >= (counts & others).total()


def _by_depth(own: _Kinds, known: _Kinds) -> dict[str, str]:
    """The k-th layer of each kind beside the k-th known one."""
    pairs: dict[str, str] = {}
    for kind in dict.fromkeys(own.values()):
        here, there = ([name for name, of in one.items() if of == kind] for one in (own, known))
        pairs.update(zip(here, there, strict=False))
    return pairs


def _own_name(name: str, kind: str, known: _Kinds, *, type_: str, run: str, by_depth: bool) -> str:
    """A name for a layer without a counterpart that no other layer has."""
    if not by_depth and known.get(name, kind) == kind:
        return name
    told = f"{name} ({type_})"
    return told if told not in known else f"{name} ({type_} of {run})"
