"""Runs of a chain of convolutions and rectifiers whose tensors are drawn, not computed, and pages of them, parsed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from covshift.reporting import write_report
from covshift.schema import Layer

EXAMPLES, UNITS, POSITIONS = 16, 4, 6
WATCHED = 1_000
"""Examples of the evaluation pass: enough to tell dead units from rare ones."""

Builder = Callable[..., xr.DataTree]


def chain_layers(pairs: int, *, linked: bool, names: Sequence[str] | None) -> list[Layer]:
    called = list(names or [name for pair in range(pairs) for name in (f"conv{pair}", f"act{pair}")])
    layers = []
    for pair in range(pairs):
        producer, nonlinearity = called[2 * pair], called[2 * pair + 1]
        layers.append(Layer(producer, "Conv2d", 2 * pair, 1, 0, UNITS))
        kind = ("LinkedReLU", UNITS * 2, 2) if linked else ("ReLU", UNITS, 0)
        layers.append(
            Layer(
                nonlinearity,
                kind[0],
                2 * pair + 1,
                unit_axis=1,
                example_axis=0,
                unit_count=kind[1],
                activation=kind[0],
                linkage_members=kind[2],
                preactivation_of=producer,
                structural_measured=True,
            )
        )
    return layers


def chain_tensors(
    layers: Sequence[Layer], rng: np.random.Generator, *, progress: float, dying: bool, examples: int = EXAMPLES
) -> dict[str, dict[str, np.ndarray]]:
    """Tensors of one step; a dying chain loses units and gradient towards its input as ``progress`` goes to 1."""
    tensors: dict[str, dict[str, np.ndarray]] = {}
    pairs = len(layers) // 2
    for pair in range(pairs):
        producer, nonlinearity = layers[2 * pair], layers[2 * pair + 1]
        shape = (examples, UNITS, POSITIONS)
        z = rng.normal(0.3 * progress, 1.0 + progress, shape).astype(np.float32)
        lost = 0.15 * (pairs - 1 - pair) * progress if dying else 0.0
        upstream = rng.normal(0.0, 10.0 ** (-3 - lost), shape).astype(np.float32)
        if dying and progress > 0.4:
            z[:, 0] = -np.abs(z[:, 0])
        if dying and progress > 0.1 and pair < pairs // 3:
            upstream[:] = 0.0
        members = [np.maximum(z, 0), np.maximum(-z, 0)] if nonlinearity.linkage_members else [np.maximum(z, 0)]
        live = z != 0 if nonlinearity.linkage_members else z > 0
        above = np.concatenate([upstream] * len(members), axis=1)
        tensors[producer.name] = {"activation": z, "activation_grad": np.where(live, upstream, np.float32(0.0))}
        tensors[nonlinearity.name] = {"activation": np.concatenate(members, axis=1), "activation_grad": above}
    return tensors


def build_run(
    build: Builder,
    *,
    pairs: int = 3,
    steps: Sequence[int] = (0, 10, 20, 30, 40, 50),
    linked: bool = False,
    dying: bool = False,
    names: Sequence[str] | None = None,
    name: str = "run",
    attrs: dict[str, Any] | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """A recording of the chain at ``steps``, with an evaluation pass at the last one."""
    rng = np.random.default_rng(seed)
    layers = chain_layers(pairs, linked=linked, names=names)
    last = max(steps, default=0)

    def at(step: int, examples: int = EXAMPLES) -> dict[str, dict[str, np.ndarray]]:
        return chain_tensors(layers, rng, progress=step / max(last, 1), dying=dying, examples=examples)

    flat = {layer.name: (lambda z: z == 0) if linked else (lambda z: z <= 0) for layer in layers[1::2]}
    ratio = 1e-7 if dying else 1e-3
    weights = {f"{layer.name}.weight": {"weight_norm": 1.0, "update_norm": ratio} for layer in layers[::2]}
    recording = build(
        {step: at(step) for step in steps},
        layers=layers,
        evaluation={last: at(last, WATCHED)} if len(steps) else None,
        flat=flat,
        parameters=dict.fromkeys(steps, weights) if len(steps) else None,
        parameter_ndim=dict.fromkeys(weights, 4),
        scalars={
            step: {"wall_time": 1.7e9 + 0.1 * step, "loss": 2.3 if dying else 2.3 * float(np.exp(-step / 200))}
            for step in range(last + 1)
        }
        | {last + 1: {"wall_time": 1.7e9 + 0.1 * last, "test_accuracy": 0.0812 if dying else 0.9127}},
    )
    recording.attrs |= {
        "run_name": name,
        "variant": "linked" if linked else "plain",
        "seed": seed,
        "torch_version": "2.13.0",
        "device": "cpu",
        **(attrs or {}),
    }
    return recording


@pytest.fixture(scope="session")
def make_run(make_recording: Builder) -> Builder:
    """Builds a run; see :func:`build_run`."""
    return lambda **options: build_run(make_recording, **options)


VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}
"""Elements that have no end tag; those of SVG end themselves."""


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            e
            for e in self.walk()
            if e.tag == tag
            and all(value in (e.attributes.get(name) or "").split(" ") for name, value in wanted.items())
        ]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class Page(HTMLParser):
    """The page as a tree; it fails where a tag is not closed as it was opened."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert self.open == [self.root], f"not closed: {[element.tag for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert tag == self.open[-1].tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.text += data


@dataclass(frozen=True)
class Report:
    html: str
    told: dict
    page: Element


def write(folder: Path, recordings, **options) -> Report:
    """A report without overview figures, unless they are asked for: drawing them is most of the work."""
    options.setdefault("figures_at_most", 0)
    path = write_report(recordings, folder / "report.html", json=folder / "report.json", **options)
    html = path.read_text(encoding="utf-8")
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return Report(html, told, Page(html).root)


@pytest.fixture(scope="session")
def written() -> Callable[..., Report]:
    """Writes a page and its twin into a folder and reads both; see :func:`write`."""
    return write


@pytest.fixture(scope="session")
def runs(make_run: Builder) -> dict[str, xr.DataTree]:
    """A chain that dies, and a linked one that does not."""
    return {
        "plain": make_run(pairs=8, dying=True, name="plain"),
        "linked": make_run(pairs=8, linked=True, name="linked", seed=1),
    }


@pytest.fixture(scope="session")
def single(runs: dict[str, xr.DataTree], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The page of the chain that dies."""
    return write(tmp_path_factory.mktemp("single"), runs["plain"], figures_at_most=15)


@pytest.fixture(scope="session")
def several(runs: dict[str, xr.DataTree], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The page of both."""
    return write(tmp_path_factory.mktemp("several"), runs, figures_at_most=6)


@pytest.fixture(params=["single", "several"])
def report(request: pytest.FixtureRequest) -> Report:
    """Each page in turn."""
    return request.getfixturevalue(request.param)
