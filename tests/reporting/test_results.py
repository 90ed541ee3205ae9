"""What a report gathers once says the same as the functions it stands for, and draws the same as matplotlib itself."""

import io
import re

import matplotlib
import numpy as np
import pytest
import torch

import covshift
from covshift.diagnosis import diagnose
from covshift.diagnosis.streams import has_same_examples
from covshift.plots import style
from covshift.plots.registry import FIGURES
from covshift.plots.row_labels import as_one_artist
from covshift.reporting.figures import SECTIONS, drawn
from covshift.reporting.results import gather
from covshift.reporting.svg import RASTER_DPI, inline_svg


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(pairs=2, steps=tuple(range(100)), dying=True)


@pytest.fixture(scope="module")
def full_batch_run():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer, batch = torch.optim.SGD(model.parameters(), lr=0.05), torch.randn(64, 6)
    with covshift.record(model, every=1, histograms_every=1, units_every=1) as recorder:
        for _ in range(40):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return recorder.recording


def test_the_diagnosis_of_a_report_is_that_of_diagnose(run):
    own, expected = gather("run", run).diagnosis, diagnose(run)
    assert own.to_dict() == expected.to_dict()
    assert own.layers == expected.layers
    told = {finding.check for finding in own.findings if finding.verdict != "not measured"}
    assert {"shift", "operating point"} <= told


def test_a_report_of_full_batch_training_takes_no_sampling_noise_off_its_shifts(full_batch_run):
    assert has_same_examples(full_batch_run, "train")
    own = gather("run", full_batch_run).diagnosis
    assert own.to_dict() == diagnose(full_batch_run).to_dict()
    assert any("on the same 64 examples" in finding.reason for finding in own.findings if finding.check == "shift")


@pytest.fixture(scope="module")
def gathered(run):
    return gather("run", run)


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "ics"])
def test_a_figure_of_the_page_has_the_title_that_covshift_plot_gives_it(run, gathered, name):
    with style.detached():
        page, alone = style.root(drawn(name, gathered)), style.root(FIGURES[name](run))
    titles = [
        [figure.get_suptitle(), *(ax.get_title(loc="left") for ax in figure.get_axes())] for figure in (page, alone)
    ]
    assert titles[0] == titles[1]


@pytest.mark.parametrize("name", ["shift", "norm", "ridgeline"])
def test_a_figure_of_the_page_stands_where_savefig_puts_it(run, name):
    with style.detached():
        ours, theirs = (style.root(FIGURES[name](run)) for _ in range(2))
    page = inline_svg(ours, prefix="p", label="a figure")
    as_one_artist(theirs)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "p", "svg.image_inline": True}):
        theirs.savefig(file, format="svg", facecolor="none", dpi=RASTER_DPI)
    for part in (r' d="([^"]*)"', r' transform="([^"]*)"', r' viewBox="([^"]*)"', r'href="data:([^"]*)"'):
        expected = ["".join(found.split()) for found in re.findall(part, file.getvalue())]
        assert ["".join(found.split()) for found in re.findall(part, page)] == expected
    assert np.count_nonzero([character == "M" for character in page]) > 10
