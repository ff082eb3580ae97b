"""Pictures of a run: those that its model can show, into a folder that is not written over."""

from __future__ import annotations

import matplotlib.image
import pytest
import torch
from command_line import invoke
from torch import nn

from pyrovae.benchmarks.datasets import Dataset
from pyrovae.models import VAE, VQVAE, MixtureVAE
from pyrovae.models.flows import AutoregressiveFlow
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.nets import MLP
from pyrovae.models.posteriors import DiagonalNormal, FlowPosterior
from pyrovae.models.priors import GaussianMixture, StandardNormal, UniformCodes
from pyrovae.models.quantised import Codebook, VectorQuantiser

pytestmark = pytest.mark.usefixtures("here", "no_pictures", "one_thread")

SHAPE, D, Z = (1, 4, 3), 12, 3
OF_A_VAE = {"samples", "reconstructions", "interpolation", "traversals", "latent-space"}


def images() -> Dataset:
    bits = torch.rand(60, D, generator=torch.Generator().manual_seed(0)).round()
    train, validation, test = bits.split(20)
    labels = torch.arange(20) % 3
    return Dataset("images", train, validation, test, SHAPE, False, labels, labels, labels)


def vae(x_train):
    likelihood = Bernoulli(MLP(Z, D, (5,)))
    return VAE(StandardNormal(Z), DiagonalNormal(MLP(D, 2 * Z, (5,))), likelihood)


def with_a_flow(x_train):
    posterior = FlowPosterior(MLP(D, 2 * Z, (5,)), AutoregressiveFlow(Z, 1, (5,)))
    return VAE(StandardNormal(Z), posterior, Bernoulli(MLP(Z, D, (5,))))


def mixture(x_train):
    posterior = DiagonalNormal(MLP(D, 2 * Z, (5,)))
    return MixtureVAE(GaussianMixture(Z, 3), posterior, Bernoulli(MLP(Z, D, (5,))))


def quantised(x_train):
    encoder = nn.Sequential(MLP(D, 2 * 2, (5,)), nn.Unflatten(-1, (2, 2)))
    quantiser = VectorQuantiser(encoder, Codebook(4, 2), grid=(2,))
    decoder = nn.Sequential(nn.Flatten(-2), MLP(4, D, (5,)))
    return VQVAE(UniformCodes((2,), 4), quantiser, Bernoulli(decoder))


class Drawless(nn.Module):
    """Programs without a method that draws."""

    def __init__(self, x_train):
        super().__init__()
        whole = vae(x_train)
        self.whole, self.model, self.guide = whole, whole.model, whole.guide


def trained(name, data="images"):
    words = ["--data", f"test_gallery:{data}", "--model", f"test_gallery:{name}"]
    objective = {"mixture": "ELBO", "quantised": "pyrovae.inference:Penalised"}.get(name)
    words += ["--objective", objective] if objective else []
    invoke("train", *words, "--epochs", "1", "--output", "run")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vae", OF_A_VAE),
        ("with_a_flow", OF_A_VAE),
        ("mixture", {"samples", "reconstructions"}),
        ("quantised", {"samples", "reconstructions", "codebook"}),
    ],
)
def test_a_model_shows_what_it_can(name, shown, tmp_path):
    trained(name)
    told = invoke("pictures", "run").output
    files = {file.stem: file for file in (tmp_path / "run" / "pictures").iterdir()}
    assert set(files) == shown
    for file in files.values():
        assert matplotlib.image.imread(file).std() > 0.01
        assert file.name in told


def test_pictures_are_not_drawn_over(tmp_path):
    trained("vae")
    invoke("pictures", "run", "--output", "shown")
    assert "never written over" in invoke("pictures", "run", "--output", "shown", code=1).output
    first = (tmp_path / "shown" / "samples.png").read_bytes()
    invoke("pictures", "run", "--output", "again")
    assert (tmp_path / "again" / "samples.png").read_bytes() == first


def test_a_model_that_cannot_draw_is_told():
    trained("Drawless")
    assert (
        "by a model with a method sample; found Drawless"
        in invoke("pictures", "run", code=1).output
    )


def rows() -> Dataset:
    data = images()
    return Dataset("rows", data.train, data.validation, data.test, (D,))


def test_data_that_are_no_images_are_told():
    trained("vae", "rows")
    assert "images (C, H, W)" in invoke("pictures", "run", code=1).output
