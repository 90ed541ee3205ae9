"""Any piece of the commit record replaced by nonsense: the recording is read, or refused in one line of covshift's."""

import json
import warnings

import numpy as np
import pytest

from covshift import store
from covshift.exceptions import RecordingError
from covshift.schema import Layer, Parameter, Row
from covshift.store import Writer
from covshift.store.recovery import recover

NONSENSE = (None, -7, "nonsense", {}, [1, "x"])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    with Writer(tmp_path_factory.mktemp("damage") / "run", attrs={"covshift_model": {"a": "Linear"}}) as writer:
        writer.declare_layers([Layer("fc", "Linear", 0, unit_count=2)])
        writer.declare_parameters([Parameter("w", 3, 2)])
        for step in range(3):
            writer.append([Row("layers", step, {"count": np.full((1, 5), 3, "u8")})])
            writer.append([Row("scalars", step, {"loss": np.float64(1)}), Row("parameters", step, {})])
    return writer.path


def places(document, trail=()):
    """Every place in a JSON document, lists by their first entry."""
    yield trail
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*trail, key))
    elif isinstance(document, list) and document:
        yield from places(document[0], (*trail, 0))


def replaced(document, trail, value):
    copy = json.loads(json.dumps(document))
    if not trail:
        return value
    inner = copy
    for key in trail[:-1]:
        inner = inner[key]
    inner[trail[-1]] = value
    return copy


def of_interest(trail):
    """The attributes, and of the many arrays one of each kind."""
    arrays = {"layers", "layers/count", "layers/step"}
    return len(trail) < 3 or trail[0] == "attributes" or trail[2] in arrays


def attempt(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except RecordingError as error:
            refusal = error
        else:
            return None
    assert refusal.__cause__ is None
    assert len(str(refusal)) < 2000
    return str(refusal)


@pytest.mark.slow
def test_no_damage_to_the_commit_record_ends_in_a_librarys_own_error(path):
    original = json.loads((path / "zarr.json").read_text())
    refused = 0
    for trail in filter(of_interest, places(original)):
        for value in NONSENSE:
            (path / "zarr.json").write_text(json.dumps(replaced(original, trail, value)))
            told = [attempt(lambda: store.open(path)), attempt(lambda: resumed(path))]
            refused += any(told)
    (path / "zarr.json").write_text(json.dumps(original))
    assert refused > 200
    assert store.open(path)["layers"].sizes["step"] == 3


def resumed(path):
    writer = Writer(path, attrs={}, resume=True)
    writer._opened.release()
    writer._folding.end()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', '{"attributes": 3}', "\x00\x01", "{}"])
def test_a_root_that_is_no_json_object_is_refused_and_recovered(path, text):
    original = (path / "zarr.json").read_bytes()
    (path / "zarr.json").write_text(text)
    try:
        assert str(path) in attempt(lambda: store.open(path))
        recover(path)
        assert store.open(path)["layers"].sizes["step"] == 3
    finally:
        (path / "zarr.json").write_bytes(original)
