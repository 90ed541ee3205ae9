"""Results of the documented shapes, made up, and the doors every figure is tested through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.figure import Figure

from covshift import plots
from covshift.analysis import distributions
from covshift.diagnosis import Diagnosis
from covshift.grid import VALUES

CHECKS = ["gradient arrives", "gradient zeros", "units", "shift"]


def layer_names(layers: int) -> list[str]:
    return [f"conv{layer}" for layer in range(layers)]


class Drawn(Diagnosis):
    """A diagnosis of which only what is drawn is there, and made up."""

    causes: tuple[Any, ...] = ()

    def __init__(self, grid: xr.DataArray, causes: tuple[Any, ...]) -> None:
        super().__init__((), ())
        object.__setattr__(self, "cells", grid)
        object.__setattr__(self, "causes", causes)

    def grid(self) -> xr.DataArray:
        return self.cells


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
        rms = step_layer(10.0 ** np.minimum(self.table(steps, layers, -6.0, -1.0), 300.0), "rms", names=self.names)
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

    def diagnosis(self, layers: int, *, verdicts: np.ndarray | None = None, causes: tuple[Any, ...] = ()) -> Any:
        drawn = self.rng.choice(["ok", "watch", "bad", "not measured", ""], (layers, len(CHECKS)))
        if self.fill is not None:
            drawn = np.full_like(drawn, "not measured", dtype="<U12")
        cells = drawn if verdicts is None else verdicts
        coords = {"layer": self.names or layer_names(layers), "check": CHECKS}
        return Drawn(xr.DataArray(cells, coords, ("layer", "check")), causes)

    def parameter_norms(self, steps: int, parameters: int) -> xr.Dataset:
        names = [f"{name}.weight" for name in (self.names or layer_names(parameters))]
        coords = {"step": np.arange(steps) * 10, "parameter": names}
        after = xr.DataArray(self.table(steps, parameters, 0.1, 1.0), coords, ("step", "parameter"))
        return xr.Dataset({"before": after.copy(), "after": after, "clip_factor": ("step", np.full(steps, 0.5))})

    def update_ratio(self, steps: int, parameters: int) -> xr.DataArray:
        names = [f"{name}.weight" for name in (self.names or layer_names(parameters))]
        coords = {"step": np.arange(steps) * 10, "parameter": names}
        return xr.DataArray(self.table(steps, parameters, 1e-4, 1e-2), coords, ("step", "parameter"), "update_ratio")

    def ridges(self, steps: int, layers: int, *, cells: int = 160) -> xr.Dataset:
        shape, edges = (steps, layers), np.linspace(-1.0, 3.0, cells + 1)
        middle, width = self.rng.uniform(0, 2, (*shape, 1)), self.rng.uniform(0.1, 1, (*shape, 1))
        density = np.exp(-(((edges[1:] - middle) / width) ** 2)) / cells
        density = density if self.fill is None else np.full_like(density, self.fill)
        parts = {
            "zero_share": (0.0, 0.5),
            "below_share": (0, 0.02),
            "above_share": (0, 0.02),
            "non_finite_share": (0, 0.001),
            "mean": (0, 1),
            "sd": (0.1, 1),
        }
        tables = {name: (("step", "layer"), self.table(steps, layers, *ends)) for name, ends in parts.items()}
        counted = np.full(shape, 0 if self.fill is not None and np.isnan(self.fill) else 100)
        return xr.Dataset(
            {"density": (("step", "layer", "cell"), density), "elements": (("step", "layer"), counted), **tables},
            coords={
                "step": np.arange(steps) * 10,
                "layer": self.names or layer_names(layers),
                "lower": ("cell", edges[:-1]),
                "upper": ("cell", edges[1:]),
            },
            attrs={"signal": "activation", "scale": "linear", "linear_within": np.inf},
        )

    def track(self, steps: int, *, kind: str = "Tanh") -> xr.Dataset:
        z = np.linspace(-2.0, 2.0, 101)
        curve = 1 - np.tanh(z) ** 2
        along = {name: ("step", self.table(steps, 1, low, 1.0)[:, 0]) for name, low in (("mean", -1.0), ("sd", 0.1))}
        shares = {
            name: ("step", self.table(steps, 1, 0.0, 1.0)[:, 0]) for name in ("active_mass", "derivative_at_mean")
        }
        return xr.Dataset(
            {**along, **shares, "derivative": ("z", curve), "flat": ("z", curve < 0.2)},
            coords={"step": np.arange(steps) * 10, "z": z},
            attrs={"layer": (self.names or ["act3"])[0], "activation": kind},
        )

    def stability(self, layers: int, *, states: list[str] | None = None) -> xr.Dataset:
        kinds = ["STABLE", "DRIFTING", "FROZEN", "UNDETERMINED"]
        data: dict[str, Any] = {"state": ("layer", states or [kinds[layer % 4] for layer in range(layers)])}
        data["drifts_by"] = ("layer", np.where(np.array(data["state"][1]) == "DRIFTING", "location", ""))
        for part in ("location", "scale"):
            drift = self.table(1, layers, -1.0, 1.0)[0]
            data |= {f"{part}_{n}": ("layer", drift + d) for n, d in (("drift", 0.0), ("low", -0.1), ("high", 0.1))}
        change = self.table(1, layers, 0.0, 1.0)[0]
        data |= {f"shape_{n}": ("layer", change + d) for n, d in (("shift", 0.0), ("low", -0.1), ("high", 0.1))}
        settled = np.array([20 * layer if layer % 4 == 0 else -1 for layer in range(layers)], dtype=int)
        data |= {f"settled_{name}": ("layer", settled) for name in ("step", "low", "high")}
        data |= {"records": ("layer", np.full(layers, 40)), "broken": ("layer", np.zeros(layers, dtype=bool))}
        data["finite_until"] = ("layer", np.full(layers, -1))
        attrs = {"window_start": 80, "window_end": 100, "location_margin": 0.2, "scale_margin": 0.18}
        attrs |= {"min_records": 40}
        return xr.Dataset(data, {"layer": self.names or layer_names(layers)}, attrs)

    def stability_history(self, ends: int, layers: int) -> xr.Dataset:
        parts = [self.stability(layers) for _ in range(max(ends, 1))]
        steps = xr.DataArray(np.arange(len(parts)) * 10 + 50, dims="end", name="end")
        return xr.concat(parts, steps).isel(end=slice(ends))

    def unit_history(self, steps: int, *, units: int = 40) -> xr.Dataset:
        fates = ["alive", "revived", "silent", "died", "born dead", "not finite", "not recorded"]
        counts = self.rng.multinomial(units, np.full(7, 1 / 7), steps) if units else np.zeros((steps, 7), dtype=int)
        attrs = {"units": 0 if self.fill is not None and np.isnan(self.fill) else units, "needed_examples": 3000}
        attrs |= {"unit_records": steps}
        attrs |= {"finite_until": -1}
        coords = {"step": np.arange(steps) * 10, "fate": fates}
        return xr.Dataset({"count": (("step", "fate"), counts)}, coords, attrs | {"layers": 2})

    def ics(self, layers: int) -> xr.Dataset:
        names = ("ics", "gradient_norm", "gradient_noise", "relative_ics", "cosine", "ics_to_noise")
        tables = {name: ("layer", self.table(1, layers, 0.1, 1.0)[0]) for name in names}
        return xr.Dataset(tables, {"layer": self.names or layer_names(layers)})

    def attribution(self, layers: int) -> xr.Dataset:
        tables = {f"{name}_rms": ("layer", self.table(1, layers, 0.1, 1.0)[0]) for name in ("upstream", "own")}
        return xr.Dataset(tables, {"layer": self.names or layer_names(layers)})

    def paired(self, layers: int, *, runs: tuple[str, ...] = ("plain", "linked")) -> xr.Dataset:
        names = ("gradient_zero_rate", "structural_rate", "gradient_rms", "activation_sd", "w1")
        coords = {"run": list(runs), "layer": self.names or layer_names(layers)}
        tables = {name: (("run", "layer"), self.table(len(runs), layers, 0.01, 1.0)) for name in names}
        return xr.Dataset(tables, coords)

    def differences(
        self, steps: int, layers: int, *, groups: tuple[str, ...] = ("linked",), seeds: int = 3
    ) -> xr.Dataset:
        """Every second layer is a nonlinearity; the interval of about half of the cells covers 0."""
        shape = (len(groups), steps, layers)
        data: dict[str, Any] = {}
        for measure in ("structural_rate", "gradient_rms", "activation_sd"):
            values = self.table(len(groups) * steps, layers, -0.5, 0.5).reshape(shape)
            if measure == "structural_rate":
                values[..., ::2] = np.nan
            margin = np.full(shape, 0.25 if seeds > 1 else np.nan)
            for end, moved in (("", values), ("_low", values - margin), ("_high", values + margin)):
                data[f"{measure}{end}"] = (("group", "step", "layer"), moved, {"exact_zeros": 0})
        coords = {
            "group": list(groups),
            "step": np.arange(steps) * 10,
            "layer": self.names or layer_names(layers),
            "seeds": ("group", [seeds] * len(groups)),
            "steps_left_out": ("group", [2] * len(groups)),
        }
        attrs = {"reference": "plain", "reference_seeds": seeds, "layers_left_out": 1, "level": 0.9}
        return xr.Dataset(data, coords, attrs)

    def curves(self, steps: int, *, runs: tuple[str, ...] = ("plain", "linked")) -> dict[str, xr.DataArray]:
        coords = {"run": list(runs), "step": np.arange(steps)}
        return {"loss": xr.DataArray(self.table(len(runs), steps, 0.0, 2.0), coords, ("run", "step"))}


@dataclass(frozen=True)
class Subject:
    """One figure function, fed with made-up results of a given size.

    ``numbers`` are those of the first results drawn that must be found among what the artists hold; None where these
    hold others made of them, such as levels and shapes.
    """

    name: str
    draw: Callable[..., Any]
    several: bool = False
    numbers: Callable[[Made, int, int], Any] | None = None

    @property
    def names_layers(self) -> bool:
        """Whether every layer is a row of its own."""
        return self.name not in (
            "activation river",
            "operating point",
            "stability of one",
            "dead units",
            "update ratio",
        )

    def __call__(self, made: Made, steps: int, layers: int, **where: Any) -> Any:
        return self.draw(made, steps, layers, **where)


def positive(values: xr.DataArray) -> np.ndarray:
    """What a logarithmic axis can hold."""
    return np.where(values.values > 0, values.values, np.nan)


def surely_apart(differences: xr.Dataset) -> xr.DataArray:
    """Differences whose interval leaves 0 out: the others are grey."""
    low, high = differences["structural_rate_low"], differences["structural_rate_high"]
    return differences["structural_rate"].where((low > 0) | (high < 0))


SUBJECTS = [
    Subject(
        "verdict grid",
        lambda m, s, n, **w: plots.plot_verdict_grid(m.diagnosis(n), **w),
    ),
    Subject("activation river", lambda m, s, n, **w: plots.plot_activation_river(m.river(s), **w)),
    Subject(
        "shift map",
        lambda m, s, n, **w: plots.plot_shift_map(m.shift(s, n), **w),
        numbers=lambda m, s, n: (d := m.shift(s, n))["w1"].where(d["w1"] > d["noise_floor"]),
    ),
    Subject(
        "norm profile",
        lambda m, s, n, **w: plots.plot_norm_profile(m.profile(s, n), m.parameter_norms(s, n), **w),
        several=True,
        numbers=lambda m, s, n: positive(m.profile(s, n)["rms"])[-1:],
    ),
    Subject(
        "ridgeline",
        lambda m, s, n, **w: plots.plot_ridgeline(m.ridges(s, n), **w),
    ),
    Subject(
        "operating point",
        lambda m, s, n, **w: plots.plot_operating_track(m.track(s), **w),
        several=True,
        numbers=lambda m, s, n: m.track(s)["mean"],
    ),
    Subject(
        "stability",
        lambda m, s, n, **w: plots.plot_stability(m.stability(n), **w),
        several=True,
        numbers=lambda m, s, n: (d := m.stability(n))["settled_step"].where(d["settled_step"] >= 0),
    ),
    Subject(
        "stability of one",
        lambda m, s, n, **w: plots.plot_stability(
            m.stability(n), m.stability_history(s, n), layer=str(m.stability(n)["layer"].values[0]), **w
        ),
        several=True,
        numbers=lambda m, s, n: (m.stability(n), m.stability_history(s, n))[1]["location_drift"][:, 0].where(
            lambda d: abs(d) <= 1
        ),
    ),
    Subject(
        "dead units",
        lambda m, s, n, **w: plots.plot_dead_units(m.unit_history(s), **w),
        numbers=lambda m, s, n: (d := m.unit_history(s))["count"].sel(fate="born dead").where(d.attrs["units"] > 0),
    ),
    Subject(
        "update ratio",
        lambda m, s, n, **w: plots.plot_update_ratio(m.update_ratio(s, n), **w),
        numbers=lambda m, s, n: positive(m.update_ratio(s, n)),
    ),
    Subject(
        "ics",
        lambda m, s, n, **w: plots.plot_gradient_ics(m.ics(n), m.attribution(n), **w),
        several=True,
        numbers=lambda m, s, n: positive(m.ics(n)["ics"]),
    ),
    Subject(
        "gradient zeros",
        lambda m, s, n, **w: plots.plot_gradient_zeros(m.share(s, n), m.share(s, n), structural=m.share(s, n), **w),
        several=True,
        numbers=lambda m, s, n: m.share(s, n),
    ),
    Subject(
        "differences",
        lambda m, s, n, **w: plots.plot_differences(m.differences(s, n), **w),
        several=True,
        numbers=lambda m, s, n: surely_apart(m.differences(s, n)),
    ),
    Subject(
        "comparison",
        lambda m, s, n, **w: plots.plot_comparison(m.paired(n), m.curves(s), **w),
        several=True,
        numbers=lambda m, s, n: m.paired(n)["gradient_zero_rate"],
    ),
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
