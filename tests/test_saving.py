"""Saved models: what comes back, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyrovae.models import VAE, LinearGaussianVAE, load, save, saving
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal


class Shifted(nn.Module):
    """A prior of one's own that keeps its constructor's arguments."""

    def __init__(self, latent_dim, shift=1.0):
        super().__init__()
        self.latent_dim, self.shift = latent_dim, shift
        self.loc = nn.Parameter(torch.full((latent_dim,), shift))

    def forward(self):
        return torch.distributions.Normal(self.loc, 1.0)


class Forgetful(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class Hidden(nn.Module):
    """Its parameters depend on more than its argument says."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(size))

    def grow(self):
        self.weight = nn.Parameter(torch.zeros(self.size + 1))
        return self


def write(path, module_description, tensors=None, format=saving.FORMAT):
    description = json.dumps({"module": module_description, "training": True})
    save_file(
        tensors or {"weight": torch.zeros(1)},
        path,
        metadata={"format": format, "description": description},
    )


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 2, bias=False),
        nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2)),
        LinearGaussianVAE(4, 2).double(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_come_back_as_they_were(module, tmp_path):
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
    save(module.eval(), tmp_path / "module")
    again = load(tmp_path / "module")
    assert not again.training
    assert again.state_dict().keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == again.state_dict()[name].dtype


def test_a_file_is_as_readable_as_any_other(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "module")
    (tmp_path / "other").touch()
    assert (tmp_path / "module").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_ones_own_class_is_allowed_by_name(tmp_path):
    vae = VAE(Shifted(2, shift=3.0), DiagonalNormal(nn.Linear(4, 4)), Bernoulli(nn.Linear(2, 4)))
    save(vae, tmp_path / "vae")
    with pytest.raises(ValueError, match="constructs test_saving:Shifted: pass that class"):
        load(tmp_path / "vae")
    again = load(tmp_path / "vae", classes=[Shifted])
    assert again.prior.shift == 3.0


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Forgetful(3), "does not keep its constructor argument 'size'"),
        (Hidden(3).grow(), "parameters that its constructor arguments do not explain"),
        (VAE(StandardNormal(2), nn.Linear(2, 2), lambda z: z), "likelihood is a function"),
    ],
    ids=["forgetful", "hidden", "function"],
)
def test_what_cannot_be_rebuilt_is_not_saved(module, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save(module, tmp_path / "module")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    ["os:system", "subprocess:run", "builtins:eval", "torch.nn.init:zeros_", "torchvision:x", "x"],
)
def test_files_construct_nothing_but_known_modules(key, tmp_path):
    write(tmp_path / "file", {"module": key, "index": 0, "arguments": {"command": "touch oops"}})
    with pytest.raises(ValueError, match="the file constructs"):
        load(tmp_path / "file")


def test_pickles_are_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load(tmp_path / "file")
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(path)
    save(LinearGaussianVAE(4, 2), path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model is not a whole safetensors file"):
            load(path)
    write(path, {}, format="something else")
    with pytest.raises(ValueError, match="is not a saved model: its format is 'something else'"):
        load(path)
    linear = {"in_features": 1, "out_features": 1, "bias": False}
    description = {"module": "torch.nn.modules.linear:Linear", "index": 0, "arguments": linear}
    write(path, description, {"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"'weight' should have shape \(1, 1\), but has \(2, 2\)"):
        load(path)
    write(path, description, {"other": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="parameters at odds"):
        load(path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save(LinearGaussianVAE(4, 2), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(LinearGaussianVAE(5, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
