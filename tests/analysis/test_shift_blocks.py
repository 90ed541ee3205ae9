"""Layers are compared a few at a time; what each layer gets does not depend on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from covshift.analysis import divergence, inference, shift, shift_windows
from covshift.analysis.distribution_functions import ROWS_AT_ONCE, in_blocks
from covshift.analysis.shift_records import Record
from covshift.grid import VALUES

LAYERS = 2 * ROWS_AT_ONCE + 3
EMPTY = (0, ROWS_AT_ONCE, LAYERS - 1)


def record(seed, *, noise_known=True):
    """Layers of ever larger values, some without an element."""
    rng = np.random.default_rng(seed)
    centre = VALUES.zero + 40 + 2 * np.arange(LAYERS)
    groups = np.zeros((LAYERS, 4, VALUES.size), dtype=np.uint32)
    for layer in range(LAYERS):
        groups[layer, :, centre[layer] : centre[layer] + 30] = rng.integers(0, 20, size=(4, 30))
    groups[list(EMPTY)] = 0
    known = np.full(LAYERS, noise_known)
    known[3] = False
    ones = np.ones(LAYERS)
    moments = {"mean": ones * 0, "sd": ones, "n": groups.sum(axis=(1, 2)).astype(float), "n_examples": ones * 8}
    return Record.of(VALUES, groups, moments, known)


def test_blocks_hold_every_row_once_and_none_where_there_is_none():
    chosen = np.arange(LAYERS) % 5 > 0
    blocks = in_blocks(chosen)
    assert max(map(len, blocks)) <= ROWS_AT_ONCE
    np.testing.assert_array_equal(np.concatenate(blocks), np.flatnonzero(chosen))
    assert in_blocks(np.zeros(7, dtype=bool)) == []


def test_noise_and_distances_of_a_layer_are_those_of_it_alone():
    before, now = record(1), record(2)
    found = shift.distances(before, now, VALUES)
    for layer in range(LAYERS):
        counts = [side.groups[layer].sum(axis=0) for side in (before, now)]
        noise = [divergence.cramer_noise(side.groups[layer], VALUES) for side in (before, now)]
        floor = np.hypot(*(divergence.wasserstein1_noise(side.groups[layer], VALUES) for side in (before, now)))
        expected = {
            "w1": divergence.wasserstein1(*counts, VALUES),
            "ks": divergence.kolmogorov_smirnov(*counts, VALUES),
            "js": divergence.jensen_shannon(*counts, VALUES),
            "u_noise": sum(noise),
            "u": divergence.cramer(*counts, VALUES) - sum(noise),
            "noise_floor": floor,
        }
        for name, value in expected.items():
            assert found[name][layer] == pytest.approx(value, rel=1e-12, abs=1e-12, nan_ok=True)
        assert np.isnan(found["w1"][layer]) == (layer in EMPTY)


def test_relabelled_distances_of_a_layer_are_those_of_it_alone_and_nan_where_noise_is_unknown():
    before, now = record(1), record(2)
    found = shift_windows.relabelled(before, now, VALUES)
    ways = inference.relabellings(4)
    for layer in range(LAYERS):
        expected = divergence.relabelled_cramer(before.groups[layer], now.groups[layer], ways, VALUES)
        expected = expected * np.nan if layer == 3 else expected
        np.testing.assert_allclose(found[:, layer], expected, rtol=1e-9, atol=1e-12)
    nothing = shift_windows.relabelled(record(1, noise_known=False), now, VALUES)
    assert np.isnan(nothing).all()
