"""Saved models: what comes back, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyrovae.models import VAE, LinearGaussianVAE, load, save, saving
from pyrovae.models.likelihoods import Bernoulli, ContinuousBernoulli
from pyrovae.models.nets import ConvDecoder, ConvEncoder
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import GaussianMixture, StandardNormal, VampPrior


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


class Doubled(nn.Module):
    """Keeps something else under its argument's name; no parameter tells."""

    def __init__(self, size):
        super().__init__()
        self.size = 2 * size


class Holding(nn.Module):
    """Holds a tensor that no state dict knows."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale


class Buffered(nn.Module):
    def __init__(self, scale, persistent=True):
        super().__init__()
        self.persistent = persistent
        self.register_buffer("scale", scale, persistent=persistent)


class Variadic(nn.Module):
    def __init__(self, *sizes, **options):
        super().__init__()


class Named(nn.Module):
    """Its name is no label: it decides what the module is."""

    def __init__(self, name="plain"):
        super().__init__()
        self.name = name


class Tower(nn.Sequential):
    """A container with a constructor of its own."""

    def __init__(self, size):
        super().__init__(nn.Linear(size, size), nn.Tanh())
        self.size = size


def write(path, module_description, tensors=None, format=saving.FORMAT):
    description = json.dumps({"module": module_description, "training": [], "frozen": []})
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
        nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.LayerNorm(3, bias=False)),
        nn.Sequential(nn.Identity(), nn.PReLU(2), nn.Dropout(0.3), nn.Unflatten(-1, (2, 3))),
        nn.ModuleList([nn.Linear(2, 2), nn.ConvTranspose2d(2, 1, 3, output_padding=1, stride=2)]),
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
    assert repr(again) == repr(module)
    assert again.state_dict().keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert tensor.dtype == again.state_dict()[name].dtype


def test_a_file_is_as_readable_as_any_other(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "module")
    (tmp_path / "other").touch()
    assert (tmp_path / "module").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_convolutional_models_come_back_with_their_statistics(tmp_path):
    """Batch norm's buffers, a shared encoder, images as pseudo-inputs."""
    shape = (1, 6, 5)
    encoder = nn.Sequential(ConvEncoder(shape, 8, (2, 3)), nn.BatchNorm1d(8), nn.Linear(8, 4))
    posterior = DiagonalNormal(encoder)
    prior = VampPrior(posterior, torch.rand(3, *shape), bounds=(0.0, 1.0))
    decoder = ContinuousBernoulli(ConvDecoder(2, shape, (2, 3)), event_dim=3)
    vae, x = VAE(prior, posterior, decoder), torch.rand(7, *shape)
    vae.reconstruct(x)  # in training mode: the statistics move
    save(vae.eval(), tmp_path / "vae")
    again = load(tmp_path / "vae")
    for one, two in ((vae, again), (vae.train(), again.train())):
        assert torch.equal(one.posterior(x).mean, two.posterior(x).mean)
        assert torch.equal(one.prior().log_prob(torch.ones(2)), two.prior().log_prob(torch.ones(2)))
    assert again.prior.posterior is again.posterior
    assert again.prior.bounds == (0.0, 1.0)


def test_each_tensor_keeps_its_own_precision(tmp_path):
    vae = VAE(GaussianMixture(2), DiagonalNormal(nn.Linear(4, 4)), Bernoulli(nn.Linear(2, 4)))
    vae.prior.double()
    save(nn.Sequential(vae, nn.BatchNorm1d(2)), tmp_path / "module")
    again = load(tmp_path / "module")
    assert again[0].prior.loc.dtype == torch.float64
    assert again[0].likelihood.net.weight.dtype == torch.float32
    assert again[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(again[0].prior.loc, vae.prior.loc)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training, tmp_path):
    save(LinearGaussianVAE(4, 2).train(training), tmp_path / "linear")
    again = load(tmp_path / "linear")
    assert {part.training for part in again.modules()} == {training}


def test_random_numbers_of_others_are_left_alone(tmp_path):
    linear = LinearGaussianVAE(4, 2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    save(linear, tmp_path / "linear")
    load(tmp_path / "linear")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "module",
    [Shifted(2, 3.0), Named("other"), Tower(3), Buffered(torch.rand(3)), nn.Sequential(Tower(2))],
    ids=lambda module: type(module).__name__,
)
def test_classes_of_ones_own_come_back(module, tmp_path):
    save(module, tmp_path / "module")
    again = load(tmp_path / "module", classes=[Shifted, Named, Tower, Buffered])
    assert vars(again).keys() == vars(module).keys()
    assert getattr(again, "name", None) == getattr(module, "name", None)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.gpu
def test_a_model_is_loaded_to_where_it_is_wanted(tmp_path):
    linear = LinearGaussianVAE(4, 2).cuda()
    save(linear, tmp_path / "linear")
    x = torch.zeros(3, 4)
    on_gpu, on_cpu = load(tmp_path / "linear", device="cuda"), load(tmp_path / "linear")
    assert torch.equal(on_gpu.log_evidence(x.cuda()), linear.log_evidence(x.cuda()))
    torch.testing.assert_close(on_cpu.log_evidence(x), linear.log_evidence(x.cuda()).cpu())


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
        (Doubled(3), "Doubled, built from the attributes .* has others"),
        (Holding(torch.ones(3)), r"Holding\.scale is a tensor, but no parameter"),
        (Buffered(torch.ones(3), persistent=False), r"Buffered\.scale is a tensor, but no param"),
        (Variadic(1, 2, option=3), r"Variadic takes '\*sizes', which cannot be described"),
        (nn.LSTM(2, 3), r"LSTM takes '\*args', which cannot be described"),
    ],
    ids=[
        *("forgetful", "hidden", "function"),
        *("doubled", "holding", "fleeting", "variadic", "torch's variadic"),
    ],
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


def test_what_is_refused_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text(
        "from torch.nn import Identity\nopen('sprung', 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", {"module": "trap:Identity", "index": 0, "arguments": {}})
    with pytest.raises(ValueError, match="constructs trap:Identity: pass that class"):
        load(tmp_path / "file")
    assert "trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()


LINEAR = {"in_features": 1, "out_features": 1, "bias": False}


@pytest.mark.parametrize(
    "description",
    [
        None,
        "{oops",
        "[" * 100_000,
        "[]",
        "{}",
        *(
            json.dumps({"module": module, "training": [], "frozen": []})
            for module in (
                3,
                {"module": 3},
                {"shared": 7},
                {"module": "torch.nn:Linear"},
                {"module": "torch.nn:Linear", "index": 0, "arguments": {**LINEAR, "odd": 1}},
                {"module": "torch.nn:Linear", "index": 0, "arguments": {**LINEAR, "bias": {}}},
                {"tensor": [10**15], "dtype": "float32"},
                {"tensor": [1], "dtype": "hub"},
            )
        ),
        json.dumps({"module": {"module": "torch.nn:Linear", "index": 0, "arguments": LINEAR}}),
    ],
    ids=lambda description: str(description)[:60],
)
def test_descriptions_that_make_no_sense_are_refused(description, tmp_path):
    metadata = {"format": saving.FORMAT}
    if description is not None:
        metadata["description"] = description
    save_file({"weight": torch.zeros(1, 1)}, tmp_path / "file", metadata=metadata)
    with pytest.raises(ValueError, match="file has a description that nothing can be built from"):
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


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_what_was_there(step, tmp_path, monkeypatch):
    path = tmp_path / "model"
    save(LinearGaussianVAE(4, 2), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        save(LinearGaussianVAE(5, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_takes_no_more_leaves_what_was_there(tmp_path):
    """The operating system itself refuses, past a limit on the size of files."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    path = tmp_path / "model"
    save(LinearGaussianVAE(4, 2), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(LinearGaussianVAE(100, 20), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(LinearGaussianVAE(4, 2), tmp_path / "nowhere" / "model")


def test_frozen_parameters_and_the_mode_of_each_part_come_back(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].weight.requires_grad_(False)
    module[1].eval()
    save(module, tmp_path / "module")
    again = load(tmp_path / "module")
    assert [again.training, again[0].training, again[1].training] == [True, True, False]
    assert [value.requires_grad for value in again.parameters()] == [False, True, True, True]
