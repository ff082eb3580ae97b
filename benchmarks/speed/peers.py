"""Pythae's VAE around our networks, where there is one (``pip install 'pyrovae[peers]'``)."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from ...models import VAE
from .subject import DATA_DIM, LATENT_DIM, nets

MISSING = "Pythae is not installed (pip install 'pyrovae[peers]'), and is left out."


def has_pythae() -> bool:
    """Whether there is a Pythae to compare with; it is slow to import, and talkative."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import pythae.models
        import pythae.trainers  # noqa: F401
    except ImportError:
        return False
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("pythae")]:
        logging.getLogger(name).setLevel(logging.ERROR)
    return True


def pythaes(vae: VAE, num_particles: int = 1) -> Any:
    """Pythae's VAE, or IWAE, with our networks in it."""
    from pythae.models import IWAE, IWAEConfig, VAEConfig
    from pythae.models import VAE as PythaeVAE
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    encoder, decoder = nets(vae)
    form = {"input_dim": (DATA_DIM,), "latent_dim": LATENT_DIM, "reconstruction_loss": "bce"}
    if num_particles == 1:
        return PythaeVAE(VAEConfig(**form), Encoder(encoder), Decoder(decoder))
    config = IWAEConfig(**form, number_samples=num_particles)
    return IWAE(config, Encoder(encoder), Decoder(decoder))


def trainer(vae: VAE, x: Tensor, batch: int, num_particles: int) -> Any:
    """Pythae's trainer, with the settings it has of itself but for batch and learning rate."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_epochs=1,
        learning_rate=1e-3,
        no_cuda=x.device.type != "cuda",
    )
    made = BaseTrainer(
        pythaes(vae, num_particles), BaseDataset(x.cpu(), torch.zeros(len(x))), None, config
    )
    made.prepare_training()
    made.callback_handler.callbacks.clear()  # a progress bar, which ours does not show either
    return made
