"""Call sites: modules as reached through the modules around them, and what was learned of each.

A module shared between blocks has one site in each, a module called again one for every repetition. The tree of calls
grows during the first recorded forward passes and is only walked after that, so that following a call costs a
dictionary look-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from covshift import schema
from covshift.grid import GRADIENTS, VALUES
from covshift.instrument.block import SIGNAL_COUNT
from covshift.instrument.structural import ZeroSet
from covshift.summary.table import Reading


@dataclass(eq=False)
class Module:
    """What is known of one module of the model.

    Attributes
    ----------
    name : str
        Under which the model lists it first.
    is_observed : bool
        Whether the user asked for it.
    zeros : ZeroSet or None
        Where its derivative vanishes; None where unknown, or where it changes with the module's parameters.
    zeros_move : bool
        Whether ``zeros`` must be looked up at every call.
    was_called : bool
        Whether any recorded forward pass called it.
    is_parametrization : bool
        Whether it computes a parameter: to read that outside of a forward pass runs it, and is none.
    """

    name: str
    is_observed: bool
    is_leaf: bool
    is_activation: bool
    zeros: ZeroSet | None
    zeros_move: bool
    was_called: bool = False
    is_parametrization: bool = False


class Observed:
    """One layer of the recording: its description, its place among the layers, and how its tensors are read."""

    __slots__ = ("_blind", "example_axis", "gradients", "is_described", "key", "layer", "values")

    def __init__(self, layer: schema.Layer, place: int) -> None:
        self.key = place * SIGNAL_COUNT
        self.is_described = False
        self._describe(layer)

    def _describe(self, layer: schema.Layer) -> None:
        self.layer = layer
        self.example_axis = None if layer.example_axis == schema.UNKNOWN_AXIS else layer.example_axis
        self.values = reading(layer, gradients=False)
        self.gradients = reading(layer, gradients=True)
        self._blind: Observed | None = None

    def describe(self, layer: schema.Layer) -> None:
        """Take the description that the layer's first output has made possible."""
        self._describe(layer)
        self.is_described = True

    def seen_by(self, tensor: torch.Tensor, batch_size: int | None) -> Observed:
        """The layer as it is for a tensor: without axes where its example axis is not as long as the batch."""
        axis = self.example_axis
        if axis is None or batch_size is None or (axis < tensor.ndim and tensor.shape[axis] == batch_size):
            return self
        if self._blind is None:
            unknown = schema.UNKNOWN_AXIS
            blind = replace(self.layer, unit_axis=unknown, example_axis=unknown, unit_count=0)
            self._blind = Observed(blind, self.place)
        return self._blind

    @property
    def place(self) -> int:
        """Position on the layer axis."""
        return self.key // SIGNAL_COUNT


def reading(layer: schema.Layer, *, gradients: bool) -> Reading:
    """How values or gradients of a layer are read."""
    known = layer.example_axis != schema.UNKNOWN_AXIS
    return Reading(
        unit_axis=layer.unit_axis if layer.unit_axis != schema.UNKNOWN_AXIS else None,
        example_axis=layer.example_axis if known else None,
        unit_count=layer.unit_count,
        grid=GRADIENTS if gradients else VALUES,
        groups=1 if gradients else schema.EXAMPLE_GROUPS,
    )


class Read(NamedTuple):
    """What a module was given when it was first called at a site, by numbers alone.

    Attributes
    ----------
    shape, stride, address
        Of the tensor it was given; empty and 0 where it was given none.
    axis : int or None
        Its unit axis, see :mod:`covshift.instrument.unitaxes`; None where nothing tells.
    begun : int
        How many layers had been met.
    """

    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    address: int = 0
    axis: int | None = None
    begun: int = 0


@dataclass(eq=False)
class Call:
    """The k-th call at a site within one forward pass.

    Attributes
    ----------
    name : str
        The site's path, with ``#k`` from the second call on.
    layers : dict of str to Observed
        By path of the output, "" where the output is one tensor.
    producer : str or None
        Layer whose output was the first input this call read as a pre-activation; None before that.
    has_returned : bool
        Whether it was followed to its end in any forward pass, so that layers it has are described.
    read : Read or None
        What it was given when it was first called; None where nobody asked for its layers.
    unit_axis : int or None
        Of what it returned first, where that is not recorded and its unit axis can be told.
    preactivation, preactivation_grad : Reading or None
        How a pre-activation that no recorded layer has produced is read.
    children : dict of int to CallSite
        Sites below, by identity of the module called.
    functions : dict of str to CallSite
        Sites of activation functions called directly, by name.
    """

    name: str
    layers: dict[str, Observed] = field(default_factory=dict)
    producer: str | None = None
    has_returned: bool = False
    read: Read | None = None
    unit_axis: int | None = None
    preactivation: Reading | None = None
    preactivation_grad: Reading | None = None
    children: dict[int, CallSite] = field(default_factory=dict)
    functions: dict[str, CallSite] = field(default_factory=dict)


@dataclass(eq=False)
class CallSite:
    """A path through the modules around a module, and the calls made at it."""

    path: str
    calls: list[Call] = field(default_factory=list)

    def call(self, k: int) -> Call:
        """The ``k``-th call of a forward pass, from 0."""
        while k >= len(self.calls):
            self.calls.append(Call(f"{self.path}#{len(self.calls)}" if self.calls else self.path))
        return self.calls[k]


class CallSites:
    """All call sites of one model, by path."""

    def __init__(self, model: nn.Module, names: dict[int, str]) -> None:
        self._names = names
        self._children = {
            (id(parent), id(child)): name for parent in model.modules() for name, child in parent.named_children()
        }
        self._by_path: dict[tuple[str, int], CallSite] = {}
        self._roots: dict[int, CallSite] = {}

    def reached(self, module: nn.Module, parent: nn.Module | None, call: Call | None, *, root: str) -> CallSite:
        """Site of ``module`` called by ``parent`` in its ``call``, or from outside the model.

        ``root`` is the name of the model itself, which no path below it carries.
        """
        known = self._roots if call is None else call.children
        site = known.get(id(module))
        if site is None:
            child = self._children.get((id(parent), id(module)))
            if call is None or child is None:
                path = self._names[id(module)]
            else:
                # A model that calls itself has its children's names in each of its calls.
                path = child if call.name.partition("#")[0] == root else f"{call.name}.{child}"
            site = known[id(module)] = self._at(path, id(module))
        return site

    def function(self, name: str, call: Call) -> CallSite:
        """Site of the activation function ``name`` within a call."""
        site = call.functions.get(name)
        if site is None:
            site = call.functions[name] = self._at(f"{call.name}:{name}", id(call))
        return site

    def _at(self, path: str, what: int) -> CallSite:
        """The site of ``what``, a module or the call that a function is called in: names may make two paths alike."""
        return self._by_path.setdefault((path, what), CallSite(path))
