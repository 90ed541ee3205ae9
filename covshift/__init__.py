"""Flight recorder and diagnostic toolkit for the inside of neural networks.

Attach it to any PyTorch model, record how every layer's activations and gradients are distributed while it trains, and
turn the record into evidence. The names below are the public surface; rooms are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from covshift.exceptions import CovshiftError, CovshiftWarning, StoreLocked

if TYPE_CHECKING:
    from covshift import datasets, linked, models, plots, probe
    from covshift.analysis import gradient_health, linkage, operating_point, shift
    from covshift.attach import record
    from covshift.diagnosis import Diagnosis, Finding, diagnose
    from covshift.instrument.schedule import at_steps, every, first, logarithmic
    from covshift.recorder import Recorder
    from covshift.reporting import write_report as report
    from covshift.store.reader import open  # noqa: A004 - the public name, as in xarray and zarr
    from covshift.store.runs import merge

__version__ = "0.1.0"

# Public name: module it lives in, and its name there ("" for the module itself).
_PUBLIC = {
    "Diagnosis": ("covshift.diagnosis", "Diagnosis"),
    "Finding": ("covshift.diagnosis", "Finding"),
    "Recorder": ("covshift.recorder", "Recorder"),
    "at_steps": ("covshift.instrument.schedule", "at_steps"),
    "datasets": ("covshift.datasets", ""),
    "diagnose": ("covshift.diagnosis", "diagnose"),
    "every": ("covshift.instrument.schedule", "every"),
    "first": ("covshift.instrument.schedule", "first"),
    "gradient_health": ("covshift.analysis.gradient_health", ""),
    "linkage": ("covshift.analysis.linkage", ""),
    "linked": ("covshift.linked", ""),
    "logarithmic": ("covshift.instrument.schedule", "logarithmic"),
    "merge": ("covshift.store.runs", "merge"),
    "models": ("covshift.models", ""),
    "open": ("covshift.store.reader", "open"),
    "operating_point": ("covshift.analysis.operating_point", ""),
    "plots": ("covshift.plots", ""),
    "probe": ("covshift.probe", ""),
    "record": ("covshift.attach", "record"),
    "report": ("covshift.reporting", "write_report"),
    "shift": ("covshift.analysis.shift", ""),
}

__all__ = [
    "CovshiftError",
    "CovshiftWarning",
    "Diagnosis",
    "Finding",
    "Recorder",
    "StoreLocked",
    "at_steps",
    "datasets",
    "diagnose",
    "every",
    "first",
    "gradient_health",
    "linkage",
    "linked",
    "logarithmic",
    "merge",
    "models",
    "open",
    "operating_point",
    "plots",
    "probe",
    "record",
    "report",
    "shift",
]


def __getattr__(name: str) -> Any:
    """Import a public name's room when the name is first used."""
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'covshift' has no attribute {name!r}") from None
    room = importlib.import_module(module)
    value = getattr(room, attribute) if attribute else room
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
