"""Learning-rate schedules of published protocols, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def burda(optimizer: Optimizer) -> LambdaLR:
    r"""For i = 0, 1, ..., 7: the first learning rate times :math:`10^{-i/7}`, for 3^i epochs.

    That is 3,280 epochs in all; whoever trains for longer stays at the last rate.

    References:
        Burda, Grosse and Salakhutdinov, *Importance weighted autoencoders*, 2016.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> rates = burda(optimizer)
    >>> [round(rates.lr_lambdas[0](epoch), 3) for epoch in (0, 1, 3, 4, 3279, 9999)]
    [1.0, 0.72, 0.72, 0.518, 0.1, 0.1]
    """

    def factor(epoch: int) -> float:
        stage = 0
        while stage < 7 and epoch >= (3 ** (stage + 1) - 1) // 2:
            stage += 1
        return float(10 ** (-stage / 7))

    return LambdaLR(optimizer, factor)


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {"burda": burda}
