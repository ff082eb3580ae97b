"""What --dry-run forecasts, by a clock that only the toys move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyrovae.benchmarks.bench import Bench, check, cost, read_study
from pyrovae.benchmarks.bench.command import preview
from pyrovae.inference import Estimate, ImportanceSampling

STUDY = """\
seeds = [0, 1]
[training]
epochs = 3
batch_size = 20
[data.points]
name = "study_toys:data"
[model.normal]
name = "study_toys:normal"
[objective.ELBO]
[estimator.once]
name = "test_bench_cost:ticking"
"""


class Clock:
    """Says what time it is."""

    now = 0.0


def ticking(num_steps: int = 1, least: int = 1, seed: int = 0) -> Callable[..., Estimate]:
    """Takes 0.5 seconds and 0.1 for each datum, as often as there are steps."""
    if num_steps < least:
        raise ValueError(f"num_steps: must be at least {least}")

    def estimate(model: Any, guide: Any, x: Any) -> Estimate:
        Clock.now += num_steps * (0.5 + 0.1 * len(x))
        return ImportanceSampling(num_samples=5)(model, guide, x)

    return estimate


@pytest.fixture
def forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def found(more: str = "") -> list[cost.Forecast]:
        file = tmp_path / "cost.toml"
        file.write_text(STUDY + more)
        cells = check(read_study(file))
        clock = SimpleNamespace(perf_counter=lambda: Clock.now)
        monkeypatch.setattr(cost, "time", clock)
        return cost.forecast(cells)

    return found


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ("", 0.5 + 0.1 * 20),
        ("subset = 10\n", 0.5 + 0.1 * 10),
        ("parts = 4\n", 4 * 0.5 + 0.1 * 20 + 3 * cost.START),
        ("options = {num_steps = 80}\n", 80 * (0.5 + 0.1 * 20)),
        ("options = {num_steps = 80, least = 60}\n", 80 * (0.5 + 0.1 * 20)),
        ("options = {num_steps = 30}\n", 30 * (0.5 + 0.1 * 20)),
    ],
)
def test_an_estimate_is_what_it_takes_once_and_for_each_datum(more, seconds, forecast) -> None:
    first, second = forecast(more)
    assert first.estimates == pytest.approx(cost.START + seconds)
    assert second.estimates == first.estimates, "seeds are alike"
    assert first.training > cost.START
    assert first.seconds == first.training + first.estimates


def test_what_is_alike_is_timed_once(forecast) -> None:
    before = Clock.now
    more = '[estimator.long]\nname = "test_bench_cost:ticking"\noptions = {num_steps = %d}\n'
    (first, _) = forecast("options = {num_steps = 400}\n" + more % 800)
    each = 0.5 + 0.1 * 20
    assert first.estimates == pytest.approx(2 * cost.START + 1200 * each)
    # on one datum twice and on eight, with forty steps
    assert Clock.now - before == pytest.approx(40 * (3 * 0.5 + 0.1 * 10))


def test_what_fails_is_told_and_the_rest_is_forecast(forecast) -> None:
    more = '[estimator.broken]\nname = "study_toys:broken"\n'
    first, second = forecast(more)
    assert first.estimates == pytest.approx(2 * cost.START + 0.5 + 0.1 * 20)
    assert first.fails == ("broken: ArithmeticError: this estimator is out of order",)
    assert second.fails == first.fails


def test_the_preview_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cost.toml"
    file.write_text(STUDY)
    said: list[str] = []
    preview(Bench(str(file), tmp_path / "out", processes=2), said.append)
    assert said[0] == "cost: 2 cells, 2 estimates"
    assert said[1].count("to do") == 2
    assert said[2].startswith("to do: at most about ")
    assert said[2].endswith(" with 2")
    assert not (tmp_path / "out").exists()
