"""A run followed while it is written: in a page, over a local port, in the terminal."""

import html
import http.client
import json
import re
import threading

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import covshift
from covshift.cli import app
from covshift.cli.following import follow, served
from covshift.cli.watch import sparkline, view
from covshift.store.growth import growth

runner = CliRunner()


class Training:
    """A small network that is trained and recorded a few steps at a time."""

    def __init__(self, path, *, dead=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        if dead:
            nn.init.constant_(self.model[0].bias, -1e3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.recorder = covshift.record(self.model, path, every=1, name="followed")
        self.recorder.__enter__()

    def train(self, steps):
        for _ in range(steps):
            loss = self.model(torch.randn(16, 8)).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.recorder.log(loss=loss)

    def end(self):
        self.recorder.__exit__(None, None, None)


@pytest.fixture
def training(tmp_path):
    one = Training(tmp_path / "run.zarr", dead=True)
    yield one
    one.end()


def test_growth_counts_records_and_knows_whether_a_run_goes_on(tmp_path):
    training = Training(tmp_path / "run.zarr")
    training.train(3)
    before = growth(tmp_path / "run.zarr")
    training.train(2)
    after = growth(tmp_path / "run.zarr")
    training.end()
    ended = growth(tmp_path / "run.zarr")
    assert before.goes_on
    assert before.records < after.records <= ended.records
    assert not ended.goes_on


def test_following_yields_at_once_when_it_grew_and_last_when_it_ended(tmp_path):
    training = Training(tmp_path / "run.zarr")
    training.train(2)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        {2: lambda: training.train(1), 4: training.end}.get(len(pauses), lambda: None)()

    assert list(follow([tmp_path / "run.zarr"], seconds=7.0, pause=pause)) == [True, True, False]
    assert pauses == [7.0] * 4


def test_a_watched_report_refreshes_itself_until_the_run_has_ended(tmp_path, monkeypatch):
    training = Training(tmp_path / "run.zarr")
    training.train(2)
    out, seen = tmp_path / "live.html", []

    def pause(seconds):
        seen.append(out.read_text())
        training.train(1)
        if len(seen) == 2:
            training.end()

    monkeypatch.setattr("covshift.cli.following.time.sleep", pause)
    monkeypatch.setattr(follow, "__kwdefaults__", {"pause": pause})
    result = runner.invoke(app, ["report", str(tmp_path / "run.zarr"), "--watch", "--seconds", "3", "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(out)]
    records = [re.search(r'/facts/records" data-kind="count">(\d+)<', page)[1] for page in [*seen, out.read_text()]]
    assert records == ["2", "3", "4"]
    assert all('<meta http-equiv="refresh" content="3">' in page for page in seen)
    assert 'http-equiv="refresh"' not in out.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".live")] == []


def torn(path):
    """A recording that cannot be read."""
    training = Training(path)
    training.train(2)
    training.end()
    (path / "layers" / "zarr.json").unlink()
    return path


def watched(*paths, out):
    return runner.invoke(app, ["report", *map(str, paths), "--watch", "--seconds", "3", "-o", str(out)])


def test_a_damaged_recording_is_watched_to_the_page_and_the_error_it_has_without_watching(tmp_path):
    run, out = torn(tmp_path / "torn.zarr"), tmp_path / "live.html"
    once = runner.invoke(app, ["report", str(run), "-o", str(tmp_path / "once.html")])
    live = watched(run, out=out)
    assert live.exit_code == once.exit_code == 1
    assert live.stderr == once.stderr
    assert out.read_text() == (tmp_path / "once.html").read_text()
    assert "Cannot be read" in out.read_text()


def test_a_damaged_recording_does_not_end_the_watching_of_the_one_beside_it(training, tmp_path):
    training.train(2)
    paths, pauses = [torn(tmp_path / "torn.zarr"), training.recorder.path], []

    def pause(seconds):
        pauses.append(seconds)
        training.end()

    assert list(follow(paths, seconds=1.0, pause=pause)) == [True, False]


class TestInterrupted:
    @pytest.fixture
    def out(self, tmp_path):
        return tmp_path / "live.html"

    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    def test_before_the_first_page_nothing_is_written(self, training, out, monkeypatch):
        training.train(2)
        out.write_text("mine")
        monkeypatch.setattr("covshift.cli.following.growth", self.interrupt)
        result = watched(training.recorder.path, out=out)
        assert result.exit_code not in (0, 1)
        assert out.read_text() == "mine"

    def test_after_it_the_page_stands_finished(self, training, out, monkeypatch):
        training.train(2)
        monkeypatch.setattr(follow, "__kwdefaults__", {"pause": self.interrupt})
        result = watched(training.recorder.path, out=out)
        assert result.exit_code == 0, result.stderr
        assert "refresh" not in re.sub("(?s)<script.*", "", out.read_text())


def test_serving_needs_watching(tmp_path):
    result = runner.invoke(app, ["report", str(tmp_path), "--serve"])
    assert result.exit_code == 1
    assert "expected together with --watch" in result.stderr


class TestServed:
    def ask(self, address, *, path="/", host=None, method="GET"):
        place = address.removeprefix("http://").rstrip("/")
        connection = http.client.HTTPConnection(place, timeout=10)
        connection.request(method, path, headers={"Host": host or place})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def test_the_page_and_nothing_else_to_this_machine_alone(self, tmp_path):
        page = tmp_path / "report.html"
        page.write_text("first")
        (tmp_path / "secret").write_text("mine")
        with served(page, port=0) as address:
            assert address.startswith("http://127.0.0.1:")
            assert self.ask(address) == (200, b"first")
            page.write_text("second")
            assert self.ask(address) == (200, b"second")
            for path in ("/secret", "/../secret", "/report.html"):
                assert self.ask(address, path=path)[0] == 404
            assert self.ask(address, host="evil.example:80")[0] == 404
            assert self.ask(address, method="POST")[0] == 501
            page.unlink()
            assert self.ask(address)[0] == 404

    def test_it_is_gone_afterwards(self, tmp_path):
        before = threading.active_count()
        with served(tmp_path / "none.html", port=0) as address:
            pass
        assert threading.active_count() == before
        with pytest.raises(ConnectionRefusedError):
            self.ask(address)


class TestWatch:
    def text(self, recording, *, goes_on=True):
        console = Console(width=100, record=True, file=None, quiet=False)
        with console.capture() as captured:
            console.print(view(recording, covshift.diagnose(recording), goes_on=goes_on))
        return captured.get()

    def test_it_shows_verdicts_the_worst_layers_and_curves(self, training):
        training.train(40)
        shown = self.text(training.recorder.recording)
        assert "followed: step 39, 40 records, going on" in shown
        assert re.search(r"layers: [1-9]\d* bad", shown)
        # The silent layer by itself is to watch; what it explains is bad, and so is the cause.
        assert re.search(r"bad +units +1 +0 +[▁▂▃▄▅▆▇█]{20}", shown)
        assert re.search(r"loss +[\d.]+ +[▁▂▃▄▅▆▇█]{39}", shown)

    def test_names_with_markup_are_text(self, training):
        training.train(3)
        recording = training.recorder.recording
        recording.attrs["run_name"] = "[bold]x[/bold]"
        assert "[bold]x[/bold]" in self.text(recording)

    def test_a_recording_without_records_says_so(self, training):
        assert "nothing recorded yet" in self.text(training.recorder.recording)

    def test_the_command_shows_a_closed_run_once(self, tmp_path):
        training = Training(tmp_path / "run.zarr")
        training.train(5)
        training.end()
        result = runner.invoke(app, ["watch", str(tmp_path / "run.zarr")])
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("followed: step 4, 5 records, ended") == 1
        silent = runner.invoke(app, ["watch", str(tmp_path / "run.zarr"), "--quiet"])
        assert (silent.exit_code, silent.output) == (0, "")

    @pytest.mark.parametrize("values", [[], [np.nan], [np.inf, 1.0, -np.inf], [3.0], np.arange(1000.0)])
    def test_any_series_has_a_sparkline_of_at_most_its_width(self, values):
        line = sparkline(np.array(values, dtype=float), width=40)
        assert len(line) == min(len(values), 40)
        assert set(line) <= set(" ▁▂▃▄▅▆▇█")


def test_a_damaged_recording_is_reported_as_such_and_the_exit_code_says_whether_any_was_whole(tmp_path):
    whole, torn = tmp_path / "whole.zarr", tmp_path / "torn.zarr"
    for path in (whole, torn):
        training = Training(path)
        training.train(2)
        training.end()
    (torn / "layers" / "zarr.json").unlink()
    out, twin = tmp_path / "report.html", tmp_path / "report.json"
    both = runner.invoke(app, ["report", str(whole), str(torn), "-o", str(out), "--json", str(twin)])
    assert both.exit_code == 0, both.stderr
    assert "'layers' is missing" in html.unescape(out.read_text())
    assert [run["recorded"] for run in json.loads(twin.read_text())["runs"]] == [True, False]
    alone = runner.invoke(app, ["report", str(torn), "-o", str(out), "--overwrite"])
    assert alone.exit_code == 1
    assert "Cannot be read" in out.read_text()


def test_check_and_page_say_that_a_recording_is_not_closed_while_it_is_not(training, tmp_path):
    run, page = training.recorder.path, tmp_path / "page.html"
    training.train(30)
    said = "not closed: still being written, or cut short"
    for is_open in (True, False):
        if not is_open:
            training.end()
        checked = runner.invoke(app, ["check", str(run)])
        assert ("the recording is not closed" in checked.stdout) == is_open
        covshift.report(covshift.open(run), page, overwrite=True)
        assert (said in page.read_text()) == is_open
