"""Summaries of runs as the analyses write them, made up number by number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import claims
from common.files import write_json
from common.summaries import Summaries

Run = dict[str, Any]

CHECKS = {"gradient arrives": {"ok": 4}, "scale over depth": {"ok": 1}, "non-finite": {"ok": 4}}
DEEP = {"initialization": "keras", "depth": 50}


def made_up(experiment: str, variant: str, seed: int, **changed: Any) -> Run:
    """A run of four layers of two units, alive, carried through, at 0.5 plus a little by seed."""
    accuracy = 0.5 + 0.01 * seed
    profile = {
        "layers": ["act0", "act1", "act2", "act3"], "step": [0, 90], "rms": [[1.0] * 4] * 2,
        "zero_rate": [[0.5] * 4] * 2,
        "slope": [0.01, 0.01 + 0.001 * seed], "vanished": [0, 0],
    }  # fmt: skip
    machine = {"covshift": "0", "torch": "2", "python": "3", "device": "cpu", "cpu": "x", "cores": 2, "threads": 1}
    run = {
        "covshift_results_version": 1, "key": "k", "experiment": experiment, "preset": "cpu", "variant": variant,
        "title": claims.VARIANTS[variant].title if variant in claims.VARIANTS else variant, "condition": {},
        "seed": seed,
        "plan": {"batch_size": 32, "seeds": 3}, "distance_from_paper": {"steps": {"here": 100, "paper": 312600}},
        "data": {"name": "cifar10", "sha256": "abc", "description": "Recompressed as JPEG."},
        "machine": machine | {"commit": "f00"}, "complete": True, "steps": 100, "parameters": 1000,
        "test_accuracy": accuracy, "test_loss": 1.0,
        "curve": {"step": [50, 100], "test_accuracy": [accuracy + 0.02, accuracy], "test_loss": [1, 1]},
        "evaluations": {"count": 2, "best": accuracy + 0.02, "median": accuracy + 0.01}, "measured": [],
        "seconds": {"cpu": 3600.0, "wall": 4000.0}, "hashes": {"parameters": "d"},
        "units": {"layers": profile["layers"], "units": [2] * 4, "step": [100], "examples": 9, "silent": [[0] * 4]},
        "profiles": {"activation": profile, "activation_grad": profile},
        "diagnosis": {"sentence": "Healthy.", "worst": "ok", "checks": CHECKS, "cause_count": 0, "causes": []},
    }  # fmt: skip
    return run | changed


def written(tmp_path: Path, runs: list[Run]) -> Path:
    for run in runs:
        condition = [f"{name}-{value}" for name, value in run["condition"].items()]
        name = "_".join([run["experiment"], run["preset"], *condition, run["variant"], f"seed-{run['seed']}"])
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        write_json(place / "summary.json", run)
    return tmp_path / "data"


@pytest.fixture
def summary() -> Callable[..., Run]:
    """A run of an experiment, a variant and a seed; by name what is to be otherwise."""
    return made_up


@pytest.fixture
def folder_of() -> Callable[[Path, list[Run]], Path]:
    """Runs written under a folder, as ``--collect`` leaves them."""
    return written


@pytest.fixture
def judged() -> Callable[[Path, str, list[Run]], claims.Judgement]:
    """The judgement of a claim from runs written under a folder."""
    return lambda place, claim, runs: claims.JUDGES[claim](Summaries.of(written(place, runs)))


@pytest.fixture
def depth_runs() -> Callable[..., list[Run]]:
    """Depth runs of variants with so many silent units in the last layer, one number a seed."""

    def runs_of(silent: dict[str, list[int]], **changed: Any) -> list[Run]:
        runs = []
        for variant, counts in silent.items():
            for seed, count in enumerate(counts):
                run = made_up("depth", variant, seed, condition=DEEP, **changed)
                run["units"]["silent"] = [[2, 2, 2, 2], [0, 0, 0, count]]
                runs.append(run)
        return runs

    return runs_of
