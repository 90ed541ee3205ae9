"""A visit leaves a model, its gradients and the random numbers exactly as they were."""

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError, ProbeUnsupported, UnsupportedModelError
from covshift.probe.state import visiting

KINDS = ("convolutional", "transformer", "recurrent")


def draw():
    of_numpy = float(np.random.rand())  # noqa: NPY002 - the global state is what models draw from
    return random.random(), of_numpy, torch.rand(3).tolist()


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_visit_puts_everything_back(build, batch, train, photograph, assert_same, kind, mode):
    model = build(kind)
    train(model, steps=2)
    x, _ = batch(model)
    before = photograph(model)
    with visiting(model, mode=mode, tensors=[x]) as visit:
        visit.model(x).sum().backward()
        draw()
    assert_same(before, photograph(model))


def test_a_visit_that_fails_puts_everything_back(build, batch, train, photograph, assert_same):
    model = build()
    train(model)
    x, _ = batch(model)
    before = photograph(model)
    with pytest.raises(ZeroDivisionError), visiting(model, mode="train", tensors=[x]) as visit:
        visit.model(x).sum().backward()
        visit.model[0].training = False
        torch.set_grad_enabled(False)
        draw()
        1 / 0  # noqa: B018
    assert_same(before, photograph(model))


def test_flags_that_differ_between_modules_come_back_one_by_one(build):
    model = build()
    model[1].eval()
    with visiting(model, mode="eval"):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [place != 1 for place in range(10)]


def test_train_mode_keeps_parts_frozen_in_evaluation_mode(build):
    model = build()
    model[1].eval()
    with visiting(model, mode="train") as visit:
        assert visit.model[5].training
        assert not visit.model[1].training


def test_train_mode_of_a_model_in_evaluation_mode_sets_every_flag(build):
    model = build().eval()
    with visiting(model, mode="train"):
        assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.modules())


def test_flags_are_set_without_calling_train_which_models_override(build):
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("merges weights")

    with visiting(Merging(2, 2), mode="eval") as visit:
        assert not visit.model.training


def test_train_mode_works_on_other_buffers_and_never_writes_to_the_originals(build, batch):
    model = build()
    x, _ = batch(model)
    mean = model[1].running_mean
    version = mean._version
    with visiting(model, mode="train") as visit:
        visit.model(x)
        assert model[1].running_mean is not mean
        assert not torch.equal(model[1].running_mean, mean)
        assert int(model[1].num_batches_tracked) == 1
    assert model[1].running_mean is mean
    assert mean._version == version
    assert int(model[1].num_batches_tracked) == 0


def test_a_buffer_that_two_modules_share_is_shared_in_the_visit_too(build):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].running_mean = model[0].running_mean
    with visiting(model, mode="train"):
        assert model[1].running_mean is model[0].running_mean


def test_a_pass_after_rewind_repeats_the_first_one(build, batch):
    model = build()
    x, _ = batch(model)
    with visiting(model, mode="train") as visit:
        first, drawn = visit.model(x), draw()
        assert not torch.equal(visit.model(x), first)
        visit.rewind()
        assert torch.equal(visit.model(x), first)
        assert draw() == drawn


def test_two_visits_draw_the_same_dropout_masks(build, batch):
    model = build()
    x, _ = batch(model)
    outputs = []
    for _ in range(2):
        with visiting(model, mode="train") as visit:
            outputs.append(visit.model(x))
        torch.rand(5)
    assert torch.equal(*outputs)


def test_a_visit_inside_inference_mode_can_build_a_graph(build, batch):
    model = build()
    x, _ = batch(model)
    with torch.inference_mode(), visiting(model, mode="eval") as visit:
        assert visit.model(x).requires_grad
    with torch.no_grad():
        with visiting(model, mode="eval", graph=False) as visit:
            assert not visit.model(x).requires_grad
        assert not torch.is_grad_enabled()


def test_a_visit_keeps_the_autocast_in_force_and_hands_no_cast_weight_to_training(build, batch):
    model = build()
    x, y = batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with visiting(model, mode="eval", graph=False, tensors=[x]) as visit:
            assert visit.model(x).dtype == torch.bfloat16
        nn.functional.cross_entropy(model(x), y).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_stock_transformer_layers_call_their_parts_in_a_visit(build, batch):
    model = build("transformer")
    x, _ = batch(model)
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: called.append(module))
    with visiting(model, mode="eval", graph=False) as visit:
        visit.model(x)
    handle.remove()
    assert model.encoder.layers[0].linear1 in called


def test_compiled_models_are_visited_eagerly_and_unwrapped(build, batch):
    model = build()
    x, _ = batch(model)

    def refuse(graph, inputs):
        raise AssertionError("compiled")

    compiled = torch.compile(model, backend=refuse)
    with visiting(compiled, mode="eval") as visit:
        assert visit.model is model
        visit.model(x)
    nested = nn.Sequential(torch.compile(model, backend=refuse))
    with visiting(nested, mode="eval") as visit:
        visit.model(x)
    model.compile(backend=refuse)
    with visiting(model, mode="eval") as visit:
        visit.model(x)


def test_a_visit_does_not_make_a_compiled_model_compile_again(build, batch):
    model = build("recurrent").head
    x, graphs = torch.randn(4, 7), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count)
    compiled(x)
    assert len(graphs) == 1
    with visiting(compiled, mode="train") as visit:
        visit.model(x)
    compiled(x)
    assert len(graphs) == 1


def test_a_distributed_wrapper_is_looked_through(build, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = build()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with visiting(wrapped, mode="eval") as visit:
            assert visit.model is model
            assert not wrapped.training
        assert wrapped.training
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_on_parameters_that_accumulate_gradients_do_not_run(build, batch):
    from covshift.probe import gradient_ics, zeros

    model = build()
    given = batch(model)
    ran = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(ran.append)
    zeros(model, nn.functional.cross_entropy, given)
    gradient_ics(model, nn.functional.cross_entropy, given, torch.optim.SGD(model.parameters(), lr=0.1))
    assert ran == []


class _Sharded(nn.Module):
    pass


_Sharded.__name__, _Sharded.__module__ = "FSDPModule", "torch.distributed.fsdp._fully_shard._fully_shard"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (_Sharded(), r"'1' is a FSDPModule, whose ranks must run together"),
        (nn.SyncBatchNorm(3), r"'1' is a SyncBatchNorm, which talks to all ranks"),
        (nn.LazyLinear(3), r"'1' is a LazyLinear, whose parameters have no shape yet; run one batch"),
        (nn.LazyBatchNorm1d(), r"'1' is a LazyBatchNorm1d, whose parameters have no shape yet"),
    ],
)
def test_models_that_cannot_be_run_alone_are_refused(part, message):
    with pytest.raises(ProbeUnsupported, match=message), visiting(nn.Sequential(nn.Linear(2, 2), part), mode="eval"):
        pass
    assert issubclass(ProbeUnsupported, UnsupportedModelError)


def test_a_sharded_model_of_torch_is_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = fully_shard(nn.Linear(2, 2), mesh=mesh)
        with pytest.raises(ProbeUnsupported, match=r"whose ranks must run together"), visiting(model, mode="eval"):
            pass
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("model", "mode", "message"),
    [
        (torch.relu, "eval", r"model: builtin_function_or_method: expected a torch.nn.Module"),
        (nn.Linear(1, 1), "test", r"mode='test': expected one of eval, train"),
    ],
)
def test_bad_arguments_are_named(model, mode, message):
    with pytest.raises(InvalidArgumentError, match=message), visiting(model, mode=mode):
        pass


def in_another_thread(run):
    failures = []

    def guarded():
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, failures


def test_visits_of_two_threads_that_overlap_put_everything_back(build, batch, photograph, assert_same):
    models, before = [build("transformer"), build("convolutional")], []
    before.extend(photograph(model) for model in models)
    begun, over = threading.Event(), threading.Event()

    def visit_until_the_first_is_over():
        with visiting(models[1], mode="train") as visit:
            begun.set()
            visit.model(batch(visit.model)[0])
            assert over.wait(timeout=60)

    with visiting(models[0], mode="eval") as visit:
        thread, failures = in_another_thread(visit_until_the_first_is_over)
        # The second begins in here, or only after the first: that is for visiting to say.
        begun.wait(timeout=0.3)
        visit.model(batch(visit.model)[0])
    over.set()
    thread.join()
    assert failures == []
    for model, found in zip(models, before, strict=True):
        assert_same(found, photograph(model))


def test_a_visit_leaves_the_fused_path_of_another_threads_model_alone(build, batch):
    mine, other = build("transformer"), build("transformer").eval()
    x, _ = batch(other)
    outputs = []

    def infer():
        with torch.no_grad():
            outputs.append(other(x))

    infer()
    with visiting(mine, mode="eval"):
        thread, failures = in_another_thread(infer)
        thread.join()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        infer()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert failures == []
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2]), "this model's fused path has the same bits, and shows nothing"
