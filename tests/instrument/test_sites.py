import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from covshift.exceptions import InvalidArgumentError
from covshift.instrument import sites
from covshift.linked import LinkedPReLU


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def names(chosen):
    return sorted(chosen.values())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["(root)", "0", "1", "2", "3"]),
        ("*", ["(root)", "0", "1", "2", "3"]),
        ("[02]", ["0", "2"]),
        (re.compile(r"^\d$"), ["0", "1", "2", "3"]),
        (nn.Conv2d, ["0"]),
        (lambda name, module: hasattr(module, "weight"), ["0", "3"]),
        (["1", nn.Linear], ["1", "3"]),
    ],
)
def test_layers_are_chosen_by_glob_regex_class_predicate_or_a_list(model, layers, expected):
    assert names(sites.select(model, layers)) == expected


def test_members_of_a_linkage_are_layers_only_where_all_modules_are_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), LinkedPReLU(dim=-1))
    assert list(sites.select(model, None).values()) == [sites.ROOT, "0", "1"]
    assert list(sites.select(model, "*").values()) == [sites.ROOT, "0", "1", "1.member_0", "1.member_1"]


def test_a_selection_that_matches_nothing_names_near_layers():
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match=r"layers='encodr': matches no module.*near names: encoder"):
        sites.select(model, "encodr")


def test_a_selection_of_the_wrong_type_is_refused(model):
    with pytest.raises(InvalidArgumentError, match="expected a glob, a compiled regex, a module class or a predicate"):
        sites.select(model, 3)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(1, 4, 3), (8, 4, 5, 5), (1, 0)),
        (nn.Conv2d(1, 4, 3), (4, 5, 5), (0, 0)),
        (nn.Conv1d(1, 4, 3), (8, 4, 5), (1, 0)),
        (nn.BatchNorm2d(4), (8, 4, 5, 5), (1, 0)),
        (nn.BatchNorm1d(4), (8, 4), (1, 0)),
        (nn.Linear(3, 4), (8, 4), (1, 0)),
        (nn.Linear(3, 4), (8, 7, 4), (2, 0)),
        (nn.LayerNorm(4), (8, 7, 4), (2, 0)),
        (nn.LSTM(3, 4), (7, 8, 4), (2, 1)),
        (nn.LSTM(3, 4, batch_first=True), (8, 7, 4), (2, 0)),
        (nn.ReLU(), (8, 4, 5, 5), (1, 0)),
        (nn.ReLU(), (8, 7, 4), (2, 0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_axes_follow_the_module_type(module, shape, expected):
    assert sites.axes(module, torch.zeros(shape), None) == expected


def test_elementwise_modules_inherit_the_unit_axis_of_what_they_read():
    assert sites.axes(nn.ReLU(), torch.zeros(8, 4, 5), 1) == (1, 0)


def test_a_linkage_states_its_own_axis():
    module = nn.Identity()
    module.linkage_members, module.linkage_dim, module.linkage_layout = (torch.relu, torch.tanh), -1, "concatenated"
    assert sites.axes(module, torch.zeros(8, 7, 4), None) == (2, 0)


@dataclass
class Output:
    logits: torch.Tensor
    loss: float


Pair = namedtuple("Pair", ["left", "right"])


def test_leaves_open_every_container_and_name_the_way():
    t = [torch.tensor(float(i)) for i in range(7)]
    packed = nn.utils.rnn.pack_sequence([torch.ones(2)])
    nested = {"a": t[0], "b": [t[1], (t[2], None)], "c": Pair(t[3], t[4]), "d": Output(t[5], 1.0), "e": packed}
    found = dict(sites.leaves(nested))
    assert list(found) == ["a", "b.0", "b.1.0", "c.left", "c.right", "d.logits", "e.data"]
    assert found["d.logits"] is t[5]
    assert dict(sites.leaves(t[6])) == {"": t[6]}
