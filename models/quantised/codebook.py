r"""The vectors that stand for codes: how they are learned, and how dead ones are revived.

By gradient, each vector is drawn to the encodings it stands for by the term
:math:`\|\mathrm{sg}(z_e) - e\|^2` of the loss. By moving averages it *is* their mean,

.. math:: n_k \leftarrow \gamma n_k + (1 - \gamma) |Z_k|, \quad
          s_k \leftarrow \gamma s_k + (1 - \gamma) \sum_{z \in Z_k} z, \quad e_k = s_k / n_k,

over the encodings :math:`Z_k` nearest to it in each batch. A code that stands for next to none is
dead: nothing draws it anywhere. It is put next to an encoding of the batch, chosen at random; on
it, two codes could come to be equal, which no decoder can tell apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_counts

_DEAD = 0.03  # of the share that each code would have if all were used alike
_ASIDE = 1e-3  # of the encodings' size: how far from one a revived code is put


class Codebook(nn.Module):
    """M vectors of D numbers.

    Args:
        num_codes: M.
        code_dim: D.
        decay: γ of the moving averages; None to learn the vectors by gradient.
        revive: whether dead codes are put next to encodings, in training.
        frozen: whether it stays as it is.

    Raises:
        ValueError: a size under 1, a decay outside (0, 1).

    References:
        van den Oord, Vinyals and Kavukcuoglu, *Neural discrete representation learning*, 2017.
        Razavi, van den Oord and Vinyals, *Generating diverse high-fidelity images with VQ-VAE-2*,
        2019.

    Example:
        >>> Codebook(num_codes=16, code_dim=8).vectors.shape
        torch.Size([16, 8])
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        decay: float | None = 0.99,
        revive: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_codes=num_codes, code_dim=code_dim)
        if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
            raise ValueError(f"decay must be in (0, 1) or None, but is {decay}")
        self.num_codes, self.code_dim = num_codes, code_dim
        self.decay, self.revive, self.frozen = decay, revive, frozen
        start = torch.randn(num_codes, code_dim)
        if decay is None:
            self.vectors = nn.Parameter(start)
        else:
            self.register_buffer("vectors", start)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", start.clone())

    @property
    def is_learned(self) -> bool:
        """Whether the vectors are parameters."""
        return self.decay is None

    @torch.no_grad()
    def learn(self, encoded: Tensor, numbers: Tensor) -> None:
        """Take in a batch: encodings ``(R, D)`` and their codes ``(R,)``.

        Nothing here waits for the device: dead codes are told apart by a mask.
        """
        if self.frozen:
            return
        decay = 0.99 if self.decay is None else self.decay
        used = torch.zeros_like(self.counts).scatter_add_(
            0, numbers, torch.ones_like(numbers, dtype=self.counts.dtype)
        )
        # a share of R, so that batches of any size mean the same
        used *= self.num_codes / len(numbers)
        self.counts.mul_(decay).add_(used, alpha=1 - decay)
        total = torch.zeros_like(self.sums).index_add_(0, numbers, encoded)
        total *= self.num_codes / len(numbers)
        self.sums.mul_(decay).add_(total, alpha=1 - decay)
        if not self.is_learned:
            known = self.counts > 1e-8  # what is left of the others is rounding
            mean = self.sums / self.counts.clamp(min=1e-8)[:, None]
            self.vectors.copy_(torch.where(known[:, None], mean, self.vectors))
        if self.revive:
            self._revive(encoded)

    def _revive(self, encoded: Tensor) -> None:
        dead = self.counts < _DEAD
        rows = torch.randint(len(encoded), (self.num_codes,), device=encoded.device)
        size = encoded.square().mean().sqrt()
        chosen = encoded[rows] + _ASIDE * size * torch.randn_like(self.vectors)
        self.vectors.copy_(torch.where(dead[:, None], chosen, self.vectors))
        self.sums.copy_(torch.where(dead[:, None], chosen, self.sums))
        self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
