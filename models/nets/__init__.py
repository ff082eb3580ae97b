"""Networks that posteriors and likelihoods hold: plain torch modules, no probability in them.

Each takes any number of leading dimensions, so that K particles cost one call, and any number of
context tensors. Those are vectors, one per datum; they join the input along its last dimension, and
where the input is an image, the features that were made of it.
"""

from .context import EncodedContext, OneHot, WithoutContext
from .convolutional import ConvDecoder, ConvEncoder, GridDecoder, GridEncoder
from .mlp import MLP, GatedLinear, GatedMLP

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "EncodedContext",
    "GatedLinear",
    "GatedMLP",
    "GridDecoder",
    "GridEncoder",
    "OneHot",
    "WithoutContext",
]
