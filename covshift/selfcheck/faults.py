"""Faults and traps with known answers: what is planted, how strongly, which check must speak or must not, and where.

``number`` is the row of the list in docs/concepts/calibration.md. A fault changes a healthy
:class:`~covshift.selfcheck.nets.Case`; it never touches the recording. Doses and networks, those of development and
those held back, were written down before any held-back run was looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from covshift.linked import LinkedReLU
from covshift.selfcheck import movements, planting, wrong_training
from covshift.selfcheck.nets import Build, Case, cnn, cosine, mlp, residual

Plant = Callable[[Case, float], None]


@dataclass(frozen=True)
class Fault:
    """A planted fault, or a trap: what looks like a fault to a naive check and is none.

    Attributes
    ----------
    number : int
        Row of the list of faults.
    name : str
        What is wrong.
    checks : frozenset of str
        A finding of one of these checks counts as found; in a trap, as fallen into.
    doses : (float, float, float)
        Weak, medium, strong.
    build : callable
        ``(seed, dose) -> Case`` on the networks the rules were developed with, and
    held_back : callable
        on networks they were not.
    local : bool
        Whether the finding must name the planted layer, the middle one, or a neighbour.
    at : int or None
        Position of the planted layer among the nonlinearities where it is not the middle one.
    twin : bool
        Whether dose 0 plants nothing, and must be held against: a network that learns moves, too.
    """

    number: int
    name: str
    checks: frozenset[str]
    doses: tuple[float, float, float]
    build: Build
    held_back: Build
    local: bool = True
    at: int | None = None
    twin: bool = False

    def planted(self, case: Case) -> str | None:
        """Name of the nonlinearity at which the fault lies in ``case``; None for a fault of the whole run."""
        return case.activations[case.middle if self.at is None else self.at] if self.local else None


def _planted(make: Callable[[int], Case], plant: Plant) -> Build:
    def build(seed: int, dose: float) -> Case:
        case = make(seed)
        plant(case, dose)
        return case

    return build


def _on(plant: Plant, *, held_back: Callable[[int], Case] = residual) -> tuple[Build, Build]:
    return _planted(mlp, plant), _planted(held_back, plant)


def _settling(plant: Plant, held_back: Callable[[int], Case]) -> tuple[Build, Build]:
    """Under a learning rate that falls to zero, so that nothing else moves at the end."""

    def settle(case: Case, dose: float) -> None:
        cosine(case)
        plant(case, dose)

    return _on(settle, held_back=held_back)


def _deep(seed: int) -> Case:
    return mlp(seed, depth=6, width=24)


def _masked(depth: int) -> Build:
    return lambda seed, share: mlp(seed, depth=depth, activation=LinkedReLU, members=2, dropout=share)


_ACTIVITY = frozenset({"units", "gradient zeros"})
_MOVEMENT = frozenset({"shift", "operating point"})
_DEPTH = frozenset({"scale over depth"})
_UPDATE = frozenset({"update ratio"})
_TOO_FAST = frozenset({"update ratio", "non-finite", "scale over time", "units"})
_LINKAGE = frozenset({"linkage"})
_CUT = frozenset({"gradient arrives", "gradient zeros"})

FAULTS: tuple[Fault, ...] = (
    Fault(1, "dead units", _ACTIVITY, (0.25, 0.5, 1.0), *_on(planting.dead_units)),
    Fault(2, "dying units", _ACTIVITY, (0.02, 0.05, 0.2), *_on(planting.dying, held_back=_deep)),
    Fault(3, "born dead", _ACTIVITY, (3.0, 6.0, 20.0), *_on(planting.born_dead, held_back=cnn)),
    Fault(
        5,
        "stuck at a plateau",
        _ACTIVITY,
        (0.25, 0.5, 1.0),
        planting.plateau(image=False),
        planting.plateau(image=True),
    ),
    Fault(
        6,
        "saturated tanh",
        frozenset({"saturation", "units"}),
        (3.0, 10.0, 40.0),
        planting.saturated(4),
        planting.saturated(6),
    ),
    Fault(7, "sigmoid vanishing", _DEPTH, (6, 10, 14), planting.sigmoid(32), planting.sigmoid(24), local=False),
    Fault(
        8,
        "vanishing initialisation",
        _DEPTH,
        (1.0, 0.5, 0.25),
        planting.initialised(16),
        planting.initialised(20),
        local=False,
    ),
    Fault(
        9,
        "exploding initialisation",
        _DEPTH | {"non-finite"},
        (4.0, 8.0, 16.0),
        planting.initialised(16),
        planting.initialised(20),
        local=False,
    ),
    Fault(
        10,
        "linked swish vanishing",
        _DEPTH,
        (12, 20, 32),
        planting.linked_swish(16),
        planting.linked_swish(12),
        local=False,
    ),
    Fault(11, "linkage violated", _LINKAGE, (0.25, 0.5, 1.0), planting.linked_plateau(4), planting.linked_plateau(6)),
    Fault(11, "linkage of one member", _LINKAGE, (0.0, 0.5, 1.0), planting.duplicated(4), planting.duplicated(6)),
    Fault(12, "linkage zero atom", _LINKAGE, (0.05, 0.3, 0.8), planting.zero_atom(4), planting.zero_atom(6), at=0),
    Fault(
        13,
        "in-place SELU far negative",
        _ACTIVITY | {"gradient arrives"},
        (0.25, 0.5, 1.0),
        planting.far_negative(4),
        planting.far_negative(6),
    ),
    Fault(15, "detached", _CUT, (0.25, 0.5, 1.0), *_on(planting.detached, held_back=_deep)),
    Fault(16, "left out of the optimizer", _UPDATE, (1e-2, 1e-4, 0.0), *_on(wrong_training.left_out)),
    Fault(
        16, "frozen layers", frozenset({"operating point"}), (1, 2, 3), *_on(wrong_training.frozen, held_back=cnn), at=0
    ),
    Fault(17, "stale parameters", _UPDATE, (60, 30, 0), *_on(wrong_training.stale, held_back=cnn)),
    Fault(
        18,
        "learning rate too high",
        _TOO_FAST,
        (30.0, 100.0, 1000.0),
        *_on(wrong_training.learning_rate, held_back=cnn),
        local=False,
    ),
    Fault(19, "learning rate too low", _UPDATE, (1e-2, 1e-3, 1e-4), *_on(wrong_training.learning_rate), local=False),
    Fault(
        20,
        "gradients accumulate",
        _TOO_FAST,
        (4, 16, 1000),
        *_on(wrong_training.accumulating, held_back=cnn),
        local=False,
    ),
    Fault(
        21,
        "strangled by clipping",
        frozenset({"clipping", "update ratio"}),
        (1e-3, 1e-4, 1e-6),
        *_on(wrong_training.strangled, held_back=cnn),
        local=False,
    ),
    Fault(22, "injected shift", _MOVEMENT, (0.3, 0.6, 1.5), *_settling(movements.injected_shift, cnn), twin=True),
    Fault(23, "jump", _MOVEMENT, (0.3, 0.6, 1.0), *_settling(movements.jump, _deep), twin=True),
    Fault(24, "drift of the mean", _MOVEMENT, (0.5, 1.0, 3.0), *_settling(movements.drift, _deep), twin=True),
    Fault(25, "swapped units", _MOVEMENT, (0.5, 1.0, 3.0), *_settling(movements.swapped, cnn), twin=True),
    Fault(26, "drift of the scale", _MOVEMENT, (0.3, 0.6, 1.5), *_settling(movements.scale_drift, _deep), twin=True),
    Fault(
        27,
        "raw inputs",
        _TOO_FAST,
        (4.0, 16.0, 64.0),
        *_on(wrong_training.raw_inputs, held_back=cnn),
        at=0,
    ),
    Fault(
        29,
        "float16 without a loss scale",
        frozenset({"precision", "gradient arrives"}),
        (1.0, 2.0, 4.0),
        *_on(wrong_training.half_precision, held_back=_deep),
        local=False,
    ),
    Fault(30, "broken numbers", frozenset({"non-finite"}), (1e-4, 1e-2, 1.0), *_on(planting.broken_numbers)),
    Fault(32, "constant inputs", _ACTIVITY, (0.5, 0.9, 1.0), *_on(wrong_training.constant_inputs, held_back=cnn), at=0),
    Fault(
        33,
        "loss satisfied",
        _CUT,
        (0.9, 0.99, 1.0),
        *_on(wrong_training.satisfied_hinge, held_back=_deep),
        at=-1,
    ),
)
"""Those that show in a passive record."""

TRAPS: tuple[Fault, ...] = (
    Fault(4, "rarely firing units", _ACTIVITY, (1e-2, 3e-3, 1e-3), *_on(planting.rare, held_back=_deep)),
    Fault(14, "masked, not structural", _LINKAGE, (0.1, 0.3, 0.5), _masked(4), _masked(6), local=False),
    Fault(
        32,
        "shuffled labels",
        _ACTIVITY | _DEPTH | _LINKAGE | {"gradient arrives", "saturation", "non-finite"},
        (0.25, 0.5, 1.0),
        *_on(wrong_training.shuffled_labels, held_back=cnn),
        local=False,
    ),
    Fault(
        34,
        "noise without drift",
        frozenset({"operating point"}),
        (0.05, 0.1, 0.2),
        *_settling(movements.noisy, _deep),
        twin=True,
    ),
)
"""What must not be taken for a fault; a finding of ``checks`` at the planted layer is a false one."""
