"""What artists hold, read back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from covshift.diagnosis import Finding
from covshift.diagnosis.thresholds import THRESHOLDS


@pytest.fixture(scope="session")
def meshes() -> Callable[[Axes], list[QuadMesh]]:
    """The meshes of an axes, in the order they were drawn in."""
    return lambda ax: [artist for artist in ax.collections if isinstance(artist, QuadMesh)]


@pytest.fixture(scope="session")
def cells() -> Callable[[QuadMesh], np.ndarray]:
    """Numbers of a mesh as (step, layer), NaN where it shows nothing."""
    return lambda mesh: np.ma.filled(mesh.get_array().astype(float), np.nan).T


@pytest.fixture(scope="session")
def line() -> Callable[[Axes, str], Line2D]:
    """The first line of an axes that has this label."""
    return lambda ax, label: next(artist for artist in ax.get_lines() if artist.get_label() == label)


@pytest.fixture(scope="session")
def labels() -> Callable[[Axes], list[str]]:
    """Labels of the lines of an axes."""
    return lambda ax: [str(artist.get_label()) for artist in ax.get_lines()]


@pytest.fixture(scope="session")
def left_title() -> Callable[[Axes], str]:
    """The title of an axes in one line."""
    return lambda ax: " ".join(ax.get_title(loc="left").split())


@pytest.fixture(scope="session")
def headline() -> Callable[[Figure], str]:
    """The title of a whole figure in one line."""
    return lambda figure: " ".join(figure.get_suptitle().split())


@pytest.fixture(scope="session")
def rows() -> Callable[[Axes], list[str]]:
    """Names of the rows of an axes."""
    return lambda ax: [label.get_text() for label in ax.get_yticklabels()]


@pytest.fixture(scope="session")
def finding() -> Callable[..., Finding]:
    """A bad finding of a check in a layer, by one threshold."""

    def found(check: str, threshold: str, layer: str, *, since: int | None = 10, value: float = 1.0) -> Finding:
        history = "" if since is None else f"since step {since}"
        steps = {"reached_step": since, "history": history}
        return Finding(check, layer, "bad", since, value, None, THRESHOLDS[threshold], "", "", **steps)

    return found
