"""The protocol of the experiments: batches, learning rates, presets, and which runs a command line asks for."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import depth
import resnet
from common.batches import augmented, batch_indices
from common.data import load, standardised, unit
from common.experiment import Experiment
from common.jobs import Job, Session
from common.plan import Optimizer, distance, epochs
from common.training import Run
from common.variants import THIRTEEN, VARIANTS

SCRIPTS = (
    "allcnn", "covariate_shift", "depth", "input_shift", "no_batchnorm", "parameter_matched", "resnet", "step_time",
    "width",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Any:
    return load("digits-32", Path(), download=False)


@pytest.mark.parametrize("shuffled", [True, False])
def test_an_epoch_shows_every_image_once_and_its_last_batch_is_what_is_left(shuffled: bool) -> None:
    batches = [batch_indices(s, examples=50, batch_size=16, seed=3, shuffled=shuffled) for s in range(8)]
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 2
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert torch.equal(first, second) is not shuffled


def test_batches_follow_from_seed_and_step_alone() -> None:
    def batch(step: int, seed: int = 0) -> list[int]:
        return batch_indices(step, examples=100, batch_size=10, seed=seed, shuffled=True).tolist()

    later = batch(57)
    batch(3)
    assert batch(57) == later
    assert batch(57, seed=1) != later


def test_an_augmented_image_is_a_flip_and_a_shift_by_up_to_a_tenth_of_it() -> None:
    image = torch.arange(2 * 32 * 32, dtype=torch.float32).view(1, 2, 32, 32)
    candidates = {}
    for flipped in (False, True):
        for down in range(-3, 4):
            for right in range(-3, 4):
                rows = np.clip(np.arange(32) + down, 0, 31)
                columns = np.clip(np.arange(32) + right, 0, 31)
                moved = image[0][:, rows][:, :, columns]
                candidates[flipped, down, right] = moved.flip(2) if flipped else moved
    seen = set()
    for made in augmented(image.expand(400, -1, -1, -1), seed=0, step=5):
        seen |= {key for key, candidate in candidates.items() if torch.equal(made, candidate)}
    # 98 possibilities, 400 draws: about two are missed.
    assert len(seen) > 85
    again = augmented(image.expand(400, -1, -1, -1), seed=0, step=5)
    assert torch.equal(again, augmented(image.expand(400, -1, -1, -1), seed=0, step=5))
    assert not torch.equal(again, augmented(image.expand(400, -1, -1, -1), seed=0, step=6))


def test_the_learning_rate_decays_as_in_keras_and_falls_at_its_milestones() -> None:
    optimizer = Optimizer("nesterov", 0.01, decay=1e-6, milestones=((100, 0.75), (200, 0.5)))
    for step, factor in ((0, 1.0), (99, 1.0), (100, 0.75), (199, 0.75), (200, 0.5), (10**6, 0.5)):
        assert optimizer.rate_at(step) == pytest.approx(0.01 * factor / (1 + 1e-6 * step))


def test_a_variant_is_trained_at_its_own_rate_and_normalised_by_the_plans_momentum(data: Any) -> None:
    plan = replace(
        resnet.SMOKE, optimizer=Optimizer("sgd", 0.5, decay=1.0), rates=(("selu", 0.25),), batch_norm_momentum=0.3
    )
    jobs = {variant: Job("resnet", "x", variant, {}, 0, plan, plan) for variant in ("selu", "relu")}
    for variant, rate in (("selu", 0.25), ("relu", 0.5)):
        model = resnet.build(jobs[variant], data, torch.Generator().manual_seed(0))
        assert {module.momentum for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.3}
        run = Run(jobs[variant], data, model, unit(data), "cpu")
        for step in (0, 1):
            run.advance()
            assert run.optimizer.param_groups[0]["lr"] == rate / (1 + step)


@pytest.mark.parametrize(("kind", "expected"), [
    # one parameter of gradient 2: SGD, its first Nesterov step, RMSprop with rho 0.9, Adam
    ("sgd", 0.1 * 2), ("nesterov", 0.1 * (2 + 0.9 * 2)), ("rmsprop", 0.1 * 2 / np.sqrt(0.1 * 4)), ("adam", 0.1),
])  # fmt: skip
def test_the_first_step_of_each_optimizer_is_that_of_keras(kind: Any, expected: float) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = Optimizer(kind, 0.1).make(model)
    (2 * model.weight.sum()).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(-expected, rel=1e-5)


def test_inputs_are_what_their_names_say(data: Any) -> None:
    raw = unit(data, scale=255.0)(data.train_images)
    assert (raw.min().item(), raw.max().item()) == (0, 255)
    shifted = standardised(data, shift=3.0)(data.train_images)
    assert shifted.mean(dim=(0, 2, 3)).numpy() == pytest.approx([3] * 3, abs=1e-3)
    assert shifted.std(dim=(0, 2, 3)).numpy() == pytest.approx([1] * 3, abs=1e-3)


def test_every_base_is_built_single_linked_and_wide_and_one_net_with_bn() -> None:
    kinds = [variant.kind for variant in VARIANTS.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"single": 4, "linked": 4, "wide": 4, "batch-norm": 1}
    z = torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    for variant in VARIANTS.values():
        if variant.kind == "linked":
            base = variant.base_activation()
            torch.testing.assert_close(variant.activation()(z), torch.cat([base(z), base(-z)], 1))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_the_three_presets_and_the_paper_is_at_no_distance_from_itself(name: str) -> None:
    presets = importlib.import_module(name).EXPERIMENT.presets
    assert list(presets) == ["smoke", "cpu", "paper"]
    assert distance(presets["paper"], presets["paper"]) == {}
    for plan in presets.values():
        assert [axis for axis, _ in plan.axes] == [axis for axis, _ in presets["paper"].axes]
        assert plan.evaluate_every <= plan.steps
    assert presets["smoke"].dataset == "digits-32"


def test_presets_hold_the_papers_protocol() -> None:
    plan = depth.PAPER
    assert (plan.variants, plan.batch_size, plan.shuffled, plan.steps) == (THIRTEEN, 32, False, 200 * 1563)
    assert epochs(1, batch_size=128) == 391
    assert distance(replace(plan, steps=10, seeds=9), plan) == {"steps": {"here": 10, "paper": 312_600}}


def job(**changed: Any) -> Job:
    options = {"condition": {"depth": 3}, "seed": 0, "variant": "relu", "plan": depth.SMOKE} | changed
    return Job("depth", "smoke", paper=depth.PAPER, **options)


def test_the_key_of_a_run_changes_with_what_decides_its_numbers_and_nothing_else(data: Any) -> None:
    key = job().key(data)
    other = replace(data, sha256="0" * 64)
    changes = [{"condition": {"depth": 4}}, {"seed": 1}, {"variant": "selu"}, {"plan": replace(depth.SMOKE, steps=25)}]
    assert len({key, job().key(other), *(job(**change).key(data) for change in changes)}) == 6
    assert job(plan=replace(depth.SMOKE, seeds=9, variants=("selu",), axes=())).key(data) == key


def experiment(made: list[str]) -> Experiment:
    """Two variants at two depths, whose runs are only noted."""

    def perform(job: Job, folder: Path, data: Any, session: Session) -> dict[str, Any]:
        from common.jobs import write_summary

        folder.mkdir(parents=True)
        made.append(job.name)
        diagnosis = {"sentence": "none", "worst": "ok"}
        summary = job.describe(data, "cpu") | {
            "complete": True, "steps": 1, "parameters": 1, "seconds": {"cpu": 0.0}, "diagnosis": diagnosis,
        }  # fmt: skip
        write_summary(folder, summary)
        return summary

    plan = replace(depth.SMOKE, axes=(("depth", (2, 3)),), seeds=2)
    return Experiment("depth", "title", {"smoke": plan, "paper": plan}, perform)


def test_a_command_line_makes_the_runs_it_asks_for_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[str] = []
    arguments = ["--preset", "smoke", "--out", str(tmp_path)]
    assert experiment(made).main([*arguments, "--variants", "relu", "--depth", "3", "--seeds", "1"]) == 0
    assert made == ["depth_smoke_depth-3_relu_seed-0"]
    experiment(made).main(arguments)
    assert len(made) == len(set(made)) == 8
    experiment(made).main(arguments)
    assert len(made) == 8
    assert "8 of 8 runs are finished already" in capsys.readouterr().out
    experiment(made).main([*arguments, "--steps", "9", "--variants", "relu", "--depth", "2", "--seeds", "1"])
    assert made[-1] == "depth_smoke-9_depth-2_relu_seed-0"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--variants", "rleu"], "expected some of relu, linked-relu"), (["--variants", ","], "expected some of"),
    (["--seeds", "0"], "whole numbers from 1"), (["--steps", "-3"], "whole numbers from 1"),
    (["--depth", "deep"], "expected comma-separated values such as 2"),
    (["--dataset", "cifar10", "--data", "/nowhere"], "holds no CIFAR-10"),
])  # fmt: skip
def test_what_cannot_be_run_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        experiment([]).main(["--preset", "smoke", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
