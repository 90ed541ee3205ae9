"""Results of the documented shapes, made up, and the doors every figure is tested through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.figure import Figure

from covshift import plots
from covshift.analysis import distributions
from covshift.grid import VALUES

CHECKS = ["gradient arrives", "gradient zeros", "units", "shift"]


def layer_names(layers: int) -> list[str]:
    return [f"conv{layer}" for layer in range(layers)]


def step_layer(values: np.ndarray, name: str, *, names: list[str] | None = None) -> xr.DataArray:
    steps, layers = values.shape
    coords = {"step": np.arange(steps) * 10, "layer": names or layer_names(layers)}
    return xr.DataArray(values, coords, ("step", "layer"), name)


class Made:
    """Synthetic results of any number of steps and layers; ``fill`` replaces every number."""

    def __init__(self, *, fill: float | None = None, names: list[str] | None = None) -> None:
        self.rng, self.fill, self.names = np.random.default_rng(0), fill, names

    def table(self, steps: int, layers: int, low: float, high: float) -> np.ndarray:
        drawn = self.rng.uniform(low, high, (steps, layers))
        return drawn if self.fill is None else np.full_like(drawn, self.fill)

    def share(self, steps: int, layers: int) -> xr.DataArray:
        return step_layer(self.table(steps, layers, 0.0, 1.0), "share", names=self.names)

    def shift(self, steps: int, layers: int) -> xr.Dataset:
        w1 = step_layer(self.table(steps, layers, 0.01, 1.0), "w1", names=self.names)
        floor = xr.full_like(w1, 0.1)
        return xr.Dataset({"w1": w1, "noise_floor": floor, "off_centre": xr.zeros_like(w1, dtype=bool)})

    def profile(self, steps: int, layers: int) -> xr.Dataset:
        rms = step_layer(10.0 ** self.table(steps, layers, -6.0, -1.0), "rms", names=self.names)
        along = {name: ("step", self.table(steps, 1, 0.1, 0.2)[:, 0]) for name in ("slope", "slope_low", "slope_high")}
        counts = {"n_layers": ("step", np.full(steps, layers)), "vanished": ("step", np.zeros(steps, dtype=int))}
        return xr.Dataset({"rms": rms, "total_decades": ("step", np.full(steps, 3.0)), **along, **counts})

    def river(self, steps: int, *, values: Callable[[int], np.ndarray] | None = None) -> xr.Dataset:
        """A river of drawn values through the real display binning."""
        draw = values or (lambda step: self.rng.normal(step, 1.0, 500))
        counts = np.zeros((steps, VALUES.size))
        for step in range(steps):
            drawn = draw(step) if self.fill is None else np.full(500, self.fill)
            counts[step] = np.bincount(VALUES.ids(drawn.astype(np.float32)), minlength=VALUES.size)
        return distributions.display(counts, np.arange(steps) * 10, layer="conv3", signal="activation", stream="train")

    def diagnosis(self, layers: int, *, verdicts: np.ndarray | None = None) -> Any:
        drawn = self.rng.choice(["ok", "watch", "bad", "not measured", ""], (layers, len(CHECKS)))
        if self.fill is not None:
            drawn = np.full_like(drawn, "not measured", dtype="<U12")
        cells = drawn if verdicts is None else verdicts
        coords = {"layer": self.names or layer_names(layers), "check": CHECKS}
        return SimpleNamespace(grid=lambda: xr.DataArray(cells, coords, ("layer", "check")))

    def paired(self, layers: int, *, runs: tuple[str, ...] = ("plain", "linked")) -> xr.Dataset:
        names = ("gradient_zero_rate", "structural_rate", "gradient_rms", "activation_sd", "w1")
        coords = {"run": list(runs), "layer": self.names or layer_names(layers)}
        tables = {name: (("run", "layer"), self.table(len(runs), layers, 0.01, 1.0)) for name in names}
        return xr.Dataset(tables, coords)

    def curves(self, steps: int, *, runs: tuple[str, ...] = ("plain", "linked")) -> dict[str, xr.DataArray]:
        coords = {"run": list(runs), "step": np.arange(steps)}
        return {"loss": xr.DataArray(self.table(len(runs), steps, 0.0, 2.0), coords, ("run", "step"))}


@dataclass(frozen=True)
class Subject:
    """One figure function, fed with made-up results of a given size."""

    name: str
    draw: Callable[..., Any]
    several: bool = False

    def __call__(self, made: Made, steps: int, layers: int, **where: Any) -> Any:
        return self.draw(made, steps, layers, **where)


SUBJECTS = [
    Subject("verdict grid", lambda m, s, n, **w: plots.plot_verdict_grid(m.diagnosis(n), **w)),
    Subject("activation river", lambda m, s, n, **w: plots.plot_activation_river(m.river(s), **w)),
    Subject("shift map", lambda m, s, n, **w: plots.plot_shift_map(m.shift(s, n), **w)),
    Subject("norm profile", lambda m, s, n, **w: plots.plot_norm_profile(m.profile(s, n), **w)),
    Subject(
        "gradient zeros",
        lambda m, s, n, **w: plots.plot_gradient_zeros(m.share(s, n), m.share(s, n), structural=m.share(s, n), **w),
        several=True,
    ),
    Subject("comparison", lambda m, s, n, **w: plots.plot_comparison(m.paired(n), m.curves(s), **w), several=True),
]


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every figure function in turn."""
    return request.param


@pytest.fixture(scope="session")
def made() -> type[Made]:
    """Maker of synthetic results."""
    return Made


@pytest.fixture
def new_figure() -> Callable[..., Figure]:
    """A figure that pyplot knows nothing of."""
    return lambda **options: Figure(**({"figsize": (9, 5), "layout": "constrained"} | options))


@pytest.fixture(autouse=True)
def _no_figure_left() -> Iterator[None]:
    yield
    pyplot.close("all")
