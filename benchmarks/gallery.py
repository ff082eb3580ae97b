"""Pictures of what the model of a run has learned: draws, reconstructions, walks, codes.

Every family of images gets draws and reconstructions; one with a code of numbers gets walks through
it, and a map of it where the data have labels; a VQ-VAE gets the use of its codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference.rng import forked
from ..models import VAE, VQVAE, ConditionalVAE
from .datasets import Dataset
from .diagnostics import posterior_means
from .factories import FactoryError
from .pairs import find_device
from .pictures import (
    between,
    codebook_use,
    image_grid,
    latent_space,
    reconstructions,
    samples,
    through,
)
from .runs import Run, new_folder
from .scoring import load_pair
from .training import load_data

NUM_ORIGINALS, NUM_WALKS, NUM_DIMENSIONS, NUM_CODES = 10, 6, 8, 1000


def gallery(
    run: Run,
    output: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[Path, str]:
    """Draw the pictures of a run, by default into its folder ``pictures``.

    Returns:
        What each file shows.

    Raises:
        FileExistsError: the folder holds something.
        FactoryError: the model is of no family that draws, or its data are no images.
        ValueError: no epoch is finished, or the model's files are damaged.
    """
    dataset = load_data(run.settings)
    pair = load_pair(run, dataset, find_device(device))
    model = pair.whole
    if len(dataset.shape) != 3 or not all(hasattr(model, part) for part in ("sample", "model")):
        raise FactoryError(
            "pictures are drawn of images (C, H, W), by a model with a method sample; found "
            f"{type(model).__name__} of data of shape {dataset.shape}"
        )
    written: dict[Path, str] = {}
    with new_folder(run.path / "pictures" if output is None else output) as folder:
        torch.manual_seed(seed)
        with pair.evaluating(), torch.no_grad():
            for name, (what, draw) in _plan(model, dataset).items():
                file = folder / f"{name}.png"
                draw(model, dataset, file)
                written[file] = what
    return written


def draw_samples(run: Run, file: Path, seed: int = 0) -> bool:
    """Draw what a model draws into one file, where that is known how: of a VAE of images.

    Returns:
        Whether there is a picture.
    """
    dataset = load_data(run.settings)
    pair = load_pair(run, dataset)
    model = pair.whole
    known = isinstance(model, VAE | VQVAE) and not isinstance(model, ConditionalVAE)
    if not known or len(dataset.shape) != 3:
        return False
    with forked(torch.device("cpu"), seed), pair.evaluating(), torch.no_grad():
        _samples(model, dataset, file)
    return True


Draw = Callable[[Any, Dataset, Path], None]


def _plan(model: Any, dataset: Dataset) -> dict[str, tuple[str, Draw]]:
    """By file, what is drawn of a model, and how."""
    plan: dict[str, tuple[str, Draw]] = {"samples": ("draws of the model", _samples)}
    if hasattr(model, "reconstruct") and not isinstance(model, ConditionalVAE):
        plan["reconstructions"] = ("test images, and what their codes keep", _reconstructions)
    if isinstance(model, VQVAE):
        plan["codebook"] = ("how often each code is chosen", _codebook)
    elif isinstance(model, VAE) and not isinstance(model, ConditionalVAE):
        plan["interpolation"] = ("from one test image to another in the code", _interpolation)
        plan["traversals"] = ("one dimension of the code at a time", _traversals)
        if dataset.test_labels is not None:
            plan["latent-space"] = ("where the classes lie in the codes", _latent_space)
    return plan


def _test(model: Any, dataset: Dataset, count: int) -> Tensor:
    """Test data at random, where the model is."""
    device = next(model.parameters()).device
    return dataset.subset("test", min(count, len(dataset.test)), seed=0).to(device)


def _samples(model: Any, dataset: Dataset, file: Path) -> None:
    size = torch.Size((100,))
    if isinstance(model, VQVAE):
        drawn = model.decode(model.prior().sample(size)).mean
    elif isinstance(model, VAE) and not isinstance(model, ConditionalVAE):
        drawn = model.likelihood(model.prior().sample(size)).mean
    else:
        drawn = model.sample(size[0])
    samples({type(model).__name__: drawn.cpu()}, dataset.shape, file)


def _reconstructions(model: Any, dataset: Dataset, file: Path) -> None:
    x = _test(model, dataset, NUM_ORIGINALS)
    rebuilt = {type(model).__name__: model.reconstruct(x).cpu()}
    reconstructions(x.cpu(), rebuilt, dataset.shape, file)


def _codebook(model: Any, dataset: Dataset, file: Path) -> None:
    codes = model.codes(_test(model, dataset, NUM_CODES))
    codebook_use({"test images": codes}, model.posterior.codebook.num_codes, file)


def _interpolation(model: Any, dataset: Dataset, file: Path) -> None:
    first, second = _test(model, dataset, 2 * NUM_WALKS).split(NUM_WALKS)
    walks = between(model, first[: len(second)], second).cpu()
    rows = {str(number): walk for number, walk in enumerate(walks, start=1)}
    image_grid(
        rows, dataset.shape, file, "From one test image to another, along a line in the code"
    )


def _traversals(model: Any, dataset: Dataset, file: Path) -> None:
    x = _test(model, dataset, NUM_CODES)
    spread = posterior_means(model.posterior, x).var(0)
    chosen = spread.topk(min(NUM_DIMENSIONS, len(spread))).indices.tolist()
    walks = through(model, x[0], chosen).cpu()
    rows = {f"z_{d + 1}": walk for d, walk in zip(chosen, walks, strict=True)}
    image_grid(rows, dataset.shape, file, "A test image, as one dimension goes from −3 to 3")


def _latent_space(model: Any, dataset: Dataset, file: Path) -> None:
    assert dataset.test_labels is not None
    count = min(NUM_CODES, len(dataset.test))
    labels = dataset.test_labels[dataset.subset_indices("test", count, seed=0)]
    means = posterior_means(model.posterior, _test(model, dataset, count)).cpu()
    latent_space({type(model).__name__: means}, labels, file)
