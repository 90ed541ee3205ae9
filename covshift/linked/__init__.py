"""Linked-neuron layers, the conversion of a model to them, and the audit of where derivatives vanish.

A linkage is a set of units that share one pre-activation and of which at least one has a non-zero derivative at every
value of it (Riera Molina & Pujol Vila, 2017, arXiv:1712.02609). The functional forms are in
:mod:`covshift.linked.functional`. The instrument owes nothing to this room: it reads attributes, never these classes.
"""

from covshift.linked.auditing import audit
from covshift.linked.convert import link_model
from covshift.linked.modules import (
    Linked,
    LinkedPReLU,
    LinkedReLU,
    LinkedSELU,
    LinkedSiLU,
    LinkedSwish,
    MinMax,
)

__all__ = [
    "Linked",
    "LinkedPReLU",
    "LinkedReLU",
    "LinkedSELU",
    "LinkedSiLU",
    "LinkedSwish",
    "MinMax",
    "audit",
    "link_model",
]
