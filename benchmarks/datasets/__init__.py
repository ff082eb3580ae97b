"""Images and counts for density estimation, split and binarised the way papers do it.

A Bernoulli likelihood scores bits, so grey pixels p in [0, 1] become bits b ~ Bernoulli(p). In
*dynamic* binarisation the bits of the training set are drawn anew in every epoch, and those of the
validation and test sets once and for all; in *static* binarisation all of them were drawn once, by
others. Numbers from the two, or from different draws, are not comparable: every data set carries a
fingerprint of the bits that are scored.

>>> digits = load("digits")
>>> digits.train.shape, digits.validation.shape, digits.test.shape
(torch.Size([1197, 64]), torch.Size([300, 64]), torch.Size([300, 64]))
"""

from .catalogue import NAMES, Listing, available, load
from .counts import Counts, load_counts
from .dataset import SPLITS, Dataset, DatasetError, binarise_once, redraw

__all__ = [
    "NAMES",
    "SPLITS",
    "Counts",
    "Dataset",
    "DatasetError",
    "Listing",
    "available",
    "binarise_once",
    "load",
    "load_counts",
    "redraw",
]
