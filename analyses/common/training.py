"""Training one network under covshift, so that a kill at any moment costs no more than the time since a checkpoint.

A checkpoint is written at every evaluation and holds all that decides what follows: parameters, optimizer, random
numbers, the curve so far and the recorder's place. Batches follow from seed and step, so nothing else has to be kept.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import covshift
from common.batches import augmented, batch_indices
from common.data import Affine, unit
from common.evidence import evidence
from common.files import read_state, thinned, write_state
from common.jobs import CHECKPOINT, RECORDING, Job, Session, parameter_hash, write_summary
from covshift.datasets import ImageSplit

_CHUNK = 500
"""Images that are evaluated at once."""

_POINTS, _MOMENTS = 200, 12
"""Evaluations of which a summary keeps the curve, and what an experiment measured."""

Build = Callable[[Job, ImageSplit, torch.Generator], nn.Module]
Inputs = Callable[[Job, ImageSplit], Affine]


@dataclass(frozen=True)
class Moment:
    """A run at one of its evaluations, for what an experiment measures besides accuracy.

    ``before`` is the state of the model at the evaluation before; ``batch`` and ``other_batch`` are those of the next
    two steps. Whatever is measured must leave model and optimizer as they were.
    """

    step: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    before: dict[str, Tensor]
    batch: tuple[Tensor, Tensor]
    other_batch: tuple[Tensor, Tensor]


Measure = Callable[[Moment], dict[str, Any]]
Judge = Callable[[xr.DataTree], dict[str, Any]]


def as_in_the_paper(job: Job, data: ImageSplit) -> Affine:
    """Pixels in [0, 1], whatever the job."""
    return unit(data)


class Run:
    """One network in training."""

    def __init__(self, job: Job, data: ImageSplit, model: nn.Module, inputs: Affine, device: str) -> None:
        self.job, self.plan, self.device = job, job.plan, device
        self._data, self._inputs = data, Affine(*(part.to(device) for part in inputs))
        count = self.plan.train_examples or len(data.train_images)
        self._train = data.train_images[:count], data.train_labels[:count]
        self.model = model.to(device)
        self._protocol = self.plan.optimizer_of(job.variant)
        self.optimizer = self._protocol.make(self.model)
        self.step = 0
        self.curve: dict[str, list[float]] = {name: [] for name in ("step", "test_accuracy", "test_loss", "train_loss")}
        self.measured: list[dict[str, Any]] = []
        self.seconds = {"cpu": 0.0, "wall": 0.0}
        self._losses = torch.zeros((), dtype=torch.float64, device=device)
        self.before = copy.deepcopy(self.model.state_dict())

    @property
    def train_examples(self) -> int:
        """Training images the batches are drawn from."""
        return len(self._train[0])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images as the network sees them, and labels, of a step."""
        size = self.plan.batch_of(self.job.variant)
        chosen = batch_indices(
            step,
            examples=self.train_examples,
            batch_size=size,
            seed=self.job.seed,
            shuffled=self.plan.shuffled,
        )
        images = self._train[0][chosen]
        if self.plan.augmented:
            images = augmented(images, seed=self.job.seed, step=step)
        return self._inputs(images.to(self.device)), self._train[1][chosen].to(self.device)

    def advance(self) -> Tensor:
        """Make one step; returns its loss."""
        images, labels = self.batch(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._protocol.rate_at(self.step)
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._losses += loss.detach()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, recorder: covshift.Recorder) -> float:
        """Add a point to the curve, and record a pass over the watched training images; returns test accuracy."""
        self.model.eval()
        accuracy, loss = self.test(self.plan.test_examples)
        self.model.train()
        self.watch(recorder)
        steps = self.step - (int(self.curve["step"][-1]) if self.curve["step"] else 0)
        values = (self.step, accuracy, loss, float(self._losses) / steps)
        for name, value in zip(self.curve, values, strict=True):
            self.curve[name].append(value)
        self._losses.zero_()
        return accuracy

    @torch.no_grad()
    def watch(self, recorder: covshift.Recorder) -> None:
        """Record a pass over the watched training images."""
        self.model.eval()
        with recorder.evaluation():
            for images in self._train[0][: self.plan.watched_examples].split(_CHUNK):
                self.model(self._inputs(images.to(self.device)))
        self.model.train()

    @torch.no_grad()
    def test(self, examples: int | None = None) -> tuple[float, float]:
        """Accuracy and mean loss on the first test images, all by default; the model must be in evaluation mode."""
        images, labels = self._data.test_images[:examples], self._data.test_labels[:examples]
        hits, loss = 0, 0.0
        for some, named in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
            logits = self.model(self._inputs(some.to(self.device)))
            target = named.to(self.device)
            hits += int((logits.argmax(1) == target).sum())
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
        return hits / len(images), loss / len(images)

    def moment(self) -> Moment:
        """What an experiment measures on now."""
        return Moment(
            self.step, self.model, self.optimizer, self.before, self.batch(self.step), self.batch(self.step + 1)
        )

    def state_dict(self, recorder: covshift.Recorder) -> dict[str, Any]:
        """All that decides what follows; only between an evaluation and the next step."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.device) if self.device.startswith("cuda") else None,
            "curve": self.curve,
            "measured": self.measured,
            "seconds": self.seconds,
            "recorder": recorder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.step, self.curve, self.measured = state["step"], state["curve"], state["measured"]
        self.seconds = state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.before = copy.deepcopy(self.model.state_dict())
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self.device)


@dataclass(frozen=True)
class Trainer:
    """How an experiment's runs are made.

    Attributes
    ----------
    build, inputs : callable
        Its network, and how pixels reach it.
    measure : callable, optional
        What it measures at every evaluation besides accuracy.
    judge : callable, optional
        What it reads from the recording of a finished run besides what every summary keeps.
    """

    build: Build
    inputs: Inputs = as_in_the_paper
    measure: Measure | None = None
    judge: Judge | None = None

    def __call__(self, job: Job, folder: Path, data: ImageSplit, session: Session) -> dict[str, Any]:
        """Train, record, and write the summary, also of a run that the deadline ends early; returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        # Dropout draws from the global generator, weights from one of their own.
        torch.manual_seed(job.seed)
        model = self.build(job, data, torch.Generator().manual_seed(job.seed))
        run = Run(job, data, model, self.inputs(job, data), session.device)
        state = read_state(folder / CHECKPOINT) if session.resume else None
        if state is not None and state["key"] != job.key(data):
            state = None
        with self._recorder(run, folder, state) as recorder:
            if state is not None:
                run.load_state_dict(state)
                # A resumed recording gives up what it holds of the step it goes on from, this pass included.
                run.watch(recorder)
            self._train(run, recorder, folder, session, key=job.key(data))
        return self._finish(run, folder, data)

    def _recorder(self, run: Run, folder: Path, state: dict[str, Any] | None) -> covshift.Recorder:
        job = run.job
        attrs = {"variant": job.variant, "seed": job.seed, "experiment": job.experiment} | dict(job.condition)
        detail = covshift.first(10) | covshift.every(job.plan.detail_every)
        recorder = covshift.record(
            run.model,
            folder / RECORDING,
            every=covshift.first(20) | covshift.every(job.plan.record_every),
            histograms_every=detail,
            units_every=detail,
            name=job.name,
            attrs=attrs,
            overwrite=state is None,
            resume=state is not None,
        )
        if state is not None:
            recorder.load_state_dict(state["recorder"])
        return recorder

    def _train(self, run: Run, recorder: covshift.Recorder, folder: Path, session: Session, *, key: str) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        while run.step < run.plan.steps:
            recorder.log(loss=run.advance())
            if run.step % run.plan.evaluate_every and run.step < run.plan.steps:
                continue
            accuracy = run.evaluate(recorder)
            if self.measure is not None:
                with recorder.pause():
                    run.measured.append({"step": run.step} | self.measure(run.moment()))
            run.seconds["cpu"] += time.process_time() - cpu
            run.seconds["wall"] += time.perf_counter() - wall
            cpu, wall = time.process_time(), time.perf_counter()
            write_state(folder / CHECKPOINT, run.state_dict(recorder) | {"key": key})
            run.before = copy.deepcopy(run.model.state_dict())
            session.progress(run.job, run.step, accuracy)
            if time.monotonic() > session.deadline:
                break

    def _finish(self, run: Run, folder: Path, data: ImageSplit) -> dict[str, Any]:
        """Judge the recording and write the summary; the checkpoint stays where the run can go on."""
        run.model.eval()
        accuracy, loss = run.test(run.plan.final_examples)
        complete = run.step >= run.plan.steps
        recording = covshift.open(folder / RECORDING)
        summary = run.job.describe(data, run.device) | {
            "complete": complete,
            "steps": run.step,
            "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            "test_accuracy": accuracy,
            "test_loss": loss,
            "evaluations": _statistics(run.curve["test_accuracy"]),
            "curve": {name: thinned(values, _POINTS) for name, values in run.curve.items()},
            "measured": thinned(run.measured, _MOMENTS),
            "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
            "hashes": {"parameters": parameter_hash(run.model)},
            **evidence(recording, distinct_examples=run.train_examples),
            **({} if self.judge is None else self.judge(recording)),
        }
        write_summary(folder, summary)
        if complete:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return summary


def _statistics(accuracies: list[float]) -> dict[str, float]:
    """What the paper reports of a run, over all its evaluations."""
    return {"count": len(accuracies), "best": max(accuracies), "median": statistics.median(accuracies)}
