"""Data sets: exact against independent readings of the published files."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from real_data import MNIST_MD5, REAL, packed_sha256, real, real_bytes, real_set

from pyrovae.benchmarks import datasets
from pyrovae.benchmarks.datasets import DatasetError, catalogue, load

pytestmark = pytest.mark.usefixtures("isolated")


# -------------------- the data that people publish on


@real
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_sets_equal_the_published_protocol_bit_for_bit(name: str) -> None:
    def pixels(file: str, offset: int) -> np.ndarray:
        return np.frombuffer(real_bytes(f"{name}/{file}"), np.uint8, offset=offset)

    data = real_set(name)
    train = pixels("train-images-idx3-ubyte", 16).reshape(60_000, 784).astype("float32") / 255.0
    test = pixels("t10k-images-idx3-ubyte", 16).reshape(10_000, 784).astype("float32") / 255.0
    labels = pixels("train-labels-idx1-ubyte", 8)
    random = np.random.RandomState(777)
    validation_bits = random.binomial(1, train[50_000:])
    test_bits = random.binomial(1, test)

    assert np.array_equal(data.train.numpy(), train[:50_000])
    assert np.array_equal(data.validation.numpy(), validation_bits)
    assert np.array_equal(data.test.numpy(), test_bits)
    assert np.array_equal(torch.cat([data.train_labels, data.validation_labels]).numpy(), labels)
    assert torch.bincount(data.test_labels).sum() == 10_000
    assert data.train.dtype == data.test.dtype == torch.float32
    assert (data.sizes, data.shape, data.dynamic) == ((50_000, 10_000, 10_000), (1, 28, 28), True)
    recorded = catalogue.CATALOGUE[name].fingerprint
    assert data.fingerprint == recorded == packed_sha256(validation_bits, test_bits)


@real
def test_our_mnist_is_the_canonical_one() -> None:
    counts = torch.bincount(real_set("mnist").test_labels)
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for file, md5 in MNIST_MD5.items():
        path = REAL / "mnist" / file
        if not path.exists():
            pytest.skip("the folder holds the files uncompressed")
        assert hashlib.md5(path.read_bytes()).hexdigest() == md5


@real
def test_static_mnist_is_its_text() -> None:
    data = real_set("static-mnist")
    assert (data.sizes, data.shape, data.dynamic) == ((50_000, 10_000, 10_000), (1, 28, 28), False)
    assert data.transform is None
    assert data.train_labels is None
    assert data.labels("test") is None
    assert all(bool(((x == 0) | (x == 1)).all()) for x in (data.train, data.validation, data.test))
    assert data.fingerprint == catalogue.CATALOGUE["static-mnist"].fingerprint
    lines = real_bytes("*/binarized_mnist_valid.amat").splitlines()[:20]
    first = [[int(value) for value in line.split()] for line in lines]
    assert data.validation[:20].tolist() == first


@real
def test_static_test_set_is_sorted_by_digit_and_a_subset_is_not() -> None:
    test = real_set("static-mnist").test
    labels = real_set("mnist").test_labels
    grey_means = torch.stack([real_set("mnist").test[labels == k].mean(0) for k in range(10)])
    ends = torch.bincount(labels).cumsum(0)
    # The trap: the k-th block of rows is digit k, recognised by its mean image.
    for k, block in enumerate(test.tensor_split(ends[:-1])):
        assert (grey_means - block.mean(0)).norm(dim=1).argmin() == k

    rows = real_set("static-mnist").subset_indices("test", 1000, seed=0)
    assert torch.equal(real_set("static-mnist").subset("test", 1000, seed=0), test[rows])
    counts = torch.bincount(torch.bucketize(rows, ends, right=True), minlength=10).double()
    share = torch.bincount(labels) / 10_000
    # Hypergeometric, so the binomial's standard deviation is an upper bound.
    assert ((counts - 1000 * share).abs() < 5 * (1000 * share * (1 - share)).sqrt()).all()
    assert (rows[:980] >= 980).double().mean() > 0.8


def test_digits_equal_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(777).permutation(1797)
    x, y = (images / 16).astype("float32")[order], labels[order]
    random = np.random.RandomState(777)
    validation, test = random.binomial(1, x[1197:1497]), random.binomial(1, x[1497:])

    data = load()
    assert (data.name, data.sizes, data.shape) == ("digits", (1197, 300, 300), (1, 8, 8))
    assert np.array_equal(data.train.numpy(), x[:1197])
    assert np.array_equal(data.validation.numpy(), validation)
    assert np.array_equal(data.test.numpy(), test)
    assert np.array_equal(data.test_labels.numpy(), y[1497:])
    assert data.train_labels.dtype == torch.int64
    assert data.fingerprint == packed_sha256(validation, test)
    assert data.fingerprint == catalogue.CATALOGUE["digits"].fingerprint


def test_grey_digits_are_never_redrawn_and_never_mistaken_for_bits() -> None:
    grey, bits = load("digits", binarise=False), load("digits")
    assert torch.equal(grey.train, bits.train)
    assert (grey.dynamic, grey.binary, grey.transform) == (False, False, None)
    assert torch.equal(grey.test * 16, (grey.test * 16).round())
    assert grey.fingerprint != bits.fingerprint
    with pytest.raises(DatasetError, match=r"'static-mnist' exists only as bits"):
        load("static-mnist", binarise=False)


def test_a_changed_binarisation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dataclasses.replace(catalogue.CATALOGUE["digits"], fingerprint="0" * 64)
    monkeypatch.setitem(catalogue.CATALOGUE, "digits", changed)
    with pytest.raises(DatasetError, match=r"'digits': expected .* 0{64}, found d602876a"):
        load("digits")


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(DatasetError, match=r"unknown data set 'minst'.*digits, mnist, fashion"):
        load("minst")


# -------------------- redraw and subset


def test_redraw_has_the_probabilities_it_is_given() -> None:
    n = 40_000
    p = torch.linspace(0, 1, 17).expand(n, 17)
    mean = datasets.redraw(p, torch.Generator().manual_seed(0)).double().mean(0)
    z = (mean - p[0]) / (p[0] * (1 - p[0]) / n).sqrt().clamp_min(1e-12)
    assert z.abs().max() < 5
    assert (mean[0], mean[-1]) == (0, 1), "certain pixels stay as they are"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_redraw_follows_its_generator(dtype: torch.dtype) -> None:
    p = torch.full((50, 40), 0.5, dtype=dtype)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(3)
    first, second = datasets.redraw(p, generator), datasets.redraw(p, generator)
    assert torch.equal(first, datasets.redraw(p, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)
    assert first.dtype == dtype
    assert torch.equal(p, torch.full_like(p, 0.5)), "the probabilities are kept"
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_redraw_on_cuda_is_reproducible_from_a_cpu_generator() -> None:
    p = torch.full((1000, 100), 0.25, device="cuda")
    first, again = (datasets.redraw(p, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.device.type == "cuda"
    assert torch.equal(first, again)
    assert abs(first.mean().item() - 0.25) < 5 * (0.1875 / 1e5) ** 0.5


def test_subset_is_frozen_nested_and_without_replacement() -> None:
    data = load("digits")
    rows = data.subset_indices("test", 300, seed=0)
    assert rows.dtype == torch.int64
    assert rows[:6].tolist() == np.random.RandomState(0).permutation(300)[:6].tolist()
    assert sorted(rows.tolist()) == list(range(300))
    assert torch.equal(data.subset_indices("test", 40, seed=0), rows[:40])
    assert not torch.equal(data.subset_indices("test", 40, seed=1), rows[:40])
    assert torch.equal(
        data.subset("train", 7, seed=2), data.train[data.subset_indices("train", 7, 2)]
    )


@pytest.mark.parametrize(
    ("split", "size", "seed", "message"),
    [
        ("tset", 1, 0, "split should be one of train, validation, test, found 'tset'"),
        ("test", 0, 0, "size should be from 1 to 300, the size of test; found 0"),
        ("test", 301, 0, "found 301"),
        ("test", 1, -1, "seed should be from 0"),
    ],
)
def test_subset_refuses(split: str, size: int, seed: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load("digits").subset(split, size, seed)
