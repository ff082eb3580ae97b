"""Pictures: each is a readable image of the right things, and drawing one changes nothing else."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

from pyrovae.benchmarks import pictures
from pyrovae.inference import History
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Gaussian
from pyrovae.models.posteriors import DiagonalNormal
from pyrovae.models.priors import StandardNormal

SHAPE = (1, 3, 2)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The figures that are saved, by file name, beside the files themselves."""
    figures: dict = {}
    save = pictures.save_figure

    def keep(figure, path):
        figures[Path(path).name] = figure
        save(figure, path)

    for module in (pictures.codes, pictures.curves, pictures.images):
        monkeypatch.setattr(module, "save_figure", keep)
    return figures


def read(path: Path) -> np.ndarray:
    """The pixels; fails where the file is no whole image."""
    pixels = matplotlib.image.imread(path)
    assert pixels.std() > 0.01  # not blank
    return pixels


def history(epochs: int = 20, warm_up: int = 0, validation: bool = True) -> History:
    result = History()
    for epoch in range(1, epochs + 1):
        row = {"loss": 100 / epoch, "beta": min(1.0, epoch / max(warm_up, 1))}
        if validation:
            row["validation_elbo"] = -110 / epoch
        result.append(**row)
    result.best_epoch = epochs - 1 if validation and epochs > 1 else None
    return result


def test_a_learning_curve_shows_both_bounds_and_the_best(tmp_path: Path, drawn: dict) -> None:
    pictures.learning_curve({"a": history(), "b": history(10)}, tmp_path / "curve.png")
    read(tmp_path / "curve.png")
    axes = drawn["curve.png"].axes[0]
    training, validation, best = axes.lines[:3]
    np.testing.assert_allclose(training.get_ydata(), -100 / np.arange(1, 21))
    np.testing.assert_allclose(validation.get_ydata(), -110 / np.arange(1, 21))
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (19, -110 / 19)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert "nats per datum" in axes.get_ylabel()
    assert axes.get_xlabel() == "epoch"


def test_what_is_no_bound_is_not_drawn_as_one(tmp_path: Path, drawn: dict) -> None:
    pictures.learning_curve({"a": history(warm_up=5)}, tmp_path / "curve.png")
    training = drawn["curve.png"].axes[0].lines[0].get_ydata()
    assert np.isnan(training[:4]).all()
    assert np.isfinite(training[4:]).all()
    words = [text.get_text() for text in drawn["curve.png"].axes[0].get_legend().get_texts()]
    assert words == ["a", "KL warm-up ends"]


@pytest.mark.parametrize("kept", [history(1), history(2, warm_up=5), history(3, validation=False)])
def test_a_short_history_can_be_drawn(tmp_path: Path, kept: History) -> None:
    pictures.learning_curve({"a": kept}, tmp_path / "curve.png")
    read(tmp_path / "curve.png")


def test_reconstructions_stand_below_their_originals(tmp_path: Path, drawn: dict) -> None:
    x = torch.rand(4, 6)
    made = {"a": x / 2, "b": x / 3}
    pictures.reconstructions(x, made, SHAPE, tmp_path / "r.png")
    read(tmp_path / "r.png")
    axes = drawn["r.png"].axes
    assert len(axes) == 12
    for i, images in enumerate((x, *made.values())):
        for n in range(4):
            shown = axes[4 * i + n].images[0].get_array()
            np.testing.assert_allclose(shown, images[n].reshape(3, 2).numpy())
    assert [axes[i].get_ylabel() for i in (0, 4, 8)] == ["original", "a", "b"]


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_tiled_in_order(tmp_path: Path, drawn: dict, channels: int) -> None:
    x = torch.rand(9, channels * 6)
    pictures.samples({"a": x, "b": 1 - x}, (channels, 3, 2), tmp_path / "s.png")
    read(tmp_path / "s.png")
    first, second = (axes.images[0].get_array() for axes in drawn["s.png"].axes)
    assert first.shape[:2] == (12, 9)
    image = x[5].reshape(channels, 3, 2).movedim(0, -1).squeeze(-1).numpy()
    np.testing.assert_allclose(first[4:7, 6:8], image)  # row 1, column 2, a pixel between images
    np.testing.assert_allclose(second[4:7, 6:8], 1 - image)


def test_the_latent_space_shows_every_datum_under_its_label(tmp_path: Path, drawn: dict) -> None:
    labels = torch.arange(40) % 10
    pictures.latent_space({"a": torch.randn(40, 5)}, labels, tmp_path / "z.png")
    read(tmp_path / "z.png")
    (axes,) = drawn["z.png"].axes
    assert [len(points.get_offsets()) for points in axes.collections] == [4] * 10
    assert [points.get_label() for points in axes.collections] == [str(i) for i in range(10)]
    colours = {tuple(points.get_facecolor()[0]) for points in axes.collections}
    assert len(colours) == 10


def test_principal_axes_are_those_of_the_covariance() -> None:
    points = torch.randn(500, 4) @ torch.diag(torch.tensor([1.0, 5.0, 0.1, 2.0]))
    plane, share = pictures.principal_axes(points)
    values = torch.linalg.eigvalsh(points.double().T.cov()).flip(0)
    np.testing.assert_allclose(plane.var(0).numpy(), values[:2].numpy(), rtol=1e-10)
    np.testing.assert_allclose(share, (values[:2] / values.sum()).numpy(), rtol=1e-10)
    flipped, _ = pictures.principal_axes(points.flip(0))
    torch.testing.assert_close(flipped, plane.flip(0))


def test_principal_axes_of_one_dimension_and_of_a_point() -> None:
    plane, share = pictures.principal_axes(torch.tensor([[1.0], [3.0]]))
    assert plane.shape == (2, 2)
    assert share == [1.0, 0.0]
    plane, share = pictures.principal_axes(torch.ones(3, 2))
    assert torch.equal(plane, torch.zeros(3, 2, dtype=torch.float64))
    assert share == [0.0, 0.0]


def test_a_grid_has_names_on_both_sides(tmp_path: Path, drawn: dict) -> None:
    rows = {"a": torch.rand(3, 6), "b": torch.rand(3, 6)}
    pictures.image_grid(rows, SHAPE, tmp_path / "g.png", "title", ["1", "2", "3"])
    read(tmp_path / "g.png")
    axes = drawn["g.png"].axes
    np.testing.assert_allclose(axes[4].images[0].get_array(), rows["b"][1].reshape(3, 2))
    assert [one.get_title() for one in axes[:3]] == ["1", "2", "3"]
    assert [axes[i].get_ylabel() for i in (0, 3)] == ["a", "b"]
    for bad in ({}, {"a": torch.rand(3, 6), "b": torch.rand(2, 6)}):
        with pytest.raises(ValueError, match="rows should be"):
            pictures.image_grid(bad, SHAPE, tmp_path / "bad.png", "title")
    with pytest.raises(ValueError, match="each of 2 columns"):
        pictures.image_grid(rows, SHAPE, tmp_path / "bad.png", "title", ["1", "2"])


def test_the_use_of_a_codebook_is_drawn_most_used_first(tmp_path: Path, drawn: dict) -> None:
    numbers = torch.tensor([[3, 3], [3, 0]])
    pictures.codebook_use({"a": numbers}, 4, tmp_path / "c.png")
    read(tmp_path / "c.png")
    line = drawn["c.png"].axes[0].lines[0]
    assert line.get_ydata().tolist() == [0.75, 0.25, 0, 0]
    perplexity = (0.75**0.75 * 0.25**0.25) ** -1
    assert line.get_label() == f"a: perplexity {perplexity:.1f} of 4"


@pytest.fixture
def linear() -> VAE:
    """A VAE whose posterior mean is 2 x and whose decoder's mean is z / 2."""
    encoder, decoder = torch.nn.Linear(3, 6), torch.nn.Linear(3, 3)
    with torch.no_grad():
        for module, gain in ((encoder, 2.0), (decoder, 0.5)):
            module.weight.zero_()
            module.weight[:3] = gain * torch.eye(3)
            module.bias.zero_()
    return VAE(StandardNormal(3), DiagonalNormal(encoder), Gaussian(decoder, scale=1.0))


def test_a_walk_between_two_data_is_straight(linear: VAE) -> None:
    first, second = torch.rand(2, 3), torch.rand(2, 3)
    walk = pictures.between(linear, first, second, num_steps=5)
    assert walk.shape == (2, 5, 3)
    for step, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        torch.testing.assert_close(walk[:, step], (1 - share) * first + share * second)
    with pytest.raises(ValueError, match=r"num_steps should be at least 2.*found 1"):
        pictures.between(linear, first, second, num_steps=1)
    with pytest.raises(ValueError, match="second should be of the shape"):
        pictures.between(linear, first, second[:1])


def test_a_walk_through_a_dimension_moves_no_other(linear: VAE) -> None:
    x = torch.rand(3)
    walk = pictures.through(linear, x, [2, 0], reach=1.0, num_steps=3)
    assert walk.shape == (2, 3, 3)
    for row, moved in enumerate((2, 0)):
        expected = x.repeat(3, 1)
        expected[:, moved] = torch.tensor([-0.5, 0, 0.5])
        torch.testing.assert_close(walk[row], expected)
    with pytest.raises(ValueError, match=r"dimensions should be between 0 and 2; found \[3\]"):
        pictures.through(linear, x, [3])


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    pictures.learning_curve({"a": history()}, tmp_path / "curve.png")
    assert dict(matplotlib.rcParams) == settings
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
