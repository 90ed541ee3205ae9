"""Linkage on data: how often no member of a unit has a derivative, set against all zeros of the gradient.

A linkage keeps a unit live where at least one member's derivative is not zero. Only structural zeros (every member's
derivative zero, known in closed form from z) can violate that; max-pooling, dropout and underflow also make gradients
zero and are no fault of the linkage. This room separates the two as far as counts allow and attributes no cause to the
rest.

References
----------
C. R. Riera Molina & O. Pujol Vila, Solving internal covariate shift in deep learning with linked neurons (2017), for
the condition. It is stated here per element of z: the condition makes a gradient possible, not non-zero.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from covshift.analysis import rows
from covshift.exceptions import SignalNotRecorded

_COUNTS = ["count", "zero_count", "nan_count", "posinf_count", "neginf_count"]


def violation_rate(recording: xr.DataTree, *, stream: str = "train") -> xr.Dataset:
    """Structural zeros of every nonlinearity, against all zeros of the gradient with respect to its input z.

    Parameters
    ----------
    recording : DataTree
        Needs the group ``layers``.
    stream : {"train", "evaluation", "probe"}
        Which rows.

    Returns
    -------
    Dataset
        Dims ``(step, layer)``, the layers being the nonlinearities; rates in [0, 1], NaN where z, or for zeros of the
        gradient the gradient, has no finite element.

        ``structural_rate``
            Share of z at which every member's derivative is zero; the violation rate of a linkage. NaN where the
            derivative has no closed form here or z was not recorded.
        ``zero_atom_rate``
            Share of z that is exactly 0, where linked ReLU units fail.
        ``gradient_zero_rate``
            Share of dL/dz that is exactly 0; NaN where no gradient was recorded.
        ``other_rate``
            Gradient zeros that are not structural: masked, underflowed or cancelled. NaN where the two cannot be
            split.
        ``not_split``
            True where both rates are known but their difference is not a share of zeros: z has another consumer, or
            the gradient covers other elements than z.

    Raises
    ------
    SignalNotRecorded
        If the recording holds no nonlinearity, or no pre-activation of one.
    """
    chosen = rows.nonlinearities(rows.group(recording, "layers", stream=stream))
    z = rows.layer_rows(recording, signal="preactivation", stream=stream).isel(layer=chosen)
    gradient = _gradient(recording, z, stream)
    elements, gradient_elements = (
        np.where(rows.finite_count(part) > 0, part["count"].values.astype(np.float64), 0.0) for part in (z, gradient)
    )
    atoms, gradient_zeros = (part["zero_count"].values.astype(np.float64) for part in (z, gradient))
    zeros = np.where(z["structural_measured"].values == 1, z["structural_zero_count"].values, np.nan)
    other = gradient_zeros - zeros
    known = np.isfinite(zeros) & (elements > 0) & (gradient_elements > 0)
    split = known & (other >= 0) & (gradient_elements == elements)
    columns = {
        "structural_rate": rows.ratio(zeros, elements),
        "zero_atom_rate": rows.ratio(atoms, elements),
        "gradient_zero_rate": rows.ratio(gradient_zeros, gradient_elements),
        "other_rate": rows.ratio(np.where(split, other, np.nan), elements),
        "not_split": known & ~split,
    }
    coords = {"step": z["step"], "layer": z["layer"]}
    rates = xr.Dataset({name: (("step", "layer"), column) for name, column in columns.items()}, coords)
    return rates.reset_coords(drop=True)


def silent_members(recording: xr.DataTree, *, stream: str = "evaluation") -> xr.Dataset:
    """Linked units of which some, or all, members were silent in the last record.

    One silent member of a mirror linkage means that z kept one sign: a linear unit, not a dead one.

    Parameters
    ----------
    recording : DataTree
        Needs the groups ``units`` and ``layers``.
    stream : {"train", "evaluation", "probe"}
        Which rows; an evaluation pass makes the counts an exact statement about its examples.

    Returns
    -------
    Dataset
        Dims ``(layer,)``, the layers being the linkages: ``linked_units`` recorded, those with ``one_member_silent``
        (at least one but not all), those with ``all_members_silent``, and ``examples`` of the record.

    Raises
    ------
    SignalNotRecorded
        If no units were recorded, or no layer is a linkage.
    """
    units = rows.group(recording, "units", stream=stream)
    owners = rows.layer_rows(recording, signal="activation", stream=stream)
    linkages = np.flatnonzero(owners["linkage_members"].values > 0)
    if not len(linkages):
        raise SignalNotRecorded("recording: no layer is a linkage; linked modules announce linkage_members")
    here = units.sel(signal="activation")
    recorded, active = (here[name].values > 0 for name in ("unit_count", "unit_active_examples"))
    examples = owners["example_count"].reindex(step=units["step"], fill_value=0).values
    owner, linked = units["layer_index"].values, units["linked_unit"].values
    columns = [_members(recorded, active, (owner == layer) & (linked >= 0), linked) for layer in linkages]
    seen = [examples[last, layer] if last >= 0 else 0 for layer, (last, *_) in zip(linkages, columns, strict=True)]
    table = np.array([counts for _, *counts in columns], dtype=np.int64).T
    return xr.Dataset(
        {
            "linked_units": ("layer", table[0]),
            "one_member_silent": ("layer", table[1]),
            "all_members_silent": ("layer", table[2]),
            "examples": ("layer", np.array(seen, dtype=np.int64)),
        },
        coords={"layer": rows.names(owners)[linkages]},
    )


def _gradient(recording: xr.DataTree, z: xr.Dataset, stream: str) -> xr.Dataset:
    """Counts of dL/dz at the layers of ``z``, 0 everywhere if no gradient was recorded."""
    try:
        gradient = rows.layer_rows(recording, signal="preactivation_grad", stream=stream)
    except SignalNotRecorded:
        return z[_COUNTS] * 0
    return gradient[_COUNTS].sel(layer=z["layer"])


def _members(
    recorded: np.ndarray, active: np.ndarray, columns: np.ndarray, linked: np.ndarray
) -> tuple[int, int, int, int]:
    """Position of the linkage's last record (-1 none), its linked units, those partly and those wholly silent."""
    steps = np.flatnonzero(recorded[:, columns].any(axis=1))
    if not len(steps):
        return -1, 0, 0, 0
    member = linked[columns]
    members = np.bincount(member)
    firing = np.bincount(member, active[steps[-1], columns])
    return int(steps[-1]), len(members), int(((firing > 0) & (firing < members)).sum()), int((firing == 0).sum())
