"""The kernels against the torch reference: wherever a tensor lies, however it is cut into blocks."""

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor

import numba
import pytest
import torch

from covshift.exceptions import InvalidArgumentError
from covshift.grid import GRADIENTS, VALUES
from covshift.summary import summarize
from covshift.summary.cpu import summarize_by_kernel
from covshift.summary.device import summarize_by_torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def rectified(*shape):
    """Values of which half are zero, as after a ReLU, some beyond the range of float16, and a unit that is dead."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.where(values > 0, values * 10.0 ** (values.sign() * 4 * values), 0.0)
    if len(shape) > 1:
        values.select(1, shape[1] // 2).zero_()
    return values


LAYOUTS = {
    "NCHW": (lambda: rectified(5, 6, 7, 9), 1, 0),
    "NCHW of one example": (lambda: rectified(1, 6, 20, 20), 1, 0),
    "NCHW, examples larger than a block": (lambda: rectified(2, 2, 70, 90), 1, 0),
    "NCHW, many small images": (lambda: rectified(300, 3, 4, 4), 1, 0),
    "NCHW, images of one pixel": (lambda: rectified(9, 130, 1, 1), 1, 0),
    "channels last": (lambda: rectified(5, 6, 7, 9).to(memory_format=torch.channels_last), 1, 0),
    "channels last, wide": (lambda: rectified(3, 200, 5, 4).to(memory_format=torch.channels_last), 1, 0),
    "channels last, large images": (lambda: rectified(2, 3, 60, 70).to(memory_format=torch.channels_last), 1, 0),
    "channels last, 3-D": (lambda: rectified(3, 4, 5, 6, 7).to(memory_format=torch.channels_last_3d), 1, 0),
    "(N, D)": (lambda: rectified(67, 300), 1, 0),
    "(N, D), narrow": (lambda: rectified(1003, 10), 1, 0),
    "(N, D), one unit": (lambda: rectified(5000, 1), 1, 0),
    "(N, D), one example": (lambda: rectified(1, 1000), 1, 0),
    "(N, D), a unit more than strips": (lambda: rectified(40, 257), 1, 0),
    "(N, D) transposed": (lambda: rectified(6, 5000).T, 1, 0),
    "(N, D), every third": (lambda: rectified(50, 90)[:, ::3], 1, 0),
    "(N, D), a chunk": (lambda: rectified(50, 90).chunk(3, 1)[1], 1, 0),
    "tokens": (lambda: rectified(6, 40, 33), 2, 0),
    "tokens, wide": (lambda: rectified(3, 50, 130), -1, 0),
    "tokens, batch second": (lambda: rectified(40, 6, 33), 2, 1),
    "tokens, batch second, read as batch first": (lambda: rectified(40, 6, 33).transpose(0, 1), 2, 0),
    "heads": (lambda: rectified(3, 11, 4, 8).transpose(1, 2), 1, 0),
    "sequences of a convolution": (lambda: rectified(7, 5, 300), 1, 0),
    "cropped": (lambda: rectified(4, 3, 40, 50)[:, :, 3:-4, 5:-6], 1, 0),
    "cropped, channels last": (
        lambda: rectified(4, 3, 40, 50).to(memory_format=torch.channels_last)[:, :, 3:-4, 5:-6],
        1,
        0,
    ),
    "expanded examples": (lambda: rectified(1, 30).expand(70, 30), 1, 0),
    "expanded positions": (lambda: rectified(9, 5, 1, 1).expand(9, 5, 12, 11), 1, 0),
    "expanded scalar": (lambda: torch.tensor(1.5, dtype=torch.float64).expand(33, 4, 5), 1, 0),
    "overlapping": (lambda: rectified(3, 400).unfold(1, 9, 2), 2, 0),
    "units first": (lambda: rectified(13, 40, 5), 0, 1),
    "no units": (lambda: rectified(13, 40, 5), None, 0),
    "no examples": (lambda: rectified(13, 40, 5), 1, None),
    "neither": (lambda: rectified(13, 40, 5)[::2, :, 1:4], None, None),
    "one axis of examples": (lambda: rectified(5001), None, 0),
    "one axis of units": (lambda: rectified(5001), 0, None),
    "begins inside its storage": (lambda: rectified(60, 10)[7:], 1, 0),
}

layouts = pytest.mark.parametrize("layout", LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cast(tensor, dtype):
    """The same values (of a wider dtype) in the same layout: strides of zero and overlaps included."""
    storage = torch.empty(0, dtype=torch.float64).set_(tensor.untyped_storage()).to(dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def both(tensor, **arguments):
    by_kernel = summarize_by_kernel(tensor, **arguments)
    assert by_kernel is not None, "the kernel refused this layout"
    return by_kernel, summarize_by_torch(tensor, **arguments)


@layouts
@every_dtype
def test_the_kernel_agrees_with_the_reference(layout, dtype, check_same):
    make, unit_axis, example_axis = LAYOUTS[layout]
    tensor = cast(make(), dtype)
    for grid, groups in ((VALUES, 4), (GRADIENTS, 1), (None, 3)):
        chosen = {"unit_axis": unit_axis, "example_axis": example_axis, "grid": grid, "groups": groups}
        check_same(*both(tensor, **chosen, units=grid is not GRADIENTS), tensor, unit_axis=unit_axis)


@layouts
def test_the_kernel_agrees_where_some_elements_are_not_finite(layout, check_same):
    make, unit_axis, example_axis = LAYOUTS[layout]
    tensor = make().float()
    # Scattered, so that some blocks are clean, some have a few, and one unit has nothing finite.
    flat = torch.arange(tensor.numel()).reshape(tensor.shape)
    for divisor, value in ((97, float("nan")), (101, float("inf")), (89, -float("inf"))):
        tensor = torch.where((flat % divisor == divisor - 1) & (flat % 5000 < 1000), value, tensor)
    if unit_axis is not None and tensor.shape[unit_axis] > 1:
        tensor.select(unit_axis, 0).fill_(float("nan"))
    chosen = {"unit_axis": unit_axis, "example_axis": example_axis, "grid": VALUES, "groups": 4, "units": True}
    check_same(*both(tensor, **chosen), tensor, unit_axis=unit_axis)


@pytest.mark.parametrize("example", range(1, 12))
@pytest.mark.parametrize("groups", [1, 2, 4, 7])
def test_an_example_counts_in_its_index_modulo_the_groups(example, groups):
    tensor = torch.zeros(12, 3, 5)
    tensor[example] = 1.0
    counts = summarize(tensor, unit_axis=1, groups=groups).histogram.counts
    one = int(VALUES.ids(1.0))
    assert counts[:, one].tolist() == [15 * (group == example % groups) for group in range(groups)]


@every_dtype
def test_a_tensor_is_not_changed_nor_kept(dtype):
    tensor = rectified(30, 8, 5, 5).to(dtype).requires_grad_()
    before, version = tensor.detach().clone(), tensor._version
    summary = summarize(tensor, unit_axis=1)
    assert torch.equal(tensor, before)
    assert (tensor._version, tensor.grad, tensor.grad_fn) == (version, None, None)
    alive, kept = weakref.ref(tensor), copy.deepcopy(summary.units.mean)
    del tensor
    assert alive() is None
    before.fill_(7.0)
    assert (summary.units.mean == kept).all()


def test_no_thread_is_started_and_no_thread_count_is_touched():
    threads = torch.get_num_threads()
    summarize(torch.ones(300, 300), unit_axis=1)
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="Threading layer is not initialized"):
        numba.threading_layer()


def test_threads_that_summarise_at_once_do_not_disturb_one_another(check_same):
    parts = [rectified(16, 8, 20, 20).float() + index for index in range(8)]
    alone = [summarize(part, unit_axis=1) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda part: summarize(part, unit_axis=1), parts * 5))
    for index, summary in enumerate(together):
        check_same(summary, alone[index % 8], parts[index % 8], unit_axis=1, relative=0)


class Tagged(torch.Tensor):
    """A subclass, whose elements need not lie where its memory is."""


REFUSED = {
    "a subclass": torch.arange(-6.0, 6.0).reshape(3, 4).as_subclass(Tagged),
    "a lazily negated view": torch._neg_view(torch.arange(-6.0, 6.0).reshape(3, 4)),
    "the imaginary part of a conjugate": torch.complex(torch.ones(3, 4), torch.arange(12.0).reshape(3, 4)).conj().imag,
    "positions that join into three axes": rectified(4, 3, 6, 6, 6).float()[:, :, 1:-1, 1:-1, 1:-1],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_kernel_cannot_walk_is_summarised_by_torch(kind, check_summary):
    tensor = REFUSED[kind]
    chosen = {"unit_axis": 1, "example_axis": 0, "grid": VALUES, "groups": 4}
    assert summarize_by_kernel(tensor, **chosen, units=True) is None
    check_summary(summarize(tensor, **chosen), tensor, **chosen)


def test_a_tensor_with_more_elements_than_bins_can_count_is_refused():
    endless = torch.zeros(1).expand(2**32)
    assert summarize_by_kernel(endless, unit_axis=None, example_axis=0, grid=VALUES, groups=4, units=True) is None


def test_parameters_are_read_in_place():
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    assert summarize_by_kernel(parameter, unit_axis=0, example_axis=None, grid=None, groups=1, units=True).sum == 12.0


def test_released_memory_is_an_error_not_a_crash():
    tensor = torch.ones(4, 3)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(InvalidArgumentError, match=r"shape \(4, 3\), but its memory has been released"):
        summarize(tensor)
