"""Data of one's own: taken as they are, or refused in plain words."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae.benchmarks import datasets
from pyrovae.benchmarks.datasets import Dataset, DatasetError, load

pytestmark = pytest.mark.usefixtures("isolated")


# -------------------- data of one's own


def good(**changes: object) -> Dataset:
    fields = {
        "name": "own",
        "train": torch.rand(6, 4),
        "validation": torch.ones(2, 4),
        "test": torch.zeros(3, 4),
        "shape": (2, 2),
        "dynamic": True,
    }
    return Dataset(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": torch.full((6, 4), torch.nan)}, "train should be finite, .* in 6 of 6 rows"),
        (
            {"test": torch.tensor([[0.0] * 4, [0, 0, torch.inf, 0]])},
            "test should be finite, found NaN or infinity in 1 of 2 rows, first in row 1",
        ),
        ({"validation": torch.ones(0, 4)}, r"validation should not be empty, found shape \(0, 4\)"),
        ({"train": torch.ones(6, 4, dtype=torch.uint8)}, "train should be float32 or float64"),
        ({"test": torch.ones(3, 4).double()}, "test should be torch.float32 as train is, found"),
        ({"test": torch.ones(3, 5)}, r"test should be of shape \(N, 4\).* found \(3, 5\)"),
        ({"train": torch.ones(6, 2, 2)}, r"train should be of shape \(N, 4\)"),
        ({"train": torch.full((6, 4), 255.0)}, r"needs train in \[0, 1\], found values from 255"),
        ({"test": torch.full((3, 4), 0.5)}, "validation and test should be bits"),
        ({"test_labels": torch.zeros(2).long()}, r"test_labels should be int64 of shape \(3,\)"),
        ({"train_labels": torch.zeros(6)}, "train_labels should be int64"),
    ],
)
def test_unusable_data_are_refused(changes: dict[str, object], message: str) -> None:
    assert good().sizes == (6, 2, 3)
    with pytest.raises(DatasetError, match=f"own: .*{message}"):
        good(**changes)


def test_fingerprint_is_the_hash_of_packed_bits() -> None:
    assert good().fingerprint == hashlib.sha256(bytes([0b11111111, 0, 0])).hexdigest()
    grey = good(dynamic=False, test=torch.full((3, 4), 0.5))
    expected = np.ones(8, "<f4").tobytes() + np.full(12, 0.5, "<f4").tobytes()
    assert grey.fingerprint == hashlib.sha256(expected).hexdigest()


def test_binarise_once_refuses_what_is_no_probability() -> None:
    for value in (-0.1, 1.1, torch.nan):
        with pytest.raises(DatasetError, match=r"only values in \[0, 1\] can be binarised"):
            datasets.binarise_once(torch.tensor([[value]]))


OWN = """
import numpy, torch
from pyrovae.benchmarks.datasets import Dataset
def whole(): return torch.arange(400.0).reshape(100, 2, 2)
def three(): return torch.zeros(5, 3), torch.ones(2, 3), torch.ones(1, 3)
def made(): return Dataset("made", *three(), shape=(3,))
def nan(): return torch.zeros(5, 3), torch.full((2, 3), torch.nan), torch.ones(1, 3)
def empty(): return torch.zeros(5, 3), torch.zeros(0, 3), torch.ones(1, 3)
def whole_numbers(): return torch.arange(400).reshape(100, 4)
def uneven(): return torch.zeros(5, 3), torch.ones(2, 4), torch.ones(1, 3)
def flat(): return torch.zeros(9)
def two(): return torch.zeros(5, 3), torch.ones(2, 3)
def array(): return numpy.zeros((5, 3))
def few(): return torch.zeros(2, 3)
def fails(): raise KeyError("column")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Dataset]:
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    return lambda function: load(f"own_data:{function}")


def test_one_tensor_is_shuffled_and_split(own: Callable[[str], Dataset]) -> None:
    data = own("whole")
    assert (data.name, data.sizes, data.shape) == ("own_data:whole", (80, 10, 10), (2, 2))
    rows = torch.cat([data.train, data.validation, data.test])
    assert torch.equal(rows.sort(0).values, torch.arange(400.0).reshape(100, 4))
    assert not torch.equal(data.test, torch.arange(360.0, 400.0).reshape(10, 4))
    assert torch.equal(data.test, own("whole").test)
    assert not data.dynamic


def test_three_tensors_or_a_dataset_are_taken_as_they_are(own: Callable[[str], Dataset]) -> None:
    assert own("three").sizes == (5, 2, 1)
    assert torch.equal(own("three").validation, torch.ones(2, 3))
    assert own("made").name == "made"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan", "own_data:nan: validation should be finite, .* in 2 of 2 rows, first in row 0"),
        ("empty", "own_data:empty: validation should not be empty"),
        ("whole_numbers", "train should be float32 or float64, found torch.int64; convert it"),
        ("uneven", r"validation should have data of shape \(3,\) as train has, found \(4,\)"),
        ("flat", r"train should be of shape \(N, ...\)"),
        ("two", r"should return a Dataset, .*; found tuple of \(Tensor, Tensor\)"),
        ("array", "should return a Dataset, a tensor or .*; found ndarray"),
        ("few", r"needs at least 3 rows, found shape \(2, 3\)"),
        ("fails", "'own_data:fails' raised KeyError: 'column'"),
    ],
)
def test_own_data_go_wrong_in_plain_words(
    own: Callable[[str], Dataset], function: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        own(function)


def test_an_import_path_that_leads_nowhere(own: Callable[[str], Dataset]) -> None:
    from pyrovae.benchmarks import FactoryError

    with pytest.raises(FactoryError, match=r"module 'own_data' has no attribute 'nothing'"):
        own("nothing")
