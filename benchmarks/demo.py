"""The demonstration: one VAE, two priors, and which of them explains held-out digits better.

Both models have the same nets and are trained the same way, on 1,197 digits of 8 by 8 pixels whose
bits are drawn anew in every epoch. So few images are soon learned by heart: the parameters kept are
those of the epoch with the best validation ELBO. Then log p(x) of 300 test images is estimated by
importance sampling, with its errors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..inference import Estimate, ImportanceSampling
from ..inference.evidence import khat_threshold
from ..inference.files import write_atomically
from ..inference.tables import aligned, table
from ..models import VAE
from .diagnostics import active_units, paired_difference, posterior_means
from .pictures import latent_space, learning_curve, reconstructions, samples
from .runs import Settings, new_folder
from .scoring import khat_quantile
from .training import Trained, train

LATENT_DIM = 16
HIDDEN = [100, 100]
NUM_SAMPLES = 5000
EPOCHS = 300
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard normal": ("vae", {}),
    "VampPrior": ("vamp-vae", {"num_pseudo_inputs": 100}),
}

HOW_TO_READ = """\
ELBO        the bound that training raises; nats per image, higher is better, below log p(x).
log p(x)    estimated with K = {num_samples:,} samples per image, low on average; the first ± comes
            from the finite K, the second from having only {num_test} test images.
k̂           the tail of the importance weights: an image at or above {limit:.2f} has a number that
            cannot be trusted; read log p(x) with that share in mind.
active      latent dimensions whose posterior mean moves with the image, of {latent_dim}."""


@dataclass(frozen=True)
class Scored:
    """One model of the demonstration, trained and scored."""

    name: str
    trained: Trained
    vae: VAE
    estimate: Estimate
    means: torch.Tensor
    seconds: float

    @property
    def active(self) -> int:
        return active_units(self.means)


def demo(
    output: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    epochs: int = EPOCHS,
    num_samples: int = NUM_SAMPLES,
    say: Callable[[str], None] = print,
) -> list[Scored]:
    """Train, score, and write table and pictures; by default to the first free ``runs/demo``.

    Raises:
        FileExistsError: ``output`` holds something.
        OSError: it cannot be written to.
    """
    estimator = ImportanceSampling(num_samples=num_samples, seed=seed)
    output = free_folder(Path("runs/demo")) if output is None else output
    with one_thread(), new_folder(output) as folder:
        scored = []
        for name, (model, options) in MODELS.items():
            say(f"Training a VAE with prior: {name}")
            settings = Settings(
                data="digits",
                model=model,
                options={"latent_dim": LATENT_DIM, "hidden": HIDDEN, **options},
                epochs=epochs,
                learning_rate=2e-3,
                warm_up=min(10, epochs // 2),
                patience=30,
                seed=seed,
                device=device,
            )
            scored.append(_train_and_score(name, settings, folder, estimator, say))
        report = _report(scored, num_samples)
        say(f"\n{report}")
        write_atomically(folder / "table.txt", f"{report}\n".encode())
        written = {str(file): what for file, what in _pictures(scored, folder, seed).items()}
        for one in scored:
            written[str(one.trained.run.path)] = f"the run with the prior {one.name}"
        say("\nWritten (look at the pictures; score a run anew by pyrovae evidence RUN):")
        say("\n".join(f"  {line}" for line in aligned(written)))
    return scored


@contextmanager
def one_thread() -> Iterator[None]:
    """Nets this small gain little from a second thread, and where another program has the other
    core, waiting for each other costs them ten times what they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_folder(path: Path) -> Path:
    """The path itself, or where that exists the first free one of path-2, path-3, ..."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _train_and_score(
    name: str,
    settings: Settings,
    folder: Path,
    estimator: ImportanceSampling,
    say: Callable[[str], None],
) -> Scored:
    start = time.perf_counter()
    trained = train(settings, folder / settings.model)
    vae = trained.pair.whole
    assert isinstance(vae, VAE)
    result = trained.run.result
    assert result is not None
    how = "stopped early" if result["stopped_early"] else "the most it was given"
    say(
        f"  {result['epochs']} epochs, {how}; kept those of epoch {result['parameters_of_epoch']}, "
        f"validation ELBO {result['validation_elbo']:.2f} nats per image"
    )
    x = trained.dataset.test
    with trained.pair.evaluating():
        estimate = estimator(vae.model, vae.guide, x)
        device = next(vae.parameters()).device
        means = posterior_means(vae.posterior, x.to(device)).cpu()
    return Scored(name, trained, vae, estimate, means, time.perf_counter() - start)


def _report(scored: list[Scored], num_samples: int) -> str:
    limit = khat_threshold(num_samples)
    headers = (
        "prior",
        "ELBO",
        "log p(x)",
        "± Monte Carlo",
        "± test set",
        f"k̂ ≥ {limit:.2f}",
        "k̂ 95%",
        "k̂ max",
        "active",
        "seconds",
    )
    rows = []
    for one in scored:
        mean = one.estimate.mean()
        rows.append(
            (
                one.name,
                f"{one.estimate.mean_elbo().value:.2f}",
                f"{mean.value:.2f}",
                f"{mean.monte_carlo_stderr:.3f}",
                f"{mean.data_stderr:.2f}",
                f"{mean.unreliable:.1%}",
                khat_quantile(one.estimate, 0.95),
                khat_quantile(one.estimate, 1.0),
                str(one.active),
                f"{one.seconds:.0f}",
            )
        )
    first, last = scored[0], scored[-1]
    difference, error = paired_difference(first.estimate, last.estimate)
    how = HOW_TO_READ.format(
        num_samples=num_samples,
        num_test=len(first.estimate),
        limit=limit,
        latent_dim=LATENT_DIM,
    )
    return "\n".join(
        (
            table(headers, rows),
            "",
            f"{last.name} minus {first.name}, log p(x) on the same {len(first.estimate)} images: "
            f"{difference:+.2f} ± {error:.2f} nats",
            "",
            how,
        )
    )


@torch.no_grad()
def _pictures(scored: list[Scored], folder: Path, seed: int) -> dict[Path, str]:
    dataset = scored[0].trained.dataset
    labels = dataset.test_labels
    assert labels is not None
    # one image of every digit, the first of its kind in the test set
    rows = torch.stack([(labels == digit).nonzero()[0, 0] for digit in labels.unique()])
    torch.manual_seed(seed)
    rebuilt, drawn = {}, {}
    for one in scored:
        device = next(one.vae.parameters()).device
        rebuilt[one.name] = one.vae.reconstruct(dataset.test[rows].to(device)).cpu()
        codes = one.vae.prior().sample(torch.Size((100,)))
        drawn[one.name] = one.vae.likelihood(codes).mean.cpu()
    files = {
        folder
        / "reconstructions.png": "a test image of every digit, and what the code keeps of it",
        folder / "samples.png": "draws of both models",
        folder / "latent-space.png": "where the digits lie in the codes",
        folder / "learning-curve.png": "training and validation bound over epochs",
    }
    rebuilding, sampling, space, curve = files
    reconstructions(dataset.test[rows], rebuilt, dataset.shape, rebuilding)
    samples(drawn, dataset.shape, sampling)
    latent_space({one.name: one.means for one in scored}, labels, space)
    learning_curve({one.name: one.trained.history for one in scored}, curve)
    return files
