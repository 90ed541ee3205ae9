"""Plans of walks, and what happens where numba, its cache or a compiled kernel is missing."""

import itertools
import logging
import os
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covshift.exceptions import CovshiftWarning
from covshift.grid import GRADIENTS, VALUES
from covshift.summary import cpu, prepare, summarize
from covshift.summary.kernels import jit, memory

layouts = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 30)), min_size=1, max_size=5)


def offsets(axes):
    """Every offset that axes of (length, step) reach, with how often."""
    return Counter(sum(place) for place in itertools.product(*(range(0, n * s, s) if s else [0] * n for n, s in axes)))


@settings(deadline=None)
@given(layouts, st.data())
def test_a_plan_reaches_every_element_as_often_as_the_tensor_has_it(axes, data):
    shape, strides = zip(*axes, strict=True)
    names = data.draw(st.permutations(range(-len(axes), len(axes))))
    unit, example = data.draw(st.sampled_from([(None, None), (names[0], None), (None, names[0])]))
    plan = cpu.plan_walk(shape, strides, torch.float32, unit, example, 4)
    if plan is None:
        assert len(axes) > 2
        return
    lengths, steps = plan[memory.EXAMPLES : memory.INNER + 1], plan[memory.EXAMPLE_STEP : memory.INNER_STEP + 1]
    assert offsets(zip(lengths.tolist(), steps.tolist(), strict=True)) == offsets(axes)


@pytest.mark.parametrize(
    ("tensor", "unit_axis", "lengths", "across"),
    [
        (torch.ones(8, 3, 16, 16), 1, (8, 3, 1, 256), False),
        (torch.ones(8, 3, 16, 16).to(memory_format=torch.channels_last), 1, (8, 3, 1, 256), True),
        (torch.ones(8, 20), 1, (8, 20, 1, 1), True),
        (torch.ones(8, 50, 20), 2, (8, 20, 1, 50), True),
        (torch.ones(8, 3, 16, 16)[..., 2:-2, 2:-2], 1, (8, 3, 12, 12), False),
        (torch.ones(2, 300, 3, 3), 1, (2, 300, 1, 9), True),
        (torch.ones(8, 3, 16, 16), None, (8, 1, 1, 768), False),
    ],
)
def test_units_are_taken_side_by_side_where_they_lie_so_or_are_small(tensor, unit_axis, lengths, across):
    plan = cpu.plan_walk(tensor.shape, tensor.stride(), tensor.dtype, unit_axis, 0, 4)
    assert tuple(plan[: memory.INNER + 1]) == lengths
    assert bool(plan[memory.ACROSS]) is across


@pytest.fixture
def forget():
    """Let the kernel be found anew within the test, and again after it."""

    def clear():
        cpu._kernel.cache_clear()
        cpu._compiled.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.usefixtures("forget")
def test_without_numba_torch_summarises_after_one_warning(monkeypatch, check_summary):
    monkeypatch.setitem(sys.modules, "covshift.summary.kernels", None)
    tensor = torch.arange(12.0).reshape(3, 4)
    with pytest.warns(
        CovshiftWarning, match=r"numba cannot be imported .*some fifty times slower; install numba"
    ) as caught:
        first = summarize(tensor, unit_axis=1)
    assert len(caught) == 1
    check_summary(first, tensor, unit_axis=1, grid=VALUES)
    check_summary(summarize(-tensor, grid=GRADIENTS), -tensor, grid=GRADIENTS)
    prepare(torch.float64)


@pytest.mark.usefixtures("forget")
def test_without_a_writable_cache_there_is_one_warning_that_names_the_way_out(monkeypatch):
    monkeypatch.setattr(cpu, "can_write", lambda directories: False)
    with pytest.warns(CovshiftWarning, match="compiled, .* in every process; set .* NUMBA_CACHE_DIR"):
        assert cpu._kernel() is not None


def test_a_directory_can_be_written_to_if_it_or_what_will_hold_it_can(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    assert cpu.can_write([tmp_path])
    assert cpu.can_write([file / "below", tmp_path / "made" / "later"])
    assert not cpu.can_write([file / "below"])
    assert not cpu.can_write([])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not cpu.can_write([tmp_path])


class Kernel:
    """Stands for a kernel that compiles at its first call, or finds itself compiled."""

    def __init__(self, cached, kept_in):
        self.cached = cached
        self.stats = SimpleNamespace(cache_misses=Counter(), cache_path=kept_in)

    def __call__(self, *arguments):
        self.stats.cache_misses["signature"] += not self.cached


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("cached", "kept_in", "said"),
    [
        (False, "/cache", ["covshift compiled its torch.float64 kernels in 0 s; they are kept in /cache"]),
        (False, None, ["covshift compiled its torch.float64 kernels in 0 s; they are kept in this process only"]),
        (True, "/cache", []),
    ],
)
def test_a_compilation_is_logged_once_and_a_loaded_kernel_is_not(monkeypatch, caplog, cached, kept_in, said):
    kernel = Kernel(cached, kept_in)
    monkeypatch.setattr(cpu, "_kernel", lambda: kernel)
    with caplog.at_level(logging.WARNING, logger="covshift"):
        prepare(torch.float64)
        prepare(torch.float64)
    assert caplog.messages == said


def test_a_change_in_any_kernel_file_changes_the_name_of_what_is_kept(tmp_path, monkeypatch):
    assert cpu._kernel().py_func.__qualname__ == f"walk_{jit.fingerprint()}"
    (tmp_path / "jit.py").write_text("one")
    (tmp_path / "block.py").write_text("one")
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    before = jit.fingerprint()
    (tmp_path / "block.py").write_text("two")
    assert jit.fingerprint() != before


def test_four_dtypes_and_all_settings_share_two_compiled_kernels():
    for dtype in cpu.FORMS:
        for grid, groups in ((VALUES, 4), (GRADIENTS, 1), (None, 1)):
            summarize(torch.ones(4, 3, 5, dtype=dtype), unit_axis=1, grid=grid, groups=groups)
            summarize(torch.ones(4, 3, dtype=dtype), unit_axis=None, grid=grid, groups=groups)
    assert len(cpu._kernel().signatures) == 2
