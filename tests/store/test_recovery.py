"""Journals cut and flipped, gaps, full disks, damaged roots: what is whole is kept, nothing is doubled or invented."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from covshift import store
from covshift.exceptions import CovshiftWarning, RecordingDamaged, RecordingError, StoreLocked
from covshift.schema import Layer, Parameter, Row
from covshift.store import Writer, endings, journal
from covshift.store.recovery import recover


def row(step):
    return Row("layers", step, {"count": np.full((1, 5), step + 1, "u8")})


def left_open(path, records, *, folded=0):
    """A recording whose writer was killed with ``records - folded`` records in the journal."""
    writer = Writer(path, attrs={}, background=False)
    writer.declare_layers([Layer("fc", "Linear", 0, unit_count=1)])
    writer.declare_parameters([Parameter("w", 3, 2)])
    for step in range(records):
        writer.append([row(step)])
        if step + 1 == folded:
            writer.flush()
    writer._opened.release()
    endings.dismiss(writer)
    return writer.path


def segments(path):
    return sorted((path / ".covshift").glob("journal-*"))


def steps(path):
    return store.open(path)["layers"].step.values.tolist()


def resumed(path):
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(10_000)
    return xr.open_datatree(path)["layers"]


def assert_whole(layers, count):
    assert layers.step.values.tolist() == list(range(count))
    np.testing.assert_array_equal(layers["count"].values[:, :1, 0].ravel(), np.arange(1, count + 1))


def test_a_journal_cut_at_any_byte_gives_the_whole_records_before_the_cut_without_a_word(tmp_path):
    path = left_open(tmp_path / "run", 4)
    (segment,) = segments(path)
    data = segment.read_bytes()
    frames = data.split(b"CVJ1")[1:]
    ends = np.cumsum([len(frame) + 4 for frame in frames])
    life = f"{json.loads((path / 'zarr.json').read_text())['attributes']['run_id']}-0"
    for cut in range(len(data)):
        segment.write_bytes(data[:cut])
        tail = journal.tail(path / ".covshift", {}, life=life)
        whole = max(0, int((ends <= cut).sum()) - 1)
        assert [one.row.step for one in tail.rows.get("layers", [])] == list(range(whole)), cut
        assert not tail.damaged + tail.gaps
    for cut in (0, 10, int(ends[0]), int(ends[1]) + 5, len(data) - 1):
        copy = shutil.copytree(path, tmp_path / f"cut{cut}.zarr")
        (copy / ".covshift" / segment.name).write_bytes(data[:cut])
        assert len(steps(copy)) == max(0, int((ends <= cut).sum()) - 1)
        assert_whole(resumed(copy), max(0, int((ends <= cut).sum()) - 1))
        assert not segments(copy)


def test_a_flipped_bit_costs_the_records_behind_it_and_is_reported(tmp_path):
    path = left_open(tmp_path / "run", 4)
    (segment,) = segments(path)
    data = segment.read_bytes()
    ends = np.cumsum([len(frame) + 4 for frame in data.split(b"CVJ1")[1:]])
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(data), 60).tolist(), int(ends[0]), int(ends[2]) + 4, len(data) - 1]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        segment.write_bytes(damaged)
        with pytest.warns(CovshiftWarning, match="damaged"):
            found = steps(path)
        assert len(found) == max(0, int((ends <= position).sum()) - 1), position
    with pytest.warns(CovshiftWarning, match="kept in"):
        assert_whole(resumed(path), 3)
    (aside,) = (path / ".covshift").glob("set-aside-*")
    assert [file.read_bytes() for file in aside.iterdir()] == [bytes(damaged)]


def test_two_journals_are_both_folded(tmp_path):
    path = left_open(tmp_path / "run", 3)
    saved = segments(path)[0].read_bytes()
    with Writer(path, attrs={}, resume=True) as writer:
        writer.resume_at(3)
        writer.declare_layers([Layer("fc", "Linear", 0, unit_count=1)])
        writer.append([row(3)])
        writer._opened.release()
        (path / ".covshift/journal-000000000001").write_bytes(saved)
        assert len(segments(path)) == 2
        assert steps(path) == [0, 1, 2, 3]
    copy = left_open(tmp_path / "other", 3)
    first = segments(copy)[0]
    lines = first.read_bytes().split(b"CVJ1")
    (copy / ".covshift/journal-000000000001").write_bytes(b"CVJ1".join([b"", lines[1], lines[4]]))
    first.write_bytes(b"CVJ1".join(lines[:4]))
    assert steps(copy) == [0, 1, 2]
    assert_whole(resumed(copy), 3)


def test_a_gap_before_a_journal_is_an_error_that_deletes_nothing_and_recover_sets_the_rest_aside(tmp_path):
    path = left_open(tmp_path / "run", 3)
    first = segments(path)[0]
    lines = first.read_bytes().split(b"CVJ1")
    first.write_bytes(b"CVJ1".join([b"", lines[1], lines[2], lines[4]]))
    before = first.read_bytes()
    with pytest.warns(CovshiftWarning, match="continues 'layers' at record 2, but 1 are there"):
        assert steps(path) == [0]
    with pytest.raises(RecordingDamaged, match="record 2, but 1 are there.*`covshift recover` keeps what is whole"):
        Writer(path, attrs={}, resume=True)
    assert first.read_bytes() == before
    recovery = recover(path)
    assert recovery.records == {"layers": 1}
    assert [file.read_bytes() for file in recovery.set_aside.iterdir()] == [before]
    assert_whole(resumed(path), 1)


def test_a_journal_of_another_recording_or_an_earlier_attempt_is_never_folded(tmp_path):
    path = left_open(tmp_path / "run", 5)
    stale = segments(path)[0].read_bytes()
    Writer(path, attrs={}, overwrite=True).close()
    (path / ".covshift/journal-000000000007").write_bytes(stale)
    assert steps(path) == []
    assert resumed(path).sizes["step"] == 0


def test_recovery_folds_the_journal_and_closes(tmp_path):
    path = left_open(tmp_path / "run", 5, folded=2)
    assert xr.open_datatree(path)["layers"].sizes["step"] == 2
    recovery = recover(path)
    assert (recovery.folded, recovery.records, recovery.set_aside) == ({"layers": 3}, {"layers": 5}, None)
    assert_whole(xr.open_datatree(path)["layers"], 5)
    assert store.open(path).attrs["covshift_commit"]["closed"] is True
    assert recover(path).folded == {}


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "no consolidated metadata", "no commit"])
def test_recovery_restores_a_damaged_root_from_its_copy(tmp_path, damage):
    path = left_open(tmp_path / "run", 5, folded=3)
    root = path / "zarr.json"
    document = json.loads(root.read_text())
    if damage == "gone":
        root.unlink()
    elif damage.startswith("no"):
        {"no consolidated metadata": document, "no commit": document["attributes"]}[damage].pop(
            {"no consolidated metadata": "consolidated_metadata", "no commit": "covshift_commit"}[damage]
        )
        root.write_text(json.dumps(document))
    else:
        root.write_bytes(root.read_bytes()[: 0 if damage == "empty" else 1000])
    if damage != "no commit":
        with pytest.raises(RecordingError):
            store.open(path)
    recovery = recover(path)
    assert any("restored from .covshift/root.json" in note for note in recovery.notes)
    assert_whole(xr.open_datatree(path)["layers"], 5)


def test_a_root_and_its_copy_both_gone_are_said_to_be(tmp_path):
    path = left_open(tmp_path / "run", 1)
    for name in ("zarr.json", ".covshift/root.json"):
        (path / name).write_text("{")
    with pytest.raises(RecordingDamaged, match="cannot be repaired.*restore it from a copy"):
        recover(path)
    with pytest.raises(RecordingError, match="no recording at"):
        recover(tmp_path / "nothing")


def test_recovery_refuses_a_recording_that_is_being_written_or_of_a_newer_schema(tmp_path):
    writer = Writer(tmp_path / "run", attrs={})
    with pytest.raises(StoreLocked, match="by pid .*, a recorder of this very process: leave its with"):
        recover(writer.path)
    writer.close()
    root = json.loads((writer.path / "zarr.json").read_text())
    root["attributes"]["covshift_schema_version"] = 99
    (writer.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(RecordingDamaged, match="schema version 99 is newer"):
        recover(writer.path)


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    path = left_open(tmp_path / "run", 3, folded=3)
    (path / "layers/count/c/0/0/0.123.partial").write_bytes(b"half")
    (path / "layers/count/c/7/0").mkdir(parents=True)
    (path / "layers/count/c/7/0/0").write_bytes(b"beyond the commit")
    assert_whole(resumed(path), 3)
    assert not list(path.rglob("*.partial"))
    assert sorted(child.name for child in (path / "layers/count/c").iterdir()) == ["0"]


def test_a_flipped_bit_in_a_chunk_or_an_index_is_an_error_never_a_silent_number(tmp_path):
    with Writer(tmp_path / "run", attrs={}) as writer:
        writer.declare_layers([Layer("fc", "Linear", 0)])
        for step in range(70):
            writer.append([row(step)])
    shard = writer.path / "layers/count/c/0/0/0"
    data = shard.read_bytes()
    expected = xr.open_datatree(writer.path)["layers/count"].values
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(data), 60).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        shard.write_bytes(damaged)
        try:
            found = store.open(writer.path)["layers/count"].values
        except (ValueError, RuntimeError, OSError):
            continue
        # A bit in the waste that a superseded copy of a chunk left behind.
        np.testing.assert_array_equal(found, expected)


ON_A_FULL_DISK = """
import sys, warnings
import numpy as np
from covshift.exceptions import RecordingError
from covshift.schema import Layer, Row
from covshift.store import Writer

warnings.simplefilter("ignore")
path, limit, place, background = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
writer = Writer(path, attrs={}, flush_records=8, background=background)
writer.declare_layers([Layer(f"fc{k}", "Linear", k) for k in range(40)])
taken, refused = [], 0
if place == "file":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
for step in range(400):
    try:
        writer.append([Row("layers", step, {"sum": np.full((40, 5), step) + rng.random((40, 5)) * 0.5})])
        taken.append(step)
    except RecordingError as error:
        assert "the record was not taken" in str(error), error
        refused += 1
        if refused == 20:
            break
writer._folding.wait()
print("full", refused, taken[-1] if taken else -1, flush=True)
sys.stdin.readline()
if place == "file":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for step in range(1000, 1010):
    writer.append([Row("layers", step, {"sum": np.full((40, 5), step) + 0.25})])
    taken.append(step)
writer.close()
print(*taken)
"""


def fill_up(path, limit, place, background, *, before=(), release):
    words = [*before, sys.executable, "-c", ON_A_FULL_DISK, path, str(limit), place, str(background)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    report = process.stdout.readline()
    if not report.startswith("full"):
        raise AssertionError(process.communicate()[1])
    whilst = store.open(path)["layers"].sizes["step"] if not before else None
    release()
    output, errors = process.communicate("go\n", timeout=120)
    assert process.returncode == 0, errors
    return int(report.split()[1]), int(report.split()[2]), whilst, [int(step) for step in output.split()]


@pytest.mark.skipif(os.name != "posix", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("limit", [5_000, 25_000, 50_000])
def test_a_file_that_may_not_grow_refuses_records_loudly_and_loses_and_doubles_none(tmp_path, limit, background):
    path = tmp_path / "run.zarr"
    refused, last, whilst, taken = fill_up(path, limit, "file", background, release=lambda: None)
    assert refused > 0 or last == 399
    assert whilst == last + 1 or refused
    for tree in (store.open(path), xr.open_datatree(path)):
        layers = tree["layers"]
        assert layers.step.values.tolist() == taken
        np.testing.assert_array_equal(np.floor(layers["sum"][:, 0, 0]), taken)


ENDED = """
import os, signal, sys
import numpy as np
from covshift.schema import Layer, Row
from covshift.store import Writer
writer = Writer(sys.argv[1], attrs={})
writer.declare_layers([Layer("fc", "Linear", 0)])
for step in range(5):
    writer.append([Row("layers", step, {"count": np.full((1, 5), step + 1, "u8")})])
if sys.argv[2] == "SIGTERM":
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("ending", "code"), [("exit", 0), ("SIGTERM", -15)])
def test_a_writer_left_open_is_closed_when_its_process_ends_or_is_terminated(tmp_path, ending, code):
    words = [sys.executable, "-c", ENDED, tmp_path / "run.zarr", ending]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(Path(tmp_path / "run.zarr"))
    assert_whole(tree["layers"], 5)
    assert tree.attrs["covshift_commit"]["closed"] is True


def test_the_handler_for_sigterm_leaves_with_the_last_writer_and_a_users_own_is_never_touched(tmp_path):
    first, second = Writer(tmp_path / "a", attrs={}), Writer(tmp_path / "b", attrs={})
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    first.close()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    second.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        Writer(tmp_path / "c", attrs={}).close()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_declaring_nothing_begins_no_segment_and_something_begins_one_that_knows_it(tmp_path):
    writer = Writer(tmp_path / "run", attrs={}, background=False)
    for step in range(6):
        writer.declare_layers([Layer("late", "Linear", 1)] if step == 3 else [])
        writer.append([Row("layers", step, {})])
    assert len(segments(writer.path)) == 2
    assert store.open(writer.path)["layers"].layer.values.tolist() == ["late"]
    writer.close()
    assert not segments(writer.path)


ON_TMPFS = """
import subprocess, sys
folder, python, code, *words = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", folder], check=True)
process = subprocess.Popen([python, "-c", code, folder + "/run.zarr", *words], stdin=-1, stdout=-1, text=True)
print(process.stdout.readline(), end="", flush=True)
subprocess.run(["mount", "-o", "remount,size=50m", folder], check=True)
print(process.communicate("go\\n")[0], end="", flush=True)
from covshift import store
import xarray as xr
for tree in (store.open(folder + "/run.zarr"), xr.open_datatree(folder + "/run.zarr")):
    print(*tree["layers"].step.values.tolist())
    print(*tree["layers/sum"].values[:, 0, 0].astype(int).tolist())
"""


def _may_mount(tmp_path):
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("background", [False, True])
def test_a_full_file_system_refuses_records_and_once_there_is_room_none_is_missing_or_doubled(tmp_path, background):
    if not _may_mount(tmp_path):
        pytest.skip("no unprivileged user namespaces here; the file size limit stands for the full disk")
    words = ["unshare", "-rm", sys.executable, "-c", ON_TMPFS, tmp_path, sys.executable, ON_A_FULL_DISK]
    words += ["0", "tmpfs", str(background)]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    full, taken, *found = done.stdout.splitlines()
    assert int(full.split()[1]) == 20
    assert len(taken.split()) > 20
    assert found == [taken] * 4
