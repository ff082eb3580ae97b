"""The data sets there are, their splits, and the fingerprints of their binarisation.

| name | data | split | binarisation |
|---|---|---|---|
| digits | 8x8, 17 grey levels (Alpaydin & Kaynak, *Optical recognition of handwritten digits*, 1998) | 1197/300/300, shuffled with seed 777 | dynamic |
| mnist | 28x28 (LeCun, Bottou, Bengio & Haffner, *Gradient-based learning applied to document recognition*, 1998) | first 50,000 / last 10,000 / 10,000 | dynamic |
| fashion-mnist | 28x28 (Xiao, Rasul & Vollgraf, *Fashion-MNIST*, 2017) | as mnist | dynamic |
| static-mnist | MNIST's bits as drawn once for *On the quantitative analysis of deep belief networks* (Salakhutdinov & Murray, 2008) and *The neural autoregressive distribution estimator* (Larochelle & Murray, 2011) | 50,000/10,000/10,000; the test set is sorted by digit | static |
| pbmc68k | counts of 765 genes in 700 blood cells, see `counts` | 500/100/100, shuffled with seed 777 | none |

Dynamic: the protocol of *VAE with a VampPrior* (Tomczak & Welling, 2018), see `dataset`.
"""  # noqa: E501

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .counts import load_counts
from .custom import load_custom
from .dataset import BINARISATION_SEED, Dataset, DatasetError, binarise_once
from .fetch import File, Published
from .formats import parse_amat, parse_idx


class Origin(Protocol):
    """Where images come from: `Bundled` with a package, or `Published` as files."""

    def read(
        self, name: str, folder: str | Path | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]: ...

    def where(self, folder: str | Path | None) -> str: ...


@dataclass(frozen=True)
class Images:
    """A built-in set of images: pixels 0..levels of ``shape``, cut in order into three ``sizes``.

    ``levels = 1`` means that they are bits already. ``fingerprint`` is that of the validation and
    test bits.
    """

    name: str
    shape: tuple[int, int, int]
    sizes: tuple[int, int, int]
    levels: int
    fingerprint: str
    origin: Origin


@dataclass(frozen=True)
class Listing:
    """One line of `available`: sizes are (train, validation, test)."""

    name: str
    sizes: tuple[int, int, int]
    shape: tuple[int, ...]
    dynamic: bool
    where: str


class Bundled:
    """The digits that come with scikit-learn, shuffled with seed 777."""

    def read(
        self, name: str, folder: str | Path | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DatasetError(
                f"data set '{name}' comes with scikit-learn: pip install 'pyrovae[bench]'."
            ) from error
        images, labels = load_digits(return_X_y=True)
        order = np.random.RandomState(BINARISATION_SEED).permutation(len(images))
        return images[order].astype(np.uint8), labels[order].astype(np.uint8)

    def where(self, folder: str | Path | None) -> str:
        return "bundled with scikit-learn"


def _idx(folder: str, url: str, *sha256: str) -> Published:
    """The four idx files that MNIST and its drop-in replacements consist of."""
    train_images, test_images, train_labels, test_labels = sha256
    return Published(
        folders=(folder,),
        url=url,
        suffix=".gz",
        parse=parse_idx,
        images=(
            File("train-images-idx3-ubyte", train_images, (60_000, 28, 28)),
            File("t10k-images-idx3-ubyte", test_images, (10_000, 28, 28)),
        ),
        labels=(
            File("train-labels-idx1-ubyte", train_labels, (60_000,)),
            File("t10k-labels-idx1-ubyte", test_labels, (10_000,)),
        ),
    )


_SIZES = (50_000, 10_000, 10_000)

CATALOGUE = {
    images.name: images
    for images in (
        Images(
            name="digits",
            shape=(1, 8, 8),
            sizes=(1197, 300, 300),
            levels=16,
            fingerprint="d602876a4fc0f65b1b59e920958a2b836ac669b113ff86de9256ed4624216b45",
            origin=Bundled(),
        ),
        Images(
            name="mnist",
            shape=(1, 28, 28),
            sizes=_SIZES,
            levels=255,
            fingerprint="3f3e11a3761b053a3c060148261a4f038cb778c0c5bf0aaf6b7df34b3beb0a39",
            origin=_idx(
                "mnist",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        Images(
            name="fashion-mnist",
            shape=(1, 28, 28),
            sizes=_SIZES,
            levels=255,
            fingerprint="915898b0917dd46522f48f7c51f004a6fdead944d53174f14d875c4f4d619021",
            origin=_idx(
                "fashion-mnist",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        Images(
            name="static-mnist",
            shape=(1, 28, 28),
            sizes=_SIZES,
            levels=1,
            fingerprint="09d50f16e25f52a3c5250f3149eb52836b4ff9052a5eefac6b15d3924f5555d6",
            origin=Published(
                folders=("binarized-mnist", "static-mnist"),
                url="http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
                suffix="",
                parse=parse_amat,
                images=(
                    File(
                        "binarized_mnist_train.amat",
                        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
                        (50_000, 784),
                    ),
                    File(
                        "binarized_mnist_valid.amat",
                        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
                        (10_000, 784),
                    ),
                    File(
                        "binarized_mnist_test.amat",
                        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
                        (10_000, 784),
                    ),
                ),
            ),
        ),
    )
}

COUNTS = "pbmc68k"
NAMES = (*CATALOGUE, COUNTS)


def load(
    name: str = "digits", *, folder: str | Path | None = None, binarise: bool = True
) -> Dataset:
    """A built-in data set by name, or one of the user's own by import path.

    Args:
        name: one of `NAMES`, or ``package.module:function`` (see `custom`).
        folder: holds the files as ``folder/mnist/*.gz``, ``folder/fashion-mnist/*.gz``,
            ``folder/binarized-mnist/*.amat`` (or ``folder/static-mnist/``), compressed or not.
            None: the environment variable PYROVAE_DATA; where that is unset, the cache, filled by
            download. Digits need no files.
        binarise: for the built-in grey images. False leaves all three splits grey, in [0, 1], for
            likelihoods of continuous pixels. A data set of the user's own is taken as it is.

    Raises:
        DatasetError: an unknown name; files missing, damaged or not to be had; unusable data.
        FactoryError: an import path that leads to nothing callable.

    >>> digits = load("digits")
    >>> digits.shape, digits.dynamic, digits.fingerprint[:8]
    ((1, 8, 8), True, 'd602876a')
    >>> load("cifar")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    DatasetError: unknown data set 'cifar'; there are digits, mnist, fashion-mnist, ...
    """
    if ":" in name:
        return load_custom(name, folder)
    if name == COUNTS:
        return load_counts().data
    if name not in CATALOGUE:
        raise DatasetError(
            f"unknown data set '{name}'; there are {', '.join(NAMES)}, and your own as "
            "package.module:function."
        )
    images = CATALOGUE[name]
    if images.levels == 1 and not binarise:
        raise DatasetError(f"data set '{name}' exists only as bits: binarise should be True.")
    return _build(images, folder, binarise)


def available(folder: str | Path | None = None) -> list[Listing]:
    """What each built-in data set is and where `load` would take it from, without loading it.

    >>> available()[0].where
    'bundled with scikit-learn'
    """
    images = [
        Listing(s.name, s.sizes, s.shape, s.levels > 1, s.origin.where(folder))
        for s in CATALOGUE.values()
    ]
    counts = load_counts().data
    return [*images, Listing(COUNTS, counts.sizes, counts.shape, False, "bundled with pyrovae")]


def _build(images: Images, folder: str | Path | None, binarise: bool) -> Dataset:
    pixels, classes = images.origin.read(images.name, folder)
    ends = np.cumsum(images.sizes)[:-1]

    def scale(split: NDArray[np.uint8]) -> Tensor:
        # float32 before the division, as in the published protocol: draws depend on the last bit.
        x = split.reshape(len(split), math.prod(images.shape)).astype(np.float32)
        x /= images.levels
        return torch.from_numpy(x)

    train, validation, test = (scale(split) for split in np.split(pixels, ends))
    dynamic = binarise and images.levels > 1
    if dynamic:
        validation, test = binarise_once(validation, test)
    labels: list[Tensor | None] = [None, None, None]
    if classes is not None:
        labels = [torch.from_numpy(y.astype(np.int64)) for y in np.split(classes, ends)]
    dataset = Dataset(images.name, train, validation, test, images.shape, dynamic, *labels)
    if binarise and dataset.fingerprint != images.fingerprint:
        raise DatasetError(
            f"data set '{images.name}': expected validation and test bits with fingerprint "
            f"{images.fingerprint}, found {dataset.fingerprint}: its log-likelihoods would not be "
            "comparable with others."
        )
    return dataset
