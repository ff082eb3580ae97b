"""What every test stands on: the folder of real data, an empty param store, a fixed seed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyro
import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Point ``PYROVAE_DATA`` at the copy of the data beside the checkout, and let Ctrl-C arrive.

    The variable, not a fixture, so that command lines run in a subprocess see it too.
    """
    if not os.environ.get("PYROVAE_DATA") and SHARED_DATA.is_dir():
        os.environ["PYROVAE_DATA"] = str(SHARED_DATA)
    # a shell that starts the tests in the background has Ctrl-C ignored, by children too
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of the test's own, for what a command writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROVAE_TRACEBACK", raising=False)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training."""
    from pyrovae.benchmarks import training

    monkeypatch.setattr(training, "learning_curve", lambda histories, path: path.write_bytes(b""))


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's settings or cache, or sends local requests through a proxy."""
    from pyrovae.benchmarks.datasets import fetch

    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    cache = tmp_path / "cache"
    monkeypatch.setattr(fetch, "cache_folder", lambda: cache)
    return cache
