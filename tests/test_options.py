"""What the command line stands on: options, pairs, tables and diagnostics."""

from __future__ import annotations

import pytest
import torch

from pyrovae.benchmarks.diagnostics import active_units, posterior_means
from pyrovae.benchmarks.factories import FactoryError
from pyrovae.benchmarks.options import call, look_up, parse_options, resolved
from pyrovae.benchmarks.pairs import as_pair, build, find_device
from pyrovae.inference.tables import table, width

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ("a=null", None),
        ("a=[1, 2]", [1, 2]),
        ("a=text", "text"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ('a="1"', "1"),
    ],
)
def test_an_option_is_json_or_else_a_string(word: str, value: object) -> None:
    assert parse_options([word]) == {"a": value}


@pytest.mark.parametrize("words", [["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]])
def test_an_option_that_is_none(words: list[str]) -> None:
    with pytest.raises(FactoryError, match=r"key=value|twice"):
        parse_options(words)


def test_a_call_names_the_options_there_are() -> None:
    def factory(x, y=2, *, z=3):
        return x, y, z

    assert call("f", factory, 1, options={"z": 4}) == (1, 2, 4)
    with pytest.raises(FactoryError, match="'f' has no option 'w'; its options: y, z"):
        call("f", factory, 1, options={"w": 4})
    with pytest.raises(FactoryError, match="has no option 'x'"):  # it is taken
        call("f", factory, 1, options={"x": 4})
    assert call("f", lambda **k: k, options={"any": 1}) == {"any": 1}
    with pytest.raises(FactoryError, match="its options: none"):
        call("f", lambda x: x, 1, options={"any": 1})
    assert resolved(factory, {"z": 9}) == {"y": 2, "z": 9}


def test_faults_of_users_are_told_and_ours_are_not_hidden() -> None:
    def bug(x):
        raise KeyError("bug")

    with pytest.raises(FactoryError, match=r"'m:bug' raised KeyError: 'bug' \(PYROVAE_TRACEBACK"):
        call("m:bug", bug, 1)
    with pytest.raises(KeyError):
        call("bug", bug, 1)


def test_unknown_names_list_the_known_ones() -> None:
    told = r"unknown model 'va' \(did you mean 'vae'\?\); there are vae, .*conv-vae, and"
    with pytest.raises(FactoryError, match=told):
        build("va", {}, torch.rand(5, 4), 0)
    assert look_up("number", "math:sqrt", {})(4) == 2


@pytest.mark.parametrize("value", [3, (print,), (print, 3), "text", (print, print, print)])
def test_what_is_no_pair(value: object) -> None:
    with pytest.raises(FactoryError, match="model and guide, or a tuple"):
        as_pair(value)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", ""):
        with pytest.raises(ValueError, match=f"device should be auto, cpu or cuda; found '{name}'"):
            find_device(name)
    with pytest.raises(ValueError, match="'cuda:99' is not to be had here"):
        find_device("cuda:99")


def test_a_table_is_aligned() -> None:
    lines = table(("name", "k̂"), [("a", "1.25"), ("long name", "-")]).splitlines()
    assert lines[0] == "name          k̂"
    assert [width(line) for line in lines] == [15, 15, 15, 15]
    with pytest.raises(ValueError, match="should have 2 cells; found 1"):
        table(("a", "b"), [("c",)])


def test_active_units_are_those_whose_mean_moves() -> None:
    means = torch.zeros(1000, 4)
    means[:, 0] = torch.linspace(-2, 2, 1000)
    means[:, 1] = 5.0  # far away, but still
    means[::2, 2] = 0.21  # variance 0.011
    means[::2, 3] = 0.19  # variance 0.009
    assert active_units(means) == 2
    with pytest.raises(ValueError, match="N at least 2"):
        active_units(means[:1])


def test_posterior_means_do_not_depend_on_the_batches() -> None:
    import cli_toys

    vae = cli_toys.ours(torch.zeros(1, 8))
    x = torch.rand(10, 8)
    torch.testing.assert_close(posterior_means(vae.posterior, x, 3), vae.posterior(x).mean)
