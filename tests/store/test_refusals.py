"""Rows, declarations and attributes that would have to be guessed are refused, and nothing of them is taken."""

import dataclasses

import numpy as np
import pytest

from covshift import store
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Layer, Parameter, Row, SparseCounts
from covshift.store import Writer


@pytest.mark.parametrize("steps", [(5, 5), (5, 4)])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_step_must_come_after_the_last_of_its_group_also_after_a_flush(a_layer, counts_row, steps, at_once):
    first, second = (counts_row(step) for step in steps)
    elsewhere = dataclasses.replace(counts_row(5), group="evaluation/layers")
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer()])
        if not at_once:
            recording.append([first])
            recording.flush()
        with pytest.raises(InvalidArgumentError, match=f"layers: step={second.step}: expected a step after 5"):
            recording.append([first, second] if at_once else [elsewhere, second])
        assert recording.buffered_bytes == 0
        recording.append([dataclasses.replace(second, step=6), elsewhere])
    assert store.open(recording.target)["layers"].step.values[-1] == 6


BIG = np.zeros((2, 2), dtype="i8")
BIG[1, 0] = 2**32


REFUSED = {
    "unknown group": (Row("layer", 0, {}), "group='layer': expected one of layers, histograms"),
    "no evaluation scalars": (Row("evaluation/scalars", 0, {}), "expected one of layers"),
    "negative step": (Row("layers", -1, {}), "step=-1: expected an integer, 0 or more"),
    "fractional step": (Row("layers", 1.5, {}), "step=1.5: expected an integer"),
    "unknown variable": (
        Row("layers", 0, {"mean": np.zeros((2, 5))}),
        "unknown variable 'mean': expected some of count",
    ),
    "undeclared layers": (
        Row("layers", 0, {"sum": np.zeros((3, 5))}),
        r"shape \(3, 5\): expected \(layer <= 2, signal = 5\)",
    ),
    "missing signals": (Row("layers", 0, {"sum": np.zeros((2, 2))}), "layers/sum: shape"),
    "missing axis": (Row("layers", 0, {"sum": np.zeros(2)}), "layers and parameters are declared before"),
    "scalar array": (Row("scalars", 0, {"loss": np.zeros(1)}), r"scalars/loss: shape \(1,\): expected \(\)"),
    "text scalar": (Row("scalars", 0, {"loss": np.array("low")}), "scalars/loss: dtype <U3"),
    "no value": (Row("scalars", 0, {"loss": None}), "dtype object: expected float64"),
    "scalar with a slash": (Row("scalars", 0, {"a/b": np.float64(1)}), "'a/b' cannot be stored"),
    "fractional count": (Row("layers", 0, {"count": np.zeros((2, 5))}), "layers/count: dtype float64: expected uint64"),
    "negative count": (Row("layers", 0, {"count": np.full((2, 5), -3)}), "-3 for layer 'a' does not fit uint64"),
    "count of a unit": (
        Row("units", 0, {"unit_count": BIG}),
        "for unit 0 of layer 'b' does not fit uint32",
    ),
    "count of a parameter": (
        Row("parameters", 0, {"gradient_zero_count": np.array([-1])}),
        "parameters/gradient_zero_count: -1 for parameter 'w' does not fit uint64",
    ),
    "dense histogram count": (
        Row("histograms", 0, {"gradient_histogram": np.full((2, 2, 1024), 2**32)}),
        "histograms/gradient_histogram: 4294967296 for layer 'a' does not fit uint32: expected 0 to 4294967295",
    ),
    "sparse histogram count": (
        Row(
            "histograms",
            0,
            {"value_histogram": SparseCounts((2, 3, 4, 648), np.array([1, 8000]), np.array([1, 2**32]))},
        ),
        "histograms/value_histogram: 4294967296 for layer 'b' does not fit uint32",
    ),
    "sparse index outside": (
        Row("histograms", 0, {"value_histogram": SparseCounts((1, 3, 4, 648), np.array([7776]), np.array([1]))}),
        "indices 7776 to 7776: expected 0 to 7775",
    ),
    "sparse index and counts of two lengths": (
        Row("histograms", 0, {"value_histogram": SparseCounts((1, 3, 4, 648), np.array([1, 2]), np.array([1]))}),
        "expected one integer index per count",
    ),
    "sparse moments": (
        Row("layers", 0, {"sum": SparseCounts((1, 5), np.array([0]), np.array([1]))}),
        "layers/sum: SparseCounts came: expected an array",
    ),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_have_to_be_guessed_or_wrapped_is_refused_and_nothing_taken(a_layer, counts_row, row, message):
    with Writer(None, attrs={}) as recording:
        recording.declare_layers([a_layer("a", unit_count=1), a_layer("b", unit_count=2)])
        recording.declare_parameters([Parameter("w", 3, 1)])
        with pytest.raises(InvalidArgumentError, match=message):
            recording.append([counts_row(0), row])
        assert recording.buffered_bytes == 0


@pytest.mark.parametrize(
    ("declare", "one"), [("declare_layers", Layer("fc", "Linear", 0)), ("declare_parameters", Parameter("fc", 1, 1))]
)
def test_a_name_is_declared_once_and_a_refused_declaration_declares_nothing(declare, one):
    other = dataclasses.replace(one, name="other")
    with Writer(None, attrs={}) as recording:
        with pytest.raises(InvalidArgumentError, match="'fc' is declared twice"):
            getattr(recording, declare)([other, one, one])
        getattr(recording, declare)([one])
        with pytest.raises(InvalidArgumentError, match="'fc' is declared twice"):
            getattr(recording, declare)([one])
        getattr(recording, declare)([other])


def test_a_negative_unit_count_is_refused(a_layer):
    with Writer(None, attrs={}) as recording, pytest.raises(InvalidArgumentError, match="'fc': unit_count=-1"):
        recording.declare_layers([a_layer(unit_count=-1)])


@pytest.mark.parametrize("name", ["Conventions", "covshift_schema_version", "covshift_commit"])
def test_attributes_that_the_writer_sets_are_refused(name):
    with pytest.raises(InvalidArgumentError, match=f"{name} are set by the writer"):
        Writer(None, attrs={name: 1})


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), {1, 2}])
def test_attributes_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InvalidArgumentError, match="attrs cannot be stored as JSON"):
        Writer(tmp_path / "run", attrs={"seed": value})
    assert not list(tmp_path.iterdir())
