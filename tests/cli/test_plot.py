"""covshift plot as a user meets it: a file, or one line that says what to do."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import covshift
from covshift.cli import app
from covshift.plots import FIGURES

runner = CliRunner()


def invoke(*words):
    return runner.invoke(app, ["plot", *(str(word) for word in words)])


def error_line(result):
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert result.exit_code == 1
    return lines[0]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small.zarr"
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with covshift.record(model, path, every=1, name="small") as recorder:
        for _ in range(12):
            loss = model(torch.randn(64, 8)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss)
    return path


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("ics", "differences")])
def test_every_figure_becomes_a_vector_file(name, run, tmp_path):
    out = tmp_path / f"{name}.svg"
    result = invoke(run, name, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert ElementTree.parse(out).getroot().tag.endswith("svg")
    assert out.stat().st_size < 1_000_000


def test_one_layer_in_dark_colours(run, tmp_path):
    out = tmp_path / "river.svg"
    assert invoke(run, "river", "-o", out, "--layer", "1", "--theme", "dark", "--width", 6).exit_code == 0
    drawn = out.read_text()
    assert "1 preactivation: median" in drawn
    assert "#14181c" in drawn
    assert ElementTree.parse(out).getroot().get("width") == "432pt"


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_other_formats(suffix, run, tmp_path):
    out = tmp_path / f"norm.{suffix}"
    assert invoke(run, "norm", "-o", out).exit_code == 0
    assert out.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])


def test_the_same_recording_gives_the_same_bytes(run, tmp_path):
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        invoke(run, "shift", "-o", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_list_names_every_figure_with_its_question():
    result = invoke("--list")
    assert result.exit_code == 0
    for name, kind in FIGURES.items():
        assert name in result.stdout
        assert kind.question in result.stdout


def test_the_probe_is_drawn_from_the_file_it_was_saved_in(tmp_path):
    model = network()
    batch = (torch.randn(32, 8), torch.randn(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = covshift.probe.gradient_ics(model, nn.functional.mse_loss, batch, optimizer)
    alone, tree = tmp_path / "alone.nc", tmp_path / "tree.nc"
    result.to_netcdf(alone)
    xr.DataTree.from_dict({"gradient_ics": result}).to_netcdf(tree)
    drawn = []
    for source in (alone, tree):
        out = source.with_suffix(".svg")
        assert invoke(source, "ics", "-o", out).exit_code == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rivr"], "figure='rivr': no such figure, did you mean 'river'"),
        (["river", "--layer", "11"], "layer='11': not in the recording"),
        (["norm", "--layer", "1"], "the figure 'norm' shows all layers"),
        (["river", "-o", "river.gif"], "--out river.gif: expected a name that ends in .svg, .pdf, .png"),
        (["river", "-o", "nowhere/river.svg"], "the folder 'nowhere' does not exist"),
        (["river", "--width", "0"], "--width 0: expected 1 to 100 inches"),
        (["operating-point", "--layer", "0"], "layer '0': not among the nonlinearities; there are 1, 3"),
        (["ics"], "no group 'gradient_ics'; measure it with covshift.probe.gradient_ics"),
        ([], "expected RUN FIGURE, got"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_with_the_remedy(words, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(invoke(run, *words))
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept_unless_told(run, tmp_path):
    out = tmp_path / "norm.svg"
    out.write_text("mine")
    assert "exists; name another file, or pass --overwrite" in error_line(invoke(run, "norm", "-o", out))
    assert out.read_text() == "mine"
    assert invoke(run, "norm", "-o", out, "--overwrite").exit_code == 0


def test_differences_need_two_groups_of_runs(run, tmp_path):
    out = tmp_path / "differences.svg"
    assert "a difference needs two groups" in error_line(invoke(run, "differences", "-o", out))
    copy = tmp_path / "copy.zarr"
    shutil.copytree(run, copy)
    assert invoke(run, copy, "differences", "-o", out).exit_code == 0
    assert ElementTree.parse(out).getroot().tag.endswith("svg")


def test_two_recordings_are_for_a_comparison(run, tmp_path):
    assert "the figure 'norm' shows one; only 'comparison' and 'differences' take" in error_line(
        invoke(run, run, "norm")
    )
    assert "a recording is named twice" in error_line(invoke(run, run, "comparison", "-o", tmp_path / "c.svg"))


def test_a_recording_that_is_not_there_is_said(tmp_path):
    assert "nothing.zarr" in error_line(invoke(tmp_path / "nothing.zarr", "norm", "-o", tmp_path / "n.svg"))
    assert "no such file" in error_line(invoke(tmp_path / "nothing.nc", "ics", "-o", tmp_path / "n.svg"))


def test_help_has_an_example():
    result = invoke("--help")
    assert "Example: covshift plot runs/relu.zarr river" in " ".join(result.stdout.split())


def test_pyplot_is_never_imported(run, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, json\n"
        "from covshift.cli import app\n"
        f"app(['plot', {str(run)!r}, 'norm', '-o', {str(tmp_path / 'n.svg')!r}], standalone_mode=False)\n"
        "print(json.dumps([m for m in ('matplotlib.pyplot', 'seaborn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
