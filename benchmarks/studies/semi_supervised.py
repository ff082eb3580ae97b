"""How few labels does a classifier need, if the images without labels help?

Semi-supervised VAEs (M2) of MNIST with 100 and 1,000 labelled images of 50,000, as many of each
digit, against the same classifier taught by these labels alone. Nets as in *Semi-supervised
learning with deep generative models* (Kingma, Mohamed, Rezende and Welling, 2014): one hidden layer
of 500 softplus units, 50 latents; the paper's errors are 11.97 % ± 1.71 and 3.60 % ± 0.56.

    python -m pyrovae.benchmarks.studies.semi_supervised --output benchmarks/results

So few labelled images would be in one batch of five: they are repeated until one datum in eleven is
labelled. The classifier's cross-entropy has a weight α for each of these; at α = 1 an epoch weighs
it as the paper does, a tenth of the number of data for all labels together. Bits are drawn anew in
each epoch. No labels are held back to choose an epoch or a weight by: the last epoch counts, and
every weight has its line. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ...inference import ImportanceSampling, Penalised, fit
from ...models import SemiSupervisedVAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.posteriors import DiagonalNormal
from ...models.priors import StandardNormal
from ..datasets import Dataset, load
from ..machine import describe_machine, keep
from ..pictures import image_grid

CLASSES, LATENT_DIM, HIDDEN = 10, 50, (500,)
SHARE = 10  # data without a label for each row with one
PUBLISHED = {100: (11.97, 1.71), 1000: (3.60, 0.56)}
NUM_TEST = 1000


def choose_labelled(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows with as many of each class, ``(count,)``."""
    random = np.random.RandomState(seed)
    rows = [
        random.choice(np.flatnonzero(labels.numpy() == k), count // CLASSES, replace=False)
        for k in range(CLASSES)
    ]
    return torch.from_numpy(np.concatenate(rows))


def build(num_pixels: int, label_weight: float) -> SemiSupervisedVAE:
    return SemiSupervisedVAE(
        CLASSES,
        MLP(num_pixels, CLASSES, HIDDEN, nn.Softplus),
        StandardNormal(LATENT_DIM),
        DiagonalNormal(MLP(num_pixels + CLASSES, 2 * LATENT_DIM, HIDDEN, nn.Softplus)),
        Bernoulli(MLP(LATENT_DIM + CLASSES, num_pixels, HIDDEN, nn.Softplus)),
        label_weight=label_weight,
    )


def train(
    count: int,
    weight: float,
    data: Dataset,
    epochs: int,
    learning_rate: float,
    seed: int,
    folder: Path,
    device: str,
) -> SemiSupervisedVAE:
    """All images once without their label, and the labelled ones over and over with it."""
    assert data.train_labels is not None
    labelled = choose_labelled(data.train_labels, count, seed)
    total = len(data.train)
    repeats = total // SHARE // count
    x = torch.cat([data.train, data.train[labelled].repeat(repeats, 1)])
    known = data.train_labels[labelled].repeat(repeats)
    label = torch.cat([torch.full((total,), -1), known])
    torch.manual_seed(seed)
    model = build(x.shape[1], label_weight=weight).to(device)
    fit(
        model.model,
        model.guide,
        x,
        label,
        objective=Penalised(TraceEnum_ELBO(max_plate_nesting=1)),
        epochs=epochs,
        learning_rate=learning_rate,
        transform=data.transform,
        seed=seed,
        compile=True,
        checkpoint=folder / f"m2-{count}-{weight:g}-{learning_rate:g}-{seed}.safetensors",
        resume=True,
    )
    return model.eval()


def supervised_error(count: int, data: Dataset, seed: int, device: str) -> float:
    """Of the same classifier, taught by the labelled images alone, bits drawn anew each time."""
    assert data.train_labels is not None
    assert data.test_labels is not None
    labelled = choose_labelled(data.train_labels, count, seed)
    torch.manual_seed(seed)
    classifier = MLP(data.train.shape[1], CLASSES, HIDDEN, nn.Softplus).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-4)
    x, y = data.train[labelled].to(device), data.train_labels[labelled].to(device)
    for _ in range(2000):
        rows = torch.randint(count, (min(count, 100),), device=device)
        loss = nn.functional.cross_entropy(classifier(torch.bernoulli(x[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guessed = classifier(data.test.to(device)).argmax(-1).cpu()
    return float((guessed != data.test_labels).double().mean())


def row(
    count: int, model: SemiSupervisedVAE, data: Dataset, num_samples: int, seed: int, device: str
) -> dict[str, Any]:
    """The numbers of one line of the table: errors as shares, log p in nats."""
    assert data.test_labels is not None
    test = data.test.to(device)
    wrong = model.classify(test).cpu() != data.test_labels
    error = float(wrong.double().mean())
    rows = data.subset_indices("test", NUM_TEST, seed=0)
    score = ImportanceSampling(num_samples=num_samples, seed=seed, progress=True)
    x, y = test[rows.to(device)], data.test_labels[rows].to(device)
    estimate = score(model.model, model.guide, x)
    given = score(model.model, model.guide, x, y)
    return {
        "labels": count,
        "seed": seed,
        "error": error,
        "error_stderr": math.sqrt(error * (1 - error) / len(wrong)),
        "supervised_error": supervised_error(count, data, seed, device),
        "log_p": estimate.mean().value,
        "monte_carlo_stderr": estimate.mean().monte_carlo_stderr,
        "data_stderr": estimate.mean().data_stderr,
        "khat_above_threshold": estimate.mean().unreliable,
        "log_p_with_label": given.mean().value,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each number of labels and seed."""
    lines = [
        "| labels | seed | α | epochs | learning rate | error, these labels alone "
        "| error, M2 ± test set | published | "
        "log p(x) ≥ ± Monte Carlo ± test set | log p(x, y) ≥ | k̂ too high |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        mean, spread = PUBLISHED.get(one["labels"], (math.nan, math.nan))
        lines.append(
            f"| {one['labels']:,} | {one['seed']} | {one['weight']:g} | {one['epochs']} "
            f"| {one['learning_rate']:g} "
            f"| {one['supervised_error']:.2%} | {one['error']:.2%} ± {one['error_stderr']:.2%} "
            f"| {mean:.2f}% ± {spread:.2f} "
            f"| {one['log_p']:.2f} ± {one['monte_carlo_stderr']:.2f} ± {one['data_stderr']:.2f} "
            f"| {one['log_p_with_label']:.2f} | {one['khat_above_threshold']:.0%} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def draw_picture(model: SemiSupervisedVAE, data: Dataset, path: Path, device: str) -> None:
    """The same codes with each label: handwriting is in the code, the digit in the label."""
    x = data.subset("test", 8, seed=2).to(device)
    style = model.posterior(x, model.one_hot(model.classify(x))).mean
    labels = model.one_hot(torch.arange(CLASSES, device=device))
    rows = {
        f"style of {number}": model.likelihood(z.expand(CLASSES, -1), labels).mean.cpu()
        for number, z in enumerate(style, start=1)
    }
    with_original = {
        name: torch.cat([original[None].cpu(), drawn])
        for (name, drawn), original in zip(rows.items(), x, strict=True)
    }
    columns = ["image", *map(str, range(CLASSES))]
    image_grid(with_original, data.shape, path, "One code, ten labels", columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/semi-supervised"))
    parser.add_argument("--output", type=Path, help="a folder for table, numbers and a picture")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    data = load("mnist")
    rows = []
    for count in options.labels:
        for seed, weight in itertools.product(options.seeds, options.weights):
            model = train(
                count,
                weight,
                data,
                options.epochs,
                options.learning_rate,
                seed,
                options.checkpoints,
                options.device,
            )
            found = row(count, model, data, options.samples, seed, options.device)
            told = {"epochs": options.epochs, "learning_rate": options.learning_rate}
            rows.append(found | told | {"weight": weight})
            print(table(rows[-1:]), flush=True)
    print(table(rows))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        stem = "semi-supervised" + "".join(f"-{n}" for n in options.labels)
        draw_picture(model, data, options.output / f"{stem}.png", options.device)
        machine = describe_machine()
        command = (
            "python -m pyrovae.benchmarks.studies.semi_supervised --labels "
            f"{' '.join(map(str, options.labels))} --weights "
            f"{' '.join(f'{w:g}' for w in options.weights)} --epochs {options.epochs} "
            f"--learning-rate {options.learning_rate:g} --samples "
            f"{options.samples} --seeds {' '.join(map(str, options.seeds))}"
        )
        text = (
            f"{table(rows)}\n\nErrors on the 10,000 test images; log p from K = {options.samples} "
            f"on {NUM_TEST} of them, drawn with seed 0, the label summed out of log p(x). The seed "
            f"chooses the labelled images too. `{command}`: {machine['summary']}\n"
        )
        keep(options.output, stem, text, {"command": command, "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
