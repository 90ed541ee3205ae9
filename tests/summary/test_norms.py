"""Oracle: numpy in float64 over dense copies."""

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from covshift.summary import cpu, norms
from covshift.summary.norms import Tensors, products, sampled


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(7, 5, generator=generator)
    dense[0, :2] = torch.tensor([0.0, -0.0])
    infinite = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.0])
    sparse = torch.sparse_coo_tensor(
        [[1, 1, 3]], torch.tensor([[1.0, 2.0], [1.0, -2.0], [0.0, 4.0]]), (5, 2), check_invariants=True
    )
    return {
        "float32": dense,
        "transposed": dense.t()[1:],
        "float64": dense.double(),
        "bfloat16": dense.bfloat16(),
        "float16": dense.half(),
        "complex": torch.complex(dense, -dense),
        "tiny": torch.full((3,), 1e-23),
        "huge": torch.full((3,), 1e19),
        "non-finite": infinite,
        "non-finite double": infinite.double(),
        "empty": torch.empty(0),
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(dense.clone()),
        "sparse": sparse,
    }


@pytest.mark.parametrize(
    ("compiled", "part"), [(True, norms.PART), (False, norms.PART), (False, 3)], ids=["compiled", "torch", "in parts"]
)
def test_sums_are_those_of_a_dense_float64_copy(monkeypatch, compiled, part):
    monkeypatch.setattr(norms, "PART", part)
    if not compiled:
        monkeypatch.setattr(norms, "_kernels", lambda: None)
    given = some_tensors()
    found = Tensors(list(given.values())).norms()
    for index, (name, tensor) in enumerate(given.items()):
        dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        wide = dense.to(torch.complex128 if dense.is_complex() else torch.float64).numpy()
        with np.errstate(invalid="ignore"):
            squares = (np.abs(wide) ** 2).sum()
        np.testing.assert_allclose(found.squares[index], squares, rtol=1e-12, err_msg=name)
        assert found.zeros[index] == (wide == 0).sum(), name
        assert found.nonfinite[index] == (~np.isfinite(wide)).sum(), name


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
        for made in tree_leaves(output):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                size = made.untyped_storage().nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(made, self._free, size)
        return output

    def _free(self, size):
        self.now -= size


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_memory_for_sums_does_not_grow_with_the_tensor(dtype, transposed):
    peaks = []
    for rows in (1024, 4096):
        tensor = torch.ones(rows, 2048, dtype=dtype)
        with Allocated() as allocated:
            found = Tensors([tensor.t() if transposed else tensor]).norms()
        assert found.squares.tolist() == [tensor.numel()]
        peaks.append(allocated.peak)
    # Sums of 6 more parts.
    assert norms.PART * 8 <= peaks[0] <= peaks[1] <= peaks[0] + 6 * 3 * 8 * 4 <= norms.PART * 48


@pytest.mark.parametrize("compiled", [True, False])
def test_changes_are_measured_on_every_kth_element(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(norms, "_kernels", lambda: None)
    given = {name: tensor for name, tensor in some_tensors().items() if not tensor.is_sparse and tensor.numel()}
    tensors, steps = list(given.values()), np.array([1 if index % 2 else 3 for index in range(len(given))])
    old = [tensor.detach().clone() for tensor in tensors]
    before = Tensors(tensors).kept(steps)
    with torch.no_grad():
        for tensor in tensors:
            tensor.mul_(0.5)
    found = Tensors(tensors).squared_changes(before)
    for index, (new, previous, step) in enumerate(zip(tensors, old, steps, strict=True)):
        wide = torch.complex128 if new.is_complex() else torch.float64
        change = sampled(new.detach(), int(step)).to(wide) - sampled(previous, int(step)).to(wide)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found[index], (np.abs(change.numpy()) ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_of_a_tensor_that_became_another_no_change_is_measured(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(norms, "_kernels", lambda: None)
    before = Tensors([torch.ones(4), torch.ones(2)]).kept(np.array([1, 1]))
    found = Tensors([torch.ones(4, dtype=torch.float64), torch.zeros(2)]).squared_changes(before)
    assert np.isnan(found[0])
    assert found[1] == 2.0


@pytest.mark.parametrize("compiled", [True, False])
def test_products_are_those_of_every_kth_element_in_float64(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(norms, "_kernels", lambda: None)
    given = {name: one for name, one in some_tensors().items() if not one.is_sparse and "non-finite" not in name}
    tensors, steps = list(given.values()), np.array([1 if index % 2 else 3 for index in range(len(given))])
    others = [tensor.detach().flip(0) if tensor.ndim else -tensor for tensor in tensors]
    found = products(Tensors(tensors).kept(steps), Tensors(others).kept(steps))
    for index, (name, new, previous, step) in enumerate(zip(given, others, tensors, steps, strict=True)):
        wide = torch.complex128 if new.is_complex() else torch.float64
        a, b = (sampled(part.detach(), int(step)).to(wide).numpy().ravel() for part in (previous, new))
        expected = [np.vdot(a, b).real, np.vdot(a, a).real, np.vdot(b, b).real]
        np.testing.assert_allclose(found[index], expected, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_tensor_that_became_another_has_no_product_with_it(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(norms, "_kernels", lambda: None)
    every = np.array([1, 1, 1])
    first = Tensors([torch.ones(4), torch.ones(2), torch.empty(0)]).kept(every)
    second = Tensors([torch.ones(4, dtype=torch.float64), torch.ones(2), torch.ones(3)]).kept(every)
    found = products(first, second)
    assert np.isnan(found[[0, 2]]).all()
    assert found[1].tolist() == [2.0, 2.0, 2.0]


def test_without_numba_norms_come_from_torch(monkeypatch):
    monkeypatch.setattr(cpu, "_kernel", lambda: None)
    norms._kernels.cache_clear()
    try:
        assert Tensors([torch.tensor([3.0, 4.0])]).norms().squares.tolist() == [25.0]
        assert norms._kernels() is None
    finally:
        norms._kernels.cache_clear()
