"""What every test stands on: the folder of real data, an empty param store, a fixed seed."""

from __future__ import annotations

import os
from pathlib import Path

import pyro
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Point ``PYROVAE_DATA`` at the copy of the data beside the checkout, where there is one.

    The variable, not a fixture, so that command lines run in a subprocess see it too.
    """
    if not os.environ.get("PYROVAE_DATA") and SHARED_DATA.is_dir():
        os.environ["PYROVAE_DATA"] = str(SHARED_DATA)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` on a machine without one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def one_thread():
    """Tensors this small gain nothing from threads, and lose a lot on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_pyro():
    """Each test starts from seed 0 and an empty param store, whatever ran before it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
