"""What two processes do in tests/test_together.py: `torchrun together_script.py FOLDER`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed as processes
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae.inference import KL, FreeBits, MonteCarloObjective, bounds, fit
from pyrovae.inference.objectives import named

N, D, Z = 90, 5, 3  # batches of 20 leave one of 10; parts of 10 are as large as it


class Pair(nn.Module):
    """z ~ N(0, 1), x ~ N(f(z), 1), with what a test wants to have in the encoder."""

    def __init__(self, between: nn.Module | None = None, latent: int = Z) -> None:
        super().__init__()
        self.latent = latent
        middle = [] if between is None else [between]
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), *middle, nn.Linear(8, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 8), nn.Tanh(), nn.Linear(8, D))

    def model(self, x: Tensor, *context: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            shift = context[0][:, None] if context else 0.0
            pyro.sample("x", dist.Normal(self.decoder(z) + shift, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, *context: Any) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Centred(nn.Module):
    """Looks at all data of a batch."""

    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Gamma(Pair):
    """A latent whose draws reject, so that they take as many random numbers as they happen to."""

    def model(self, x: Tensor, *context: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_ones(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, *context: Any) -> None:
        with pyro.plate("data", len(x)):
            a, b = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Gamma(a.exp(), b.exp()).to_event(1))


def data() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


Case = tuple[Callable[[], Pair], Callable[[], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "ELBO": (Pair, Trace_ELBO, {}),
    "mean field": (Pair, TraceMeanField_ELBO, {}),
    "vectorised particles": (
        Pair,
        lambda: Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1),
        {},
    ),
    "DReG": (Pair, lambda: named.DReG(num_particles=10), {}),
    "RWS": (Pair, lambda: named.RWS(num_particles=4), {}),
    # as many particles and latents as data in a part: shapes alone do not tell the data's axis
    "square": (lambda: Pair(latent=10), lambda: named.IWAE(num_particles=10), {}),
    "context": (Pair, Trace_ELBO, {"context": True}),
    "transform": (Pair, Trace_ELBO, {"transform": True}),
    "dropout": (lambda: Pair(nn.Dropout(0.5)), Trace_ELBO, {}),
    "settings": (Pair, Trace_ELBO, {"clip": 0.1, "warm_up": 2, "patience": 2}),
    "three at a time": (Pair, Trace_ELBO, {"batch_size": 3}),  # parts of 1 and 2
    "one at a time": (Pair, Trace_ELBO, {"batch_size": 89}),  # the last batch has one datum
}
REFUSED: dict[str, Case] = {
    "batch norm": (lambda: Pair(nn.BatchNorm1d(8)), Trace_ELBO, {}),
    "free bits": (
        Pair,
        lambda: MonteCarloObjective(bounds.ELBO(), kl=KL(free_bits=FreeBits(1.0, per="site"))),
        {},
    ),
    "centred": (lambda: Pair(Centred()), Trace_ELBO, {}),
    "rejection": (Gamma, Trace_ELBO, {}),
    "compiled": (Pair, Trace_ELBO, {"compile": True}),
}


def run(case: Case, group: Any, **more: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Train a pair; its parameters and losses."""
    make, objective, options = case
    torch.manual_seed(0)
    pair = make()
    x, options = data(), dict(options)
    noisy = options.pop("transform", False)
    context = (torch.linspace(-1, 1, N),) if options.pop("context", False) else ()
    history = fit(
        pair.model,
        pair.guide,
        x,
        *context,
        objective=objective(),
        validation=(x[:33], context[0][:33]) if context else x[:33],
        transform=(lambda x, g: x + torch.randn(x.shape, generator=g)) if noisy else None,
        seed=5,
        progress=False,
        group=group,
        **({"epochs": 3, "batch_size": 20, "learning_rate": 1e-2} | options | more),
    )
    losses = [*history.loss.tolist(), *history.validation_elbo.tolist()]
    return {name: value.detach().clone() for name, value in pair.named_parameters()}, losses


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    processes.init_process_group("gloo")
    group, first = processes.group.WORLD, processes.get_rank() == 0
    said: dict[str, Any] = {}
    for name, case in CASES.items():
        values, losses = run(case, group)
        every: list[Any] = [None, None]
        processes.all_gather_object(every, {n: v.numpy().tobytes() for n, v in values.items()})
        said[name] = {"same": every[0] == every[1], "losses": losses}
        if first:
            torch.save(values, folder / f"{name}.pt")
    for name, case in REFUSED.items():
        try:
            run(case, group)
            said[name] = "was not refused"
        except ValueError as error:
            said[name] = str(error)
    try:
        torch.manual_seed(processes.get_rank())
        pair = Pair()
        fit(pair.model, pair.guide, data(), epochs=1, group=group, progress=False)
    except RuntimeError as error:
        said["unequal"] = str(error)
    checkpoint = folder / "half.safetensors"
    run(CASES["DReG"], group, epochs=2, checkpoint=checkpoint)
    try:
        run(CASES["DReG"], group, epochs=2, checkpoint=checkpoint)
    except FileExistsError as error:
        said["exists"] = str(error)
    told: list[Any] = [None, None]
    processes.all_gather_object(told, said)
    said["all alike"] = told[0] == told[1]
    if first:
        (folder / "said.json").write_text(json.dumps(said))
    processes.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
