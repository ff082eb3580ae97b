"""Trials leave no mark, and a comparison sees what is small beside the rest."""

from __future__ import annotations

import dataclasses
import enum

import pytest
import torch
from torch import nn

from pyrovae.inference.compilation.comparison import check_equal, other_rows
from pyrovae.inference.compilation.told import Differs, Unrepeatable
from pyrovae.inference.compilation.tracing import known_values
from pyrovae.inference.modules import Modules, unnoticed


class Keeping(nn.Module):
    """Keeps something of its data in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.note = torch.ones(3)

    def in_place(self, x):
        self.mean.add_(x)
        self.note.mul_(x)

    def anew(self, x):
        self.mean, self.note = x, 2 * x

    def of_another_size(self, x):
        self.mean, self.note = x[:1], x[:2]


@pytest.mark.parametrize("how", ["in_place", "anew", "of_another_size"])
def test_a_trial_leaves_no_mark(how):
    module, x = Keeping(), torch.tensor([2.0, 3.0, 4.0])
    mean, note, program = module.mean, module.note, getattr(module, how)
    with unnoticed(Modules(program, program), torch.device("cpu")):
        program(x)
        torch.rand(3)
    assert module.mean is mean
    assert module.note is note
    assert mean.tolist() == [0.0] * 3
    assert note.tolist() == [1.0] * 3
    assert x.tolist() == [2.0, 3.0, 4.0]


class Expanded(nn.Module):
    """One number for many places, in a buffer and in an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("wide", torch.ones(1).expand(5))
        self.scale = torch.ones(1).expand(5)

    def program(self, x):
        return x * self.wide * self.scale


def test_expanded_tensors_are_left_alone():
    module, x = Expanded(), torch.ones(5)
    with unnoticed(Modules(module.program, module.program), torch.device("cpu")):
        module.program(x)
    assert module.scale.tolist() == [1.0] * 5


def test_tensors_of_inference_mode_are_left_alone():
    module = Keeping()
    with torch.inference_mode():
        module.note = torch.ones(3)
    with unnoticed(Modules(module.anew, module.anew), torch.device("cpu")):
        module.anew(torch.zeros(3))
    assert module.note.tolist() == [1.0] * 3


def test_small_gradients_beside_a_large_loss():
    expected = [torch.tensor(550.0), torch.tensor([5.0, -3.0]), torch.tensor([0.06])]
    rounded = [value * (1 + 1e-6) for value in expected]
    check_equal(rounded, expected, exact=False)
    for number in range(3):
        wrong = list(rounded)
        wrong[number] = wrong[number] * 1.001
        with pytest.raises(Differs, match="differs from the program"):
            check_equal(wrong, expected, exact=False)


def test_what_is_rounding_alone_is_no_difference():
    expected = [torch.tensor(550.0), torch.tensor([3e-9])]
    check_equal([expected[0], torch.tensor([-2e-8])], expected, exact=False)


def test_infinities_and_nan_are_equal_to_themselves():
    value = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    check_equal([value], [value.clone()], exact=True)
    with pytest.raises(Differs):
        check_equal([value], [value.nan_to_num()], exact=True)


def test_another_form_is_a_difference():
    with pytest.raises(Differs, match="another form"):
        check_equal([torch.ones(3)], [torch.ones(2)], exact=False)
    with pytest.raises(Differs, match="another form"):
        check_equal([torch.ones(3)], [torch.ones(3), torch.ones(3)], exact=False)


def test_other_rows_are_no_mere_permutation():
    x, label, number = torch.arange(12.0).reshape(6, 2), torch.arange(6), torch.tensor(5.0)
    shared = torch.eye(4)  # of another length: no data
    rows, labels, same, kept = other_rows([x, label, number, shared])
    assert kept is shared
    assert labels.tolist() == [1, 1, 2, 2, 3, 3]
    assert torch.equal(rows, x[labels])
    assert same is number
    assert other_rows([torch.ones(0, 2)])[0].shape == (0, 2)


class Kind(enum.Enum):
    A = 1


def test_values_are_known_with_their_types():
    known = [known_values([one]) for one in (1, 1.0, True, "1", None, Kind.A, torch.float32)]
    assert len(set(known)) == len(known)
    assert known_values([torch.ones(2), 1]) == known_values([torch.zeros(3), 1])


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Looks as if it had a hash, and has none."""

    of: list


@pytest.mark.parametrize("leaf", [Sizes([1]), object(), {1}, lambda x: x, nn.Linear(1, 1)])
def test_what_is_no_value_is_refused(leaf):
    with pytest.raises(Unrepeatable, match=f"told from others, but {type(leaf).__name__}|no hash"):
        known_values([leaf])
