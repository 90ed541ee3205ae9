"""Build the gallery: train small nets of 5, 50 and 200 layers on digits, record them, draw every figure of each.

    python docs/gallery/build.py                                             the pictures beside this file, in minutes
    python docs/gallery/build.py --sizes 5 --steps 12 --out /tmp/gallery     the smallest form, which CI runs

Each size has a story. 5 layers are healthy; their comparison has three seeds. In the ReLU net of 50 the last units fall
silent by themselves and stop the gradient, and after two thirds of the training a careless detach() cuts its way as
well; its linked twin, whose gradients are clipped like its own, is shown where gradients are compared. 200 layers start
from the initialisation with which the paper saw gradients vanish. Pictures are quantised to 64 colours; none may exceed
60 kB.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

import covshift
from covshift.linked import LinkedReLU
from covshift.models import depth_net
from covshift.plots import FIGURES, style

DEPTHS = {5: 2, 50: 25, 200: 100}
"""Convolutions of the net with so many recorded layers, each of them followed by an activation."""

MOST_BYTES, COLORS, DPI = 60_000, 64, 80
LAYER_OF = {5: "act1", 50: "act12", 200: "stages.5.blocks.2.activation"}
VARIANTS = {"relu": nn.ReLU, "linked-relu": LinkedReLU}
ONE_LAYER = ("river", "operating-point")


def main() -> None:
    """Parse, train, draw, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--sizes", default="5,50,200", help="numbers of layers, of 5, 50 and 200")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant of 5 layers; larger nets have one")
    parser.add_argument("--figures", default=",".join(FIGURES), help="names; all by default")
    parser.add_argument("--runs", type=Path, help="keep recordings here, and draw those that are there already")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            runs = recorded(size, options.runs or Path(folder), steps=options.steps, seeds=options.seeds)
            for name, figure in drawn(size, runs, options.figures.split(",")):
                save(figure, options.out / f"{name}-{size}.png")
    (options.out / "README.md").write_text(page(options.out))


def recorded(size: int, folder: Path, *, steps: int, seeds: int) -> dict[str, xr.DataTree]:
    """Recordings of every variant and seed by name, each with the results of its probes."""
    runs = {}
    for variant in VARIANTS:
        for seed in range(seeds if size == 5 else 1):
            path = folder / f"{variant}-{size}-{seed}.zarr"
            probes = path.with_suffix(".nc")
            if not probes.exists():
                measured = train(size, variant, seed, path, steps=steps)
                xr.DataTree.from_dict(measured).to_netcdf(probes)
            recording = covshift.open(path)
            recording.update(xr.open_datatree(probes).children)
            runs[f"{variant} seed {seed}"] = recording
    return runs


def train(size: int, variant: str, seed: int, path: Path, *, steps: int) -> dict[str, xr.Dataset]:
    """Train one net on the digits with a recorder around it; gradient ICS and attribution of its last step."""
    data = covshift.datasets.digits()
    model = network(size, variant, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if size == 50 else 3e-3)
    draw = torch.Generator().manual_seed(seed)
    attrs = {"variant": variant, "seed": seed}
    chosen = [nn.Conv2d, VARIANTS[variant], *([nn.Linear] if size == 5 else [])]
    with covshift.record(
        model, path, every=2, histograms_every=6, units_every=6, layers=chosen, attrs=attrs, overwrite=True
    ) as recorder:
        for step in range(steps):
            if size == 50 and variant == "relu" and step == 2 * steps // 3:
                model.get_submodule("cut").careless = True
            loss = loss_of(model, *batch(data, draw))
            loss.backward()
            if size == 50:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recorder.log(loss=loss)
    return probed(model, optimizer, batch(data, draw), batch(data, draw))


def network(size: int, variant: str, seed: int) -> nn.Sequential:
    """A depth net; the one of 200 layers has its layers in stages and blocks, for the sake of their long names."""
    net = depth_net(
        DEPTHS[size],
        in_channels=1,
        image_size=8,
        stem="3x3",
        activation=VARIANTS[variant],
        initialization="keras" if size == 200 else "variance-preserving",
        generator=torch.Generator().manual_seed(seed),
    )
    if size < 200:
        return nn.Sequential(with_cut(net))
    blocks = [
        nn.Sequential(OrderedDict(convolution=net.get_submodule(f"conv{i}"), activation=net.get_submodule(f"act{i}")))
        for i in range(DEPTHS[size])
    ]
    stages = [nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks[i : i + 10]))) for i in range(0, len(blocks), 10)]
    return nn.Sequential(OrderedDict(stages=nn.Sequential(*stages), flatten=net.flatten, head=net.head))


class Cut(nn.Module):
    """Lets values through, and gradients as long as it is not careless."""

    careless = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input."""
        return x.detach() if self.careless else x


def with_cut(net: nn.Sequential) -> OrderedDict[str, nn.Module]:
    """The modules of ``net``, a cut after the middle activation among them."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in net.named_children():
        modules[name] = module
        if name == "act12":
            modules["cut"] = Cut()
    return modules


def batch(data: covshift.datasets.ImageSplit, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """32 images and their labels."""
    chosen = torch.randint(len(data.train_images), (32,), generator=draw)
    return data.train_images[chosen], data.train_labels[chosen]


def loss_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy."""
    return nn.functional.cross_entropy(model(images), labels)


def probed(model: nn.Module, optimizer: torch.optim.Optimizer, first: tuple, second: tuple) -> dict[str, xr.Dataset]:
    """Results of the probes at the last state of the training."""
    measured = covshift.probe.gradient_ics(
        model, nn.functional.cross_entropy, first, optimizer, noise_batch=second, mode="eval"
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss_of(model, *first).backward()
    optimizer.step()
    return {
        "gradient_ics": measured,
        "shift_attribution": covshift.probe.shift_attribution(model, first, before=before),
    }


def drawn(size: int, runs: dict[str, xr.DataTree], names: list[str]) -> Iterator[tuple[str, Figure]]:
    """Every figure of the first run, or of the last where gradients are compared; and what sets all apart."""
    first, *_, last = runs.values()
    for name in names:
        kind = FIGURES[name]
        compared = size == 50 and name in ("norm", "ics")
        layer = LAYER_OF[size] if name in ONE_LAYER else None
        theme = "dark" if name == "river" and size == 50 else "light"
        yield name, kind.figure(runs if kind.several_runs else last if compared else first, layer=layer, theme=theme)


def titles(figure: Figure) -> str:
    """What the figure says, for readers who do not see it."""
    said = style.titles_of(figure) or [text.get_text() for text in figure.findobj(Text)]
    return ". ".join(" ".join(text.split()) for text in said if text)


def save(figure: Figure, path: Path) -> None:
    """Write a picture of few colours that holds its own words, smaller where the file would be too large."""
    words = PngInfo()
    words.add_itxt("Description", titles(figure))
    for dpi in (DPI, 64, 52, 40):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dpi)
        picture = Image.open(buffer).convert("RGB")
        picture = picture.quantize(COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        picture.save(path, optimize=True, pnginfo=words)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{path}: {path.stat().st_size} bytes, expected at most {MOST_BYTES}")


def page(folder: Path) -> str:
    """The gallery as Markdown: every picture in the folder, described by its own words."""
    parts = [
        "# The thirteen figures",
        "",
        "Each is drawn from a recording by `covshift plot RUN FIGURE -o figure.svg`, or in Python by",
        "`covshift.plots.FIGURES[name](recording)`; `plot_...` functions draw results that are at hand. Built by",
        "[build.py](build.py), which also tells what was planted in the nets of 5, 50 and 200 layers.",
    ]
    for name, kind in FIGURES.items():
        parts += ["", f"## {kind.title} (`{name}`)", "", f"*{kind.question}* Needs {kind.needs}."]
        for size in DEPTHS:
            path = folder / f"{name}-{size}.png"
            if path.exists():
                said = Image.open(path).info["Description"].replace("[", "(").replace("]", ")")
                parts += ["", f"![{size} layers. {said}]({path.name})"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
