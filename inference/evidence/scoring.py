r"""The frame that every estimator stands in: tiles of data, seeds, a journal, an Estimate.

An estimator says what it makes of one tile of data (:class:`Tile`) and how large a tile may be. The
frame does the rest: it checks data and programs, finds out how particles are drawn, moves data to
the device, seeds each tile, shows progress, keeps what is finished, and joins the results.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from tqdm.auto import tqdm

from ..compilation import Doubtful, tell
from ..frozen import freeze_guide
from ..particles import ParticlePlan, with_plan
from ..programs import Data, Program, check_count, num_data
from ..slicing import take
from .estimate import Estimate, concatenate, versions
from .fingerprint import digest_of, fingerprint
from .graphs import Graphs
from .journal import Journal
from .parts import Scored, Scores, Tile, fit_tails, join
from .scope import check_finite, check_plan, check_support, device_of, move, scoring_scope
from .tiles import Tiles

_BLOCK = 64  # data whose support is checked, and whose tails are fitted, in one go
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_HOW = ("memory", "progress", "checkpoint")  # settings that say how, and not what


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Settings that all estimators share, and the call.

    Args:
        seed: makes the estimate reproducible, bit for bit on a CPU; None draws one.
        memory: bytes that one tile may make; None suits the device.
        particles: how to draw many particles: "auto", "plate", "tile" or "loop".
        progress: show a progress bar.
        checkpoint: a file that keeps what is finished. A call that was interrupted, by whatever,
            goes on from there when it is made again with the same settings, programs and data; it
            is refused for others.
        compile: trace what is done for every tile once, compile and replay it: the same numbers but
            for rounding, sooner where there is much to do. What cannot be traced is run as it is,
            and a warning says why.
    """

    seed: int | None = 0
    memory: int | None = None
    particles: str = "auto"
    progress: bool = False
    checkpoint: str | Path | None = None
    compile: bool = False

    direction: ClassVar[str]
    bias_weight: ClassVar[float] = -0.5  # see Estimate

    def __post_init__(self) -> None:
        if self.memory is not None:
            check_count("memory", self.memory)
        seed = self.seed
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if seed is not None and not (whole and 0 <= seed < 2**64):
            raise ValueError(f"seed must be a whole number in [0, 2^64) or None, but is {seed!r}")
        if not isinstance(self.progress, bool):
            raise TypeError(f"progress must be True or False, but is {self.progress!r}")
        if not isinstance(self.compile, bool):
            raise TypeError(f"compile must be True or False, but is {self.compile!r}")
        if not isinstance(self.checkpoint, str | Path | None):
            raise TypeError(f"checkpoint must be a path or None, but is {self.checkpoint!r}")
        self._check()

    def __call__(
        self, model: Program, guide: Program | None, x: Data | DataLoader, *context: object
    ) -> Estimate:
        """Estimate log p(x) for every datum.

        Args:
            model: ``model(x, *context)``.
            guide: ``guide(x, *context)``.
            x: tensor, tuple of tensors, or a DataLoader whose items are the programs' arguments.
            context: what else both programs take. A tensor with one entry per datum is cut along
                with the data; one that all data share may have any length.

        Raises:
            ProgramError: the pair has no per-datum weights; names the site.
            ValueError: data that are empty, not finite, or out of a site's support.
            TypeError: x is no tensor, or the guide no program.
        """
        return estimate(self, model, self._proposal(guide), x, context)

    def _check(self) -> None:  # noqa: B027 - most estimators have settings to check, not all
        """Refuse settings that make no sense."""

    def _proposal(self, guide: Program | None) -> Program | None:
        """The guide that is used; None where the model's prior is."""
        if not callable(guide):
            raise TypeError(
                f"guide must be a Pyro program, but is {guide!r}: "
                "PriorMonteCarlo, and annealing from the prior, need none"
            )
        return guide

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """How many weights are averaged for a datum."""

    @abstractmethod
    def _sizes(self, few: Tile, size: int) -> Tiles:
        """Sizes of a tile, for ``size`` data in all; ``few`` holds some to measure on."""

    @abstractmethod
    def _score(self, tile: Tile) -> Scores:
        """What a tile gives."""


def estimate(
    estimator: Estimator,
    model: Program,
    guide: Program | None,
    x: Data | DataLoader,
    context: tuple,
) -> Estimate:
    """Run an estimator over data, or over the batches of a DataLoader."""
    batches = score(estimator, model, guide, x, context)
    return concatenate([_as_estimate(estimator, batch) for batch in batches])


def score(
    estimator: Estimator,
    model: Program,
    guide: Program | None,
    x: Data | DataLoader,
    context: tuple,
) -> list[Scored]:
    """What the tiles of each batch gave."""
    if not callable(model):
        raise TypeError(f"model must be a Pyro program, but is {model!r}")
    journal = Journal(estimator.checkpoint)
    given = estimator.seed
    kept = journal.seed(lambda: int(torch.randint(2**62, ())) if given is None else given)
    seed = kept if given is None else given
    if isinstance(x, DataLoader):
        if context:
            raise TypeError("with a DataLoader the context comes from its items, not beside it")
        if isinstance(x.sampler, _SHUFFLING):
            raise ValueError(
                "x must be a DataLoader with shuffle=False: its order is the estimate's"
            )
        batches: Iterable[tuple] = _Batches(x)
    else:
        batches = [(x, *context)]
    graphs = Graphs() if estimator.compile else None
    with journal:
        try:
            scored = _score_batches(estimator, model, guide, batches, seed, journal, graphs)
            if graphs is not None:
                with scoring_scope(model, guide):
                    graphs.settle()
        except Doubtful as error:
            if isinstance(x, DataLoader) and isinstance(x.dataset, IterableDataset):
                raise RuntimeError(
                    f"compile=True: {error}. What the DataLoader gave may have been scored wrong, "
                    "and it may not give it twice: begin again without compile"
                ) from error
            if estimator.checkpoint is not None:
                raise RuntimeError(
                    f"compile=True: {error}. What stands in {estimator.checkpoint} may be wrong: "
                    "delete it, and begin again without compile"
                ) from error
            tell(f"all is done again: {error}")
            scored = _score_batches(estimator, model, guide, batches, seed, journal, None)
            graphs = None
    if graphs is not None:
        graphs.gain.tell()
    if not scored:
        raise ValueError("x must hold at least one datum, but the DataLoader is empty")
    return scored


def _score_batches(
    estimator: Estimator,
    model: Program,
    guide: Program | None,
    batches: Iterable[tuple],
    seed: int,
    journal: Journal,
    graphs: Graphs | None,
) -> list[Scored]:
    draws = _Draws(seed, torch.Generator().manual_seed(seed))
    scored: list[Scored] = []
    first = 0
    for number, args in enumerate(batches):
        draws.first = first
        scored.append(_score_batch(estimator, model, guide, args, draws, journal, number, graphs))
        scored[-1].provenance["data"] = digest_of(args, first)
        first += num_data(args[0])
    return scored


@dataclass(frozen=True)
class _Batches:
    """The arguments that a DataLoader has, as often as they are asked for."""

    loader: DataLoader

    def __iter__(self) -> Iterator[tuple]:
        for item in self.loader:
            yield tuple(item) if isinstance(item, list | tuple) else (item,)


@dataclass
class _Draws:
    """Where the random numbers of a scored run come from: one seed for each tile.

    Attributes:
        first: how many data have been drawn for in batches before.
    """

    seed: int
    seeds: torch.Generator
    first: int = 0

    def next_tile(self) -> int:
        return int(torch.randint(2**62, (), generator=self.seeds))


def _score_batch(
    estimator: Estimator,
    model: Program,
    guide: Program | None,
    args: tuple,
    draws: _Draws,
    journal: Journal,
    number: int,
    graphs: Graphs | None,
) -> Scored:
    num_data(args[0])
    check_finite(args)
    before = draws.seeds.get_state()
    with scoring_scope(model, guide) as manual_seed:
        manual_seed(draws.seed)
        args = move(args, device_of(model, guide))

        def use(plan: ParticlePlan) -> Scored:
            draws.seeds.set_state(before)
            return _score_as_planned(
                estimator, model, guide, args, draws, plan, journal, number, manual_seed, graphs
            )

        return with_plan(model, guide, args, estimator.particles, use)


def _score_as_planned(
    estimator: Estimator,
    model: Program,
    guide: Program | None,
    args: tuple,
    draws: _Draws,
    plan: ParticlePlan,
    journal: Journal,
    number: int,
    manual_seed: Callable[[int], None],
    graphs: Graphs | None,
) -> Scored:
    began = time.perf_counter()
    check_plan(plan)
    size = num_data(args[0])

    def tile(rows: slice, sizes: Tiles, **more: Any) -> Tile:
        part = take(args, rows) if plan.sliceable else args
        frozen = None if guide is None else freeze_guide(guide, part, plan)
        return Tile(model, frozen, part, plan, sizes, rows, draws.first, **more)

    few = tile(slice(0, 1), Tiles(1, 1))
    replays = graphs and graphs.of(plan)
    spent = graphs.gain.cost if graphs else 0.0
    sizes = estimator._sizes(few, size)
    settings = {one.name: getattr(estimator, one.name) for one in fields(estimator)}
    asked = {name: value for name, value in settings.items() if name not in _HOW}
    kept_batch = journal.batch(
        number,
        sizes,
        lambda: fingerprint(type(estimator).__name__, asked, model, guide, args),
    )
    scores: list[Scores] = []
    khat: list[Tensor] = []
    fresh = 0.0
    block = max(sizes.data, _BLOCK)
    with tqdm(
        total=size,
        disable=not estimator.progress,
        bar_format="{percentage:3.0f}%|{bar}| {n:.0f}/{total} data [{elapsed}<{remaining}]",
    ) as bar:
        for start in range(0, size, block):
            stop = min(start + block, size)
            check_support(model, guide, take(args, slice(start, stop)), plan)
            for rows in sizes.data_slices(start, stop):
                seed = draws.next_tile()
                if (kept := kept_batch.finished(len(scores))) is not None:
                    scores.append(Scores(**kept))
                else:
                    manual_seed(seed)
                    shown = _share_of(bar, rows)
                    keeper = kept_batch.keeper(len(scores))
                    begun = time.perf_counter()
                    more = {"replays": replays, "keeper": keeper, "advance": shown}
                    made = estimator._score(tile(rows, sizes, **more))
                    made = replace(made, seconds=time.perf_counter() - begun)
                    fresh += made.seconds
                    kept_batch.add(len(scores), dict(vars(made)))
                    scores.append(made)
                bar.update(rows.stop - bar.n)
            khat += fit_tails(scores[len(khat) :])
    return Scored(
        scores,
        khat,
        {
            "estimator": type(estimator).__name__,
            "settings": _plain({n: v for n, v in settings.items() if n != "checkpoint"}),
            "seed": draws.seed,
            "unreached": _unreached(estimator, guide, plan),
            "guide_way": plan.guide_way,
            "model_way": plan.model_way,
            "tile": asdict(sizes),
            "device": str(plan.layout.device or "cpu"),
            "versions": versions(),
            "evaluations": max(one.num_evaluations for one in scores),
            "gradients": max(one.num_gradients for one in scores),
            # what an interrupted call had spent on its tiles counts too
            "compile_seconds": graphs.gain.cost - spent if graphs else 0.0,
            "seconds": time.perf_counter() - began - fresh + sum(one.seconds for one in scores),
        },
    )


def _unreached(estimator: Estimator, guide: Program | None, plan: ParticlePlan) -> list[str]:
    """Latents of which the proposal cannot draw all values: no weight tells what it misses."""
    if guide is None or getattr(estimator, "defensive", None):
        return []
    return sorted(name for name, latent in plan.layout.latents.items() if not latent.reached)


def _as_estimate(estimator: Estimator, batch: Scored) -> Estimate:
    scores = batch.scores
    names = [name for name in scores[0].fields if name not in Estimate.CORE]
    return Estimate(
        **{name: join(scores, name) for name in Estimate.CORE if name != "khat"},
        khat=torch.cat(batch.khat).cpu(),
        direction=estimator.direction,
        num_samples=estimator.num_samples,
        diagnostics={name: join(scores, name) for name in names},
        bias_weight=estimator.bias_weight,
        provenance=batch.provenance,
    )


def _share_of(bar: tqdm, rows: slice) -> Callable[[float], None]:
    return lambda share: bar.update(rows.start + share * (rows.stop - rows.start) - bar.n)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in words that JSON knows, the same in every process."""
    known = (int, float, bool, str, type(None))
    return {
        name: value
        if isinstance(value, known)
        else repr(value)
        if is_dataclass(value)
        else getattr(value, "__qualname__", type(value).__qualname__)
        for name, value in settings.items()
    }
