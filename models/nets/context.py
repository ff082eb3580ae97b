"""How networks are told the context of a datum: by joining it to their input, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from ..checks import check_counts


def join(x: Tensor, context: Sequence[Tensor]) -> Tensor:
    """Concatenate along the last dimension; the leading ones broadcast.

    Context lacks the particle dimensions of x, and may have those of a class that is enumerated.
    """
    if not context:
        return x
    for part in context:
        if not isinstance(part, Tensor):
            raise TypeError(f"context must be tensors, but has a {type(part).__name__} among them")
        if not part.is_floating_point():  # N labels would pass for one vector of N features
            raise ValueError(
                f"context must be floating like the input, but is {part.dtype} of shape "
                f"{tuple(part.shape)}: let pyrovae.models.nets.EncodedContext(net, [OneHot(C)]) "
                "encode labels"
            )
    shapes = [part.shape[:-1] for part in context]
    try:
        batch = torch.broadcast_shapes(x.shape[:-1], *shapes)
    except RuntimeError:
        raise ValueError(
            "context must have one entry for each of the input, whose batch shape is "
            f"{tuple(x.shape[:-1])}, or one for all, but has {[tuple(s) for s in shapes]}"
        ) from None
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in (x, *context)], -1)


class WithoutContext(nn.Module):
    """A network that is not told the context its posterior or likelihood was given.

    Where a posterior needs an index of the datum (:class:`~pyrovae.models.posteriors.PerDatum`),
    the likelihood must not see it.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> WithoutContext(MLP(2, 4))(torch.zeros(5, 2), torch.arange(5)).shape
        torch.Size([5, 4])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.net(x)


class OneHot(nn.Module):
    """Labels 0 to C − 1, of any integer type or floating, as vectors of C numbers.

    Raises:
        TypeError: no tensor.
        ValueError: a label outside that range, or between two of them. (On a GPU the first is
            torch's own error, and the second is not looked for.)

    Example:
        >>> OneHot(3)(torch.tensor([0, 2]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    classes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes)
        self.num_classes = num_classes
        # rows of the identity: it follows the module's device and dtype
        self.register_buffer("classes", torch.eye(num_classes), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, but are a {type(labels).__name__}")
        numbers = labels.long()
        # looking would make a GPU wait, and there indexing out of range is an error of its own
        look = numbers.device.type == "cpu" and is_validation_enabled()
        if look and not bool(
            ((numbers >= 0) & (numbers < self.num_classes) & (numbers == labels)).all()
        ):
            raise ValueError(
                f"labels must be whole numbers between 0 and {self.num_classes - 1}, but go from "
                f"{labels.min().item():g} to {labels.max().item():g}"
            )
        # unlike an index in brackets, it does not count from the end
        return nn.functional.embedding(numbers, self.classes)


class EncodedContext(nn.Module):
    """A network whose contexts are first made vectors, each by a network of its own.

    Args:
        net: takes ``(x, *vectors)``; or the vectors alone, where x is the first context, as in a
            conditional prior.
        encoders: one for each context: ``OneHot(10)`` for labels, a
            :class:`~pyrovae.models.nets.ConvEncoder` for images, ``nn.Identity()`` for a vector.
        alone: whether there is no x besides the contexts.

    Raises:
        TypeError: the encoders are no list.
        ValueError: another number of contexts.

    Example:
        >>> from pyrovae.models.nets import MLP
        >>> net = EncodedContext(MLP(64 + 10, 8), [OneHot(10)])
        >>> net(torch.zeros(5, 64), torch.tensor([0, 1, 2, 3, 4])).shape
        torch.Size([5, 8])
    """

    def __init__(self, net: nn.Module, encoders: Sequence[nn.Module], alone: bool = False) -> None:
        super().__init__()
        if not isinstance(encoders, list | tuple | nn.ModuleList):
            raise TypeError(
                "encoders must be a list of modules, one for each context, but is a "
                f"{type(encoders).__name__}"
            )
        self.net, self.encoders, self.alone = net, nn.ModuleList(encoders), alone

    def forward(self, *args: Tensor) -> Tensor:
        first = 0 if self.alone else 1
        inputs, context = args[:first], args[first:]
        if len(context) != len(self.encoders):
            raise ValueError(
                f"context must be of {len(self.encoders)} parts, one for each encoder, but is of "
                f"{len(context)}"
            )
        vectors = [encode(part) for encode, part in zip(self.encoders, context, strict=True)]
        return self.net(*inputs, *vectors)
