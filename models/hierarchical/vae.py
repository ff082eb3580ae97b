r"""The variational autoencoder with L layers of codes, each drawn given what is above it.

.. math:: z_L \sim p(z_L), \quad z_l \sim p(z_l \mid h_l), \; l = L - 1, \dots, 1, \quad
          x \sim p(x \mid h_0).

A layer sees the code above it, :math:`h_l = z_{l+1}`, and the codes are a Markov chain; or it sees
a path of features that leads down past all of them, :math:`h_l = f_l(z_{l+1}, h_{l+1})`, by which
each code may reach the data directly. The posterior's approximation goes up, from code to code; or
features go up, :math:`d_1 = e_1(x)`, :math:`d_l = e_l(d_{l-1})`, and it comes down as the model
does, on the same path:

.. math:: \text{bottom-up:} \quad & q(z_1 \mid x) \, q(z_2 \mid z_1) \cdots q(z_L \mid z_{L-1}), \\
          \text{top-down:} \quad & q(z_L \mid d_L) \, q(z_{L-1} \mid d_{L-1}, h_{L-1}) \cdots
          q(z_1 \mid d_1, h_1), \\
          \text{ladder:} \quad & q(z_l \mid d_l, h_l) \propto
          N(z_l; \mu_l(d_l), \sigma_l^2(d_l)) \, p(z_l \mid h_l), \; l < L.

The posterior of a chain factorises both ways. With a path it does so downwards, since what lies
below a layer depends on what lies above it through :math:`h_l` alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..checks import check_counts
from ..generative import GenerativeModel, draw
from .ladder import precision_weighted
from .parts import Codes, Draw, Modules, drawing, listed


class HierarchicalVAE(GenerativeModel):
    """A variational autoencoder with L layers of codes, from its parts, listed from the bottom up.

    Its sites are ``z_1``, next to the data, to ``z_L``. With one layer it is a
    :class:`~pyrovae.models.VAE`, whose ``z`` is called ``z_1`` here. The context goes where x goes,
    to ``posteriors[0]`` or ``encoders[0]``, and to the likelihood.

    Args:
        prior: ``prior()`` returns p(z_L).
        conditionals: L - 1 modules; ``conditionals[l - 1](h_l)`` returns p(z_l | h_l).
        posteriors: L modules. ``posteriors[0](x, *context)`` and ``posteriors[l - 1](z_{l-1})``
            return the q of z_1 and z_l; with encoders, ``posteriors[L - 1](d_L)`` and
            ``posteriors[l - 1](d_l, h_l)``, of equal leading dimensions, those of z_L and z_l; in a
            ladder, they are given d_l alone.
        likelihood: ``likelihood(h_0, *context)`` returns p(x | h_0).
        encoders: L modules, ``encoders[0](x, *context)`` and ``encoders[l - 1](d_{l-1})``, where
            inference is top-down; None where it is bottom-up.
        paths: L modules; ``paths[l](z_{l+1}, h_{l+1})`` returns h_l, and ``paths[L - 1](z_L)`` the
            first. None for h_l = z_{l+1}.
        ladder: whether q(z_l | d_l, h_l) is the product, weighted by their precisions, of the
            normals that posterior and conditional return.
        name: in Pyro's parameter store; see :class:`~pyrovae.models.generative.GenerativeModel`.

    Raises:
        TypeError: modules that are not in a list; in a ladder, distributions that are not normal.
        ValueError: another number of modules; a ladder without encoders.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016: bottom-up.
        Sønderby, Raiko, Maaløe, Sønderby and Winther, *Ladder variational autoencoders*, 2016.
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, *Improved variational inference
        with inverse autoregressive flow*, 2016, and Vahdat and Kautz, *NVAE: a deep hierarchical
        variational autoencoder*, 2020: top-down, with a path.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.models.posteriors import DiagonalNormal
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> ladder = HierarchicalVAE(
        ...     prior=StandardNormal(5),
        ...     conditionals=[DiagonalNormal(MLP(5, 2 * 20))],
        ...     posteriors=[DiagonalNormal(MLP(200, 2 * 20)), DiagonalNormal(MLP(100, 2 * 5))],
        ...     likelihood=Bernoulli(MLP(20, 784)),
        ...     encoders=[MLP(784, 200), MLP(200, 100)],
        ...     ladder=True,
        ... )
        >>> ladder.sample(64).shape
        torch.Size([64, 784])
        >>> codes = ladder.encode(torch.zeros(3, 784))
        >>> codes["z_1"].shape, codes["z_2"].shape
        (torch.Size([3, 20]), torch.Size([3, 5]))
        >>> ladder.decode({"z_2": codes["z_2"]}).shape  # with a z_1 drawn given z_2
        torch.Size([3, 784])
    """

    def __init__(
        self,
        prior: nn.Module,
        conditionals: Modules,
        posteriors: Modules,
        likelihood: nn.Module,
        encoders: Modules | None = None,
        paths: Modules | None = None,
        ladder: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.prior, self.likelihood, self.ladder = prior, likelihood, ladder
        self.posteriors = listed("posteriors", posteriors)
        size = self.num_layers = len(self.posteriors)
        if size == 0:
            raise ValueError("posteriors must be a list of one for each layer, but is empty")
        self.conditionals = listed("conditionals", conditionals, size - 1)
        self.encoders = None if encoders is None else listed("encoders", encoders, size)
        self.paths = None if paths is None else listed("paths", paths, size)
        if ladder and encoders is None:
            raise ValueError("encoders must be given where ladder=True, but are None")

    def model(self, x: Tensor, *context: Tensor) -> Tensor:
        """Draw the codes, from the top down, and x, observed, from the likelihood."""
        with self._data(x):
            _, h = self._generate(pyro.sample)
            return self._observe(x, self.likelihood(h, *context))

    def guide(self, x: Tensor, *context: Tensor) -> Codes:
        """Draw the codes, by site, from the posterior's approximation."""
        with self._data(x):
            return self._infer(pyro.sample, x, *context)

    @torch.no_grad()
    def sample(self, num_samples: int, *context: Tensor) -> Tensor:
        """Draw ``num_samples`` data from the model: ``(num_samples, *data)``."""
        check_counts(num_samples=num_samples)
        _, h = self._generate(drawing(torch.Size((num_samples,))))
        return draw(num_samples, self.likelihood(h, *context))

    @torch.no_grad()
    def sample_codes(self, num_samples: int) -> Codes:
        """Draw the codes of all layers from the model, ``(num_samples, Z_l)`` by site."""
        check_counts(num_samples=num_samples)
        codes, _ = self._generate(drawing(torch.Size((num_samples,))))
        return codes

    @torch.no_grad()
    def encode(self, x: Tensor, *context: Tensor) -> Codes:
        """Draw the codes of all layers from q(z | x), ``(N, Z_l)`` by site."""
        return self._infer(drawing(x.shape[:1]), x, *context)

    @torch.no_grad()
    def decode(self, codes: Mapping[str, Tensor], *context: Tensor) -> Tensor:
        """The likelihood's mean at codes: of all layers, or of the top ones alone.

        The layers below those are drawn given them: what stays the same from draw to draw is what
        the layers above have to say.

        Args:
            codes: by site, ``(..., Z_l)``, with the same leading dimensions.
            context: one for each datum.

        Raises:
            ValueError: they are not those of the top layers.
        """
        top = f"z_{self.num_layers}"
        if not codes or codes.keys() != {f"z_{self.num_layers - i}" for i in range(len(codes))}:
            raise ValueError(
                f"codes must be of {top} and of any layers that follow below it without a gap, but "
                f"are of {sorted(codes)}"
            )
        rows = codes[top].dim() - len(self.prior().event_shape)
        fresh = drawing(codes[top].shape[:rows])
        _, h = self._generate(lambda site, p: codes[site] if site in codes else fresh(site, p))
        return self.likelihood(h, *context).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *context: Tensor) -> Tensor:
        """The likelihood's mean at codes drawn from q(z | x): the shape of ``x``."""
        return self.decode(self.encode(x, *context), *context)

    # --- what draws is an argument: pyro.sample in the programs, and elsewhere no part of Pyro ----

    def _generate(self, draw: Draw) -> tuple[Codes, Tensor]:
        """The codes of the model, and h_0."""
        codes: Codes = {}
        h: tuple[Tensor, ...] = ()  # nothing is above the top
        for layer in range(self.num_layers, 0, -1):
            p = self.conditionals[layer - 1](*h) if h else self.prior()
            codes[f"z_{layer}"] = z = draw(f"z_{layer}", p)
            h = (self._path(layer - 1, z, *h),)
        return codes, h[0]

    def _path(self, layer: int, z: Tensor, *h: Tensor) -> Tensor:
        return z if self.paths is None else self.paths[layer](z, *h)

    def _infer(self, draw: Draw, x: Tensor, *context: Tensor) -> Codes:
        """The codes of the posterior's approximation."""
        codes: Codes = {}
        below: tuple[Tensor, ...] = (x, *context)
        if self.encoders is None:
            for layer, posterior in enumerate(self.posteriors, 1):
                codes[f"z_{layer}"] = z = draw(f"z_{layer}", posterior(*below))
                below = (z,)
            return codes
        features: list[Tensor] = []
        for encoder in self.encoders:
            features.append(encoder(*below))
            below = (features[-1],)
        rows = x.shape[:1]
        h: tuple[Tensor, ...] = ()
        for layer in range(self.num_layers, 0, -1):
            q = self._posterior(layer - 1, features[layer - 1], rows, *h)
            codes[f"z_{layer}"] = z = draw(f"z_{layer}", q)
            if layer > 1:  # h_0 is the likelihood's alone
                rows = z.shape[: z.dim() - len(q.event_shape)]
                h = (self._path(layer - 1, z, *h),)
        return codes

    def _posterior(
        self, index: int, d: Tensor, rows: torch.Size, *h: Tensor
    ) -> TorchDistributionMixin:
        posterior = self.posteriors[index]
        if h and self.ladder:
            of_prior = self.conditionals[index](*h)
            return precision_weighted(f"[{index}]", posterior(d), of_prior)
        # what was drawn has a dimension for the particles, which the features lack
        return posterior(d.expand(*rows, *d.shape[1:]), *h)
