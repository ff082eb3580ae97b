"""What a prior, discrete codes, a context and an estimator change, on digits."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ...inference import (
    AnnealedImportanceSampling,
    BidirectionalMonteCarlo,
    ImportanceSampling,
    JackknifeImportanceSampling,
    Penalised,
    RefinedImportanceSampling,
    compare_evidence,
    elbo_surgery,
    fit,
)
from ...models import VAE, VQVAE, ConditionalVAE
from ...models.likelihoods import Bernoulli
from ...models.nets import MLP
from ...models.nets.context import EncodedContext
from ...models.posteriors import DiagonalNormal
from ...models.priors import AutoregressivePrior, UniformCodes
from ...models.quantised import Codebook, VectorQuantiser
from ..datasets import redraw
from .toys import digits, mean_and_error, trained
from .verdict import Verdict, above, exactly, near


def prior() -> list[Verdict]:
    """A learned prior raises log p(x), and lies nearer to the codes' own distribution."""
    x = digits().test
    score = ImportanceSampling(num_samples=1000, seed=0)
    values, surgeries, rates = {}, {}, {}
    for name, options in (
        ("vae", {}),
        ("mixture-vae", {"num_components": 50}),
        ("vamp-vae", {"num_pseudo_inputs": 100}),
    ):
        vae = trained(name, **options)
        values[name] = score(vae.model, vae.guide, x).log_evidence
        surgeries[name] = elbo_surgery(vae.model, vae.guide, x, num_samples=5)
        rates[name] = _rate(vae, x)
    found = []
    for name in list(values)[1:]:
        gain, error = mean_and_error(values[name] - values["vae"])
        found.append(above(f"{name} over the normal, log p(x)", gain, error))
    nearer = surgeries["vae"].marginal_kl - surgeries["vamp-vae"].marginal_kl
    noise = math.hypot(
        surgeries["vae"].marginal_kl_stderr, surgeries["vamp-vae"].marginal_kl_stderr
    )
    found.append(above("KL(q(z) ‖ p), the normal less VampPrior", nearer, noise))
    for name, one in surgeries.items():
        total = one.mutual_information + one.marginal_kl
        rate, error = rates[name]
        noise = math.hypot(error, one.rate_stderr)
        found.append(near(f"{name}: I_q + KL(q(z) ‖ p) less E KL(q ‖ p)", total - rate, noise, 0.0))
        most = math.log(len(x))
        found.append(
            Verdict(
                f"{name}: I_q",
                f"at most log N = {most:.2f}",
                f"{one.mutual_information:.2f}",
                one.mutual_information <= most,
            )
        )
    return found


def _rate(vae: VAE, x: Tensor) -> tuple[float, float]:
    """E KL(q(z | x) ‖ p(z)) over the data, by fresh draws, and its error."""
    torch.manual_seed(0)
    with torch.no_grad():
        q, p = vae.posterior(x), vae.prior()
        z = q.sample((200,))
        draws = (q.log_prob(z) - p.log_prob(z)).double()
    return float(draws.mean()), float(draws.std(0).square().sum().sqrt()) / (200**0.5 * len(x))


def codes() -> list[Verdict]:
    """A VQ-VAE with 16^4 grids of codes: log p(x) is a sum over them all."""
    data = digits()
    torch.manual_seed(0)
    encoder = nn.Sequential(MLP(64, 16 * 4, (100,)), nn.Unflatten(-1, (16, 2, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(16, 16), (2, 2))
    decoder = nn.Sequential(nn.Flatten(-3), MLP(16 * 4, 64, (100,)))
    uniform = VQVAE(UniformCodes((2, 2), 16), quantiser, Bernoulli(decoder))
    learned = VQVAE(AutoregressivePrior((2, 2), 16), quantiser, uniform.likelihood)
    for model, epochs in ((uniform, 80), (learned, 150)):
        if model is learned:
            learned.only_prior()
        fit(
            model.model,
            model.guide,
            data.train,
            objective=Penalised(),
            epochs=epochs,
            learning_rate=2e-3,
            transform=data.transform,
            seed=0,
            progress=False,
        )
        model.eval()
    with torch.no_grad():
        x = data.test
        seen = uniform.codes(x)
        bound = (uniform.decode(seen).log_prob(x) + uniform.prior().log_prob(seen)).double()
        gap, error = mean_and_error(uniform.log_evidence(x).double() - bound)
        trained_on = uniform.codes((data.train > 0.5).float()).flatten(1)
        numbers = (trained_on * 16 ** torch.arange(4)).sum(1)
        share = torch.bincount(numbers, minlength=16**4).double() / len(numbers)
        grids = (torch.arange(16**4)[:, None] // 16 ** torch.arange(4) % 16).reshape(-1, 2, 2)
        log_learned = learned.prior().log_prob(grids).double()
        total = float(log_learned.exp().sum())
        kl_uniform = float((share.xlogy(share)).sum()) + math.log(16**4)
        cut = float((share * (log_learned + math.log(16**4))).sum())
        new, noise = mean_and_error(learned.prior().log_prob(seen) + math.log(16**4))
    return [
        above("gap of the bound under a certain code", gap, error),
        exactly("the learned prior's total less 1", abs(total - 1), 1e-4),
        Verdict(
            "cut of the rate by a learned prior",
            f"0 to KL(p̂ ‖ uniform) = {kl_uniform:.2f}, which p̂ itself would cut",
            f"{cut:.2f}",
            0 < cut <= kl_uniform,
        ),
        above("the same on images of the test set", new, noise),
    ]


def conditional() -> list[Verdict]:
    """log p(y | x): exact where it is conjugate; a digit's unseen pixels are each the better known,
    the more of it is seen."""
    slope = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def model(y: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(c * slope, 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    def guide(y: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((c * slope + y) / 2, 0.8).to_event(1))

    torch.manual_seed(0)
    c = torch.randn(50, 1).double()
    y = c * slope + torch.randn(50, 2).double() * 1.25**0.5
    exact = dist.Normal(c * slope, 1.25**0.5).log_prob(y).sum(-1)
    found = []
    for name, estimator in (
        ("L_5000", ImportanceSampling(num_samples=5000, seed=0)),
        ("AIS", AnnealedImportanceSampling(num_temperatures=50, num_chains=32, seed=0)),
    ):
        estimate = estimator(model, guide, y, c)
        away = float((estimate.log_evidence - estimate.bias - exact).mean())
        found.append(near(f"{name} less exact", away, estimate.mean().monte_carlo_stderr, 0.0))
    gains = {count: _quarters(count) for count in (1, 2, 3)}
    for count, gain in gains.items():
        what = f"gain of an unseen pixel, {count} of 4 quarters seen"
        found.append(above(what, *mean_and_error(gain)))
    found.append(above("the same, 3 less 1 quarters", *mean_and_error(gains[3] - gains[1])))
    return found


def _quarters(count: int) -> Tensor:
    """What seeing some quarters of a digit adds to knowing the rest: nats a pixel, by image."""
    data = digits()
    seen = torch.zeros(8, 8, dtype=torch.bool)
    for row, column in ((1, 0), (0, 0), (1, 1))[:count]:
        seen[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    seen = seen.flatten()
    scores = {}
    for told in (True, False):
        torch.manual_seed(0)
        unseen, size = int((~seen).sum()), int(seen.sum())
        net = MLP(size, 16, (64,))
        cvae = ConditionalVAE(
            DiagonalNormal(EncodedContext(net, [nn.Identity()], alone=True)),
            DiagonalNormal(MLP(64, 16, (64,))),
            Bernoulli(MLP(8 + size, unseen, (64,))),
            conditional_prior=True,
        )

        def shown(x: Tensor, told: bool = told) -> Tensor:
            return x[:, seen] if told else torch.zeros_like(x[:, seen])

        generator = torch.Generator().manual_seed(0)
        bits = redraw(data.train.repeat(5, 1), generator)
        fit(
            cvae.model,
            cvae.guide,
            bits[:, ~seen],
            shown(bits),
            epochs=30,
            learning_rate=2e-3,
            validation=(data.validation[:, ~seen], shown(data.validation)),
            patience=10,
            seed=0,
            progress=False,
        )
        cvae.eval()
        estimate = ImportanceSampling(num_samples=500, seed=0)(
            cvae.model, cvae.guide, data.test[:, ~seen], shown(data.test)
        )
        scores[told] = estimate.log_evidence
    return (scores[True] - scores[False]) / int((~seen).sum())


def estimator() -> list[Verdict]:
    """One VAE of digits under four estimators, and the sandwich of simulated data."""
    vae, x = trained(), digits().subset("test", 50, seed=0)
    pair = vae.model, vae.guide
    # the gap is smaller than the noise of one L_5
    few = torch.stack(
        [ImportanceSampling(num_samples=5, seed=s)(*pair, x).log_evidence for s in range(100)]
    ).mean(0)
    many = ImportanceSampling(num_samples=5000, seed=0)(*pair, x)
    refined = RefinedImportanceSampling(num_samples=2000, num_steps=200, seed=0)(*pair, x)
    jackknife = JackknifeImportanceSampling(num_samples=5000, seed=1)(*pair, x)
    annealed = AnnealedImportanceSampling(num_temperatures=300, num_chains=32, seed=0)(*pair, x)
    found = [above("AIS less the mean of L_5", *mean_and_error(annealed.log_evidence - few))]
    comparison = compare_evidence(L_5000=many, refined=refined, jackknife=jackknife, AIS=annealed)
    for name in ("L_5000", "refined", "jackknife"):
        off = comparison.difference(name, "AIS")
        found.append(
            Verdict(
                f"{name} less AIS",
                "not above 0",
                f"{off.value:+.4f} ± {off.stderr:.2g}",
                off.value < 4 * off.stderr,
            )
        )
    sandwich = BidirectionalMonteCarlo(num_temperatures=300, num_chains=16, seed=0)(*pair, x)
    gap, error = sandwich.mean_gap()
    found.append(
        Verdict(
            "gap of the sandwich", "under 0.1", f"{gap:.4f} ± {error:.2g}", gap + 4 * error < 0.1
        )
    )
    return found
