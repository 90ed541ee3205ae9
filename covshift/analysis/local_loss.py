"""What a recorded gradient is multiplied by to be that of one loss over the examples of all ranks.

Every rank of a distributed run computes the gradient of its own, local loss, and that is what a recording holds,
whether it holds one rank or all of them. With R ranks, n_r examples on rank r, N in all, and losses l_i of examples:

* "mean": L_r = (1 / n_r) sum_i l_i, where one process has L = (1 / N) sum_i l_i. What the optimizer follows is the
  mean of the L_r, because DistributedDataParallel averages their gradients over the ranks, and it is L where all ranks
  have equally many examples. So d/dx of it is 1 / R of the recorded d/dx L_r.
* "sum": L_r and L are sums of the same l_i, and for a tensor of rank r's examples d/dx L is d/dx L_r: the factor is 1.

Norms of *parameters'* gradients are left alone by every reader: they are those the optimizer was given, after whatever
reduction over the ranks the training makes. Averaged by DistributedDataParallel they are those of one process with
"mean", and 1 / R of them with "sum".

References
----------
PyTorch, documentation of ``torch.nn.parallel.DistributedDataParallel``: gradients are averaged over the processes, so
with a loss that is summed, not averaged, over a batch they are as many times smaller as there are processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from covshift import schema
from covshift.exceptions import CovshiftWarning

Floats = NDArray[np.float64]

_RESUMES, _RUNS = "covshift_resumes", "run_ranks"
_FACTORS: Mapping[str, Callable[[int], float]] = {"mean": lambda ranks: 1.0 / ranks, "sum": lambda ranks: 1.0}


def factors(attrs: Mapping[Any, Any], rows: xr.Dataset, *, signal: str, stream: str = "train") -> Floats | None:
    """Factor of a signal's rows at every step.

    Parameters
    ----------
    attrs : mapping
        Attributes of the recording: ``world_size``, ``loss_reduction`` and ``ranks``, and what resumes changed of them.
    rows : Dataset
        Rows of the recording, with ``step``; with a scalar coordinate ``run`` where it is one of several side by side.
    signal : str
        One of :data:`covshift.schema.SIGNALS`; only gradients have a factor.
    stream : {"train", "evaluation", "probe"}
        Training rows have the factor of the module's text, one recording for each rank and merged ones alike. Probes
        have it where ranks are merged, so that their examples are pooled; a rank's own probe is a batch by itself.
        Evaluation rows have none: a recording does not tell which ranks took part.

    Returns
    -------
    ndarray of float64 or None
        Shape ``(step,)``, in (0, 1]; None where every factor is 1, and rows are to be taken as they are.

    Warns
    -----
    CovshiftWarning
        If rows are of several ranks and how their loss reduces is not known; they are taken as they are.
    """
    if signal not in schema.GRADIENT_SIGNALS or stream == "evaluation":
        return None
    told = _told_of_run(attrs, rows)
    steps = rows["step"].values
    found = np.full(len(steps), _factor(told, stream))
    for resume in schema.attribute(told, _RESUMES, []):
        changed = _factor({**told, **resume.get("attrs", {})}, stream)
        found[steps >= resume["step"]] = changed
    return None if (found == 1.0).all() else found


def _told_of_run(attrs: Mapping[Any, Any], rows: xr.Dataset) -> Mapping[Any, Any]:
    run = rows.coords.get("run")
    if run is None or run.ndim or _RUNS not in attrs:
        return attrs
    told: Mapping[Any, Any] = schema.attribute(attrs, _RUNS, {})[str(run.item())]
    return told


def _factor(told: Mapping[Any, Any], stream: str) -> float:
    ranks, reduction = told.get("world_size", 1), str(told.get("loss_reduction"))
    if ranks == 1 or (stream == "probe" and told.get("ranks") != "merge"):
        return 1.0
    if not isinstance(ranks, int | np.integer) or ranks < 1 or reduction not in _FACTORS:
        warnings.warn(
            f"recording: world_size={ranks!r}, loss_reduction={reduction!r}: gradients are read as recorded, for their "
            "scale is known of a number of ranks and a loss that is a mean or a sum; set both in recording.attrs",
            CovshiftWarning,
            stacklevel=2,
        )
        return 1.0
    return _FACTORS[reduction](int(ranks))
