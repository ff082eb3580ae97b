"""The built-in models: where they begin, what they are made of, and what they refuse."""

from __future__ import annotations

import inspect
from pathlib import Path

import pyro
import pytest
import torch

from pyrovae.benchmarks.zoo import MODELS, PIXEL_MARGIN
from pyrovae.inference import log_weights
from pyrovae.models import load, save
from pyrovae.models.nets import GatedMLP
from pyrovae.models.priors import (
    FlowPrior,
    GaussianMixture,
    ResampledPrior,
    StandardNormal,
    VampPrior,
)

NAMES = sorted(MODELS)
SMALL = {
    "vae": {"hidden": [5]},
    "mixture-vae": {"hidden": [5], "num_components": 3},
    "vamp-vae": {"hidden": [5], "num_pseudo_inputs": 4},
    "gated-vae": {"hidden": [5]},
    "gated-vamp-vae": {"hidden": [5], "num_pseudo_inputs": 4},
    "gated-mixture-vae": {"hidden": [5], "num_components": 3},
    "gated-flow-vae": {"hidden": [5], "num_layers": 2, "flow_hidden": [5]},
    "gated-resampled-vae": {"hidden": [5], "acceptance_hidden": [5]},
    "conv-vae": {"channels": [2, 3]},
}


def images(num_data: int = 30, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Pixels of known means: the first never on, the second always."""
    x = torch.rand(num_data, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x[:, 0], x[:, 1] = 0.0, 1.0
    return x


def small(name: str, x: torch.Tensor, **options: object):
    return MODELS[name](x, **{"latent_dim": 2, **SMALL[name], **options})


def test_every_model_is_tested() -> None:
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_scores_and_draws_in_the_dtype_of_its_data(name: str, dtype: torch.dtype) -> None:
    vae = small(name, images(dtype=dtype))
    bits = vae.sample(7)
    assert bits.shape == (7, 16)
    assert bits.dtype == dtype
    assert ((bits == 0) | (bits == 1)).all()
    weights = log_weights(vae.model, vae.guide, bits, num_particles=3)
    assert weights.log_weight.shape == (3, 7)
    assert weights.log_weight.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "conv-vae"])
def test_the_output_bias_is_the_logit_of_the_pixel_mean(name: str) -> None:
    x = images()
    vae = small(name, x)
    bias = vae.likelihood.net.layers[-1].bias
    mean = torch.sigmoid(bias)
    torch.testing.assert_close(mean[2:], x.mean(0)[2:])
    torch.testing.assert_close(mean[:2], torch.tensor([PIXEL_MARGIN, 1 - PIXEL_MARGIN]))


def test_the_convolutional_bias_is_the_logit_of_each_channel() -> None:
    x = images()
    vae = small("conv-vae", x, shape=[2, 4, 2])
    expected = x.reshape(-1, 2, 4, 2).mean((0, 2, 3))
    torch.testing.assert_close(torch.sigmoid(vae.likelihood.net[0].layers[-1].bias), expected)


@pytest.mark.parametrize("name", ["vamp-vae", "gated-vamp-vae"])
def test_pseudo_inputs_are_different_training_data_chosen_by_the_seed(name: str) -> None:
    x = images()

    def rows(seed: int) -> list[int]:
        pyro.set_rng_seed(seed)
        u = small(name, x).prior.pseudo_inputs
        return (u[:, None] == x).all(-1).nonzero()[:, 1].tolist()

    assert len(set(rows(0))) == 4
    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    vae = small(name, x)
    assert vae.prior.bounds == (0.0, 1.0)
    assert vae.prior.posterior is vae.posterior


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_what_the_name_says(name: str) -> None:
    vae = small(name, images())
    prior = {
        "vamp": VampPrior,
        "mixture": GaussianMixture,
        "flow": FlowPrior,
        "resampled": ResampledPrior,
    }
    expected = next((cls for key, cls in prior.items() if key in name), StandardNormal)
    assert type(vae.prior) is expected
    assert ("gated" in name) == isinstance(vae.likelihood.net, GatedMLP)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_brings_a_model_back(name: str, tmp_path: Path) -> None:
    vae = small(name, images())
    save(vae, tmp_path / "m")
    again = load(tmp_path / "m")
    for key, value in vae.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again.posterior(images()).mean, vae.posterior(images()).mean)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_default(name: str) -> None:
    # `pyrovae train --model NAME` must run without any option
    options = list(inspect.signature(MODELS[name]).parameters.values())[1:]
    assert options
    assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vae", {"latent_dim": 0}, "latent_dim should be a whole number of at least 1; found 0"),
        ("vae", {"latent_dim": "two"}, "latent_dim .* found 'two'"),
        ("vae", {"latent_dim": True}, "latent_dim .* found True"),
        ("vae", {"hidden": 200}, "hidden should be a list of whole numbers; found 200"),
        ("gated-vae", {"hidden": [200, 0]}, r"hidden should be .* found \[200, 0\]"),
        ("conv-vae", {"channels": 3}, "channels should be a list"),
        ("conv-vae", {"shape": [1, 5, 5]}, r"shape should be .* = 16.*found \(1, 5, 5\)"),
        ("mixture-vae", {"num_components": 0}, "num_components should be"),
        ("vamp-vae", {"num_pseudo_inputs": 31}, "num_pseudo_inputs must be between 1 and 30"),
    ],
)
def test_an_impossible_option_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, images(), **options)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_outside_their_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\].* from 0 to 255"):
        small(name, 255 * images())
    with pytest.raises(ValueError, match="one row per image"):
        small(name, images().reshape(-1, 4, 4))


def test_an_image_that_is_no_square_needs_its_shape() -> None:
    with pytest.raises(ValueError, match="shape should be"):
        small("conv-vae", torch.rand(5, 15))
    assert small("conv-vae", torch.rand(5, 15), shape=[1, 3, 5]).sample(2).shape == (2, 15)
