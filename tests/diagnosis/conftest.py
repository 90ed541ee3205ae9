"""A small healthy network as raw tensors, in which tests plant one fault at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from covshift.diagnosis import Diagnosis, Finding
from covshift.schema import Layer

PAIRS, UNITS, RECORDS, EVERY, EXAMPLES = 5, 4, 14, 10, 900


def layers() -> list[Layer]:
    pairs = []
    for index in range(PAIRS):
        conv, act, depth = f"conv{index}", f"act{index}", 2 * index
        pairs.append(Layer(conv, "Conv2d", depth, 1, 0, UNITS))
        relu = {"activation": "ReLU", "preactivation_of": conv, "structural_measured": True}
        pairs.append(Layer(act, "ReLU", depth + 1, 1, 0, UNITS, **relu))
    return pairs


Tensors = dict[str, dict[str, np.ndarray]]
Build = Callable[..., xr.DataTree]


def healthy_step(rng: np.random.Generator) -> Tensors:
    tensors: Tensors = {}
    for index in range(PAIRS):
        z, upstream = rng.normal(size=(2, EXAMPLES, UNITS))
        tensors[f"conv{index}"] = {"activation": z, "activation_grad": upstream * (z > 0)}
        tensors[f"act{index}"] = {"activation": np.maximum(z, 0), "activation_grad": upstream}
    return tensors


def parameter(update: float = 1e-3, *, gradient: bool = True) -> dict[str, float]:
    measured = {"gradient_norm": 1.0, "gradient_norm_preclip": 1.0, "gradient_measured": 1} if gradient else {}
    return {"weight_norm": 1.0, "update_norm": update, "sampled_share": 1.0} | measured


@pytest.fixture(scope="session")
def healthy_steps() -> dict[int, Tensors]:
    rng = np.random.default_rng(0)
    return {EVERY * record: healthy_step(rng) for record in range(RECORDS)}


@pytest.fixture(scope="session")
def planted(make_recording: Build, healthy_steps: dict[int, Tensors]) -> Build:
    """The healthy network after ``change(step, tensors)`` has had its way with a copy of every step."""

    def build(change: Callable[[int, Tensors], None] = lambda step, tensors: None, **options: object) -> xr.DataTree:
        steps = {}
        for step, tensors in healthy_steps.items():
            steps[step] = {layer: dict(signals) for layer, signals in tensors.items()}
            change(step, steps[step])
        rows = {step: {f"conv{index}.weight": parameter() for index in range(PAIRS)} for step in steps}
        defaults = {
            "layers": layers(),
            "flat": {f"act{index}": lambda z: z <= 0 for index in range(PAIRS)},
            "parameters": rows,
        }
        return make_recording(steps, **(defaults | options))

    return build


@pytest.fixture(scope="session")
def healthy(planted: Build) -> xr.DataTree:
    return planted()


@pytest.fixture(scope="session")
def network_layers() -> list[Layer]:
    return layers()


@pytest.fixture(scope="session")
def flagged() -> Callable[[Diagnosis], dict[tuple[str, str], Finding]]:
    """What is watch or bad, by check and layer."""
    return lambda diagnosis: {(f.check, f.layer): f for f in diagnosis.findings if f.verdict in ("watch", "bad")}


@pytest.fixture(scope="session")
def of() -> Callable[[Diagnosis, str, str], Finding]:
    """The one finding of a check in a layer."""

    def finding(diagnosis: Diagnosis, check: str, layer: str) -> Finding:
        (found,) = [f for f in diagnosis.findings if (f.check, f.layer) == (check, layer)]
        return found

    return finding
