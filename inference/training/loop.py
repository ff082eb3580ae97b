r"""Stochastic variational inference on a program pair.

Each step takes a batch B, estimates the objective and its gradient, and moves all parameters,
theta of the model and phi of the guide, at once:

.. math:: \hat{\mathcal{L}} = \frac{1}{|B|} \sum_{n \in B} \mathcal{L}(x_n; \theta, \phi),
          \qquad (\theta, \phi) \leftarrow \mathrm{Adam}(\nabla_{\theta, \phi}
          (-\hat{\mathcal{L}})).

Hoffman, Blei, Wang and Paisley, *Stochastic variational inference*, 2013. Kingma and Welling,
*Auto-encoding variational Bayes*, 2014.
"""

from __future__ import annotations

import math
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..compilation import CAPTURING
from ..modules import Buffers, Modules, mode
from ..objectives import MonteCarloObjective, without_penalties
from ..rng import capture, derive, forked
from . import checkpoint as files
from .board import Board
from .collapse import PosteriorCollapse, collapsed, explain
from .data import LoaderData, TensorData, make_data, make_validation
from .diagnosis import NonFiniteLoss, Where
from .history import History
from .interrupt import Interrupt, TrainingInterrupted
from .objective import JIT, Loss, trace_pair
from .optimization import Optimization
from .parallel import Processes, Together
from .parallel.together import HINT
from .parameters import Parameters
from .settings import Settings, check_call, find_device
from .state import Position, State, compare, describe, versions
from .steps import FAILURES, Steps, find_cause, note_context
from .warmup import beta

T = TypeVar("T")


class Training:
    """One call of :func:`fit`: its parts, checked and built in order, and its loop."""

    def __init__(
        self,
        settings: Settings,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        x: Any,
        context: tuple[Any, ...],
        objective: Any,
        validation: Any,
        device: torch.device | str | None,
        group: Any,
    ) -> None:
        check_call(settings, model, guide, x, objective, validation, group)
        self.settings = settings
        self.processes = None if group is None else Processes(group)
        self.speaks = self.processes is None or self.processes.first
        modules = Modules(model, guide)
        bare = without_penalties(objective)
        ours = bare if isinstance(bare, MonteCarloObjective) else None
        if ours is not None and ours.network is not None:
            modules.owned["baseline"] = ours.network
        self.parameters = Parameters(modules)
        self.device = find_device(device, self.parameters.device(), x)
        self.saved = self._by_first(self._read_checkpoint)
        self.data = make_data("x", x, context, settings.batch_size, self.device)
        self.validation = (
            None
            if validation is None
            else make_validation(validation, self.data, settings.batch_size, self.device)
        )
        self.seed = self._by_first(self._choose_seed)
        if isinstance(objective, JIT) and isinstance(self.data, TensorData) and self.data.ragged:
            raise ValueError(
                f"batch_size: must divide the number of data, {self.data.num_data}, for a compiled "
                f"objective, which is compiled for one size, but is {self.data.batch_size}"
            )
        self.loss = Loss(
            objective, model, guide, self.parameters, self.device, self.seed, settings.compile
        )
        if settings.warm_up:
            self.loss.check_warm_up()
        if ours is not None:
            ours.reset()  # the run is decided by its arguments, or by its checkpoint
        self.board: Board | None = None
        self.interrupt = Interrupt(echo=0.0 if self.processes is None else 5.0)

    def _by_first(self, function: Callable[[], T]) -> T:
        return function() if self.processes is None else self.processes.by_first(function)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.settings.checkpoint
        if path is None:
            return None
        files.check_folder(path)
        if not path.exists():
            return None
        if not self.settings.resume:
            raise FileExistsError(
                f"checkpoint: {path} exists; pass resume=True to go on from it, or another path"
            )
        return files.load(path)

    def _choose_seed(self) -> int:
        if self.settings.seed is not None:
            return self.settings.seed
        if self.saved is not None:
            return int(self.saved["fingerprint"]["seed"])
        return int(torch.randint(2**63 - 1, ()))

    def run(self) -> History:
        """Train, and leave everything but the parameters as it was."""
        check = bool(dist.is_validation_enabled())
        modules = self.parameters.modules
        with ExitStack() as stack:
            stack.enter_context(forked(self.device, derive(self.seed, "noise")))
            with pyro.validation_enabled(check):
                if self._inspect(local=modules.local and not self.loss.jit):
                    stack.enter_context(pyro.settings.context(module_local_params=True))
            self.optimization = Optimization(
                self.parameters,
                self.settings.optimizer,
                self.settings.schedule,
                self.settings.learning_rate,
                self.settings.clip,
                captured=self.settings.compile and self.device.type in CAPTURING,
            )
            if self.optimization.plateau and self.validation is None:
                raise ValueError("schedule: ReduceLROnPlateau needs validation data, but has none")
            ids = self.parameters.ids
            self.roots = modules.roots(ids)
            self.buffers = Buffers(modules.buffers(ids), copy_all=self.settings.compile)
            self.together = self._share_out()
            self.steps = Steps(self.loss, self.optimization, self.buffers, self.together)
            stack.callback(self.optimization.zero_grad)
            stack.callback(self.loss.end_warm_up)
            stack.enter_context(mode(self.roots, True))
            self._begin()
            if self.settings.tensorboard is not None and self.speaks:
                self.board = Board(self.settings.tensorboard, len(self.state.history))
                stack.callback(self.board.close)
            stack.enter_context(self.interrupt)
            with self._bar() as bar:
                while self.state.position.epoch <= self.settings.epochs and not (
                    self.state.history.stopped_early
                ):
                    self._epoch(bar, check)
                    check = False  # every batch has been seen once; checks cost as much as steps
            if self.settings.patience is not None and self.state.best:
                self.state.assign(self.state.best)
            self._look_for_collapse()
        if self.loss.compiled is not None:
            self.state.history.compile_seconds = self.loss.compiled.gain.cost
            self.loss.compiled.gain.tell()
        return self.state.history

    def _share_out(self) -> Together | None:
        """What several processes need to work on one batch, if there are several."""
        if self.processes is None:
            return None
        assert isinstance(self.data, TensorData)
        assert self.validation is None or isinstance(self.validation, TensorData)
        x = self.data.x if isinstance(self.data.x, tuple) else (self.data.x,)
        context = [c for c in self.data.context if isinstance(c, Tensor)]
        self.processes.check_same("the data", [*x, *context], HINT)
        tensors = self.parameters.tensors().values()
        self.processes.check_same("the parameters", tensors, HINT)
        return Together(
            self.processes,
            self.loss,
            self.data,
            self.validation,
            self.buffers,
            lambda: int(self.interrupt.requested or 0),
        )

    @property
    def _asked(self) -> signal.Signals | None:
        """The signal that stops the run; among several processes, once all know of it."""
        if self.together is None:
            return self.interrupt.requested
        return signal.Signals(self.together.stop) if self.together.stop else None

    def _inspect(self, local: bool) -> bool:
        """Find the parameters by running the programs on the first batch.

        With ``local``, Pyro's store is left out of it, so that programs may skip ``pyro.module``.
        Returns whether that worked: a PyroModule that hides somewhere, say in the objective,
        cannot run so.
        """
        if isinstance(self.data, LoaderData):
            args, n, rows = self.data.peek(derive(self.seed, "inspection"))
        else:
            args, n, rows = next(self.data.batches(self.settings.transform, self.seed, epoch=1))
        self.few = args, n
        setting = local or bool(pyro.settings.get("module_local_params"))
        try:
            with pyro.settings.context(module_local_params=setting):
                self.loss.inspect(args, n)
        except AttributeError as error:
            if local and error.name == "param_state":  # what such a PyroModule lacks
                return self._inspect(local=False)
            raise
        except FAILURES as error:
            with self.loss.quiet():
                cause = find_cause(error, self.loss, "x", args, Where(1, 1, rows))
            if cause is error:
                note_context(error, self.data)
                raise
            raise cause from error
        found = self.parameters.device()
        if found != self.device:
            raise ValueError(f"device: parameters are on {found}, but the data on {self.device}")
        return local

    def _look_for_collapse(self) -> None:
        """Say so where a latent carries nothing in the end."""
        args, n = self.few
        with self.loss.quiet(), torch.no_grad():
            traces = trace_pair(self.loss.model, self.loss.guide, args)
        history = self.state.history
        history.collapsed = collapsed(*traces, n)
        if history.collapsed and self.speaks:
            warnings.warn(explain(history.collapsed, len(history)), PosteriorCollapse, stacklevel=4)

    def _begin(self) -> None:
        """Take up the checkpoint, or write the first one: a run killed at once can be resumed."""
        path = self.settings.checkpoint
        self.fingerprint = describe(
            self.settings, self.seed, self.data, self.validation, self.loss, self.optimization
        )
        history = History({**self.fingerprint, **versions()})
        self.state = State(
            self.parameters, self.buffers, self.optimization, self.data, history, self.loss
        )
        if path is None:
            return
        if self.saved is None:
            self._by_first(lambda: self.state.save(path, self.fingerprint))
            return
        compare(path, self.saved["fingerprint"], self.fingerprint)
        done = self.saved["position"]["epoch"] - 1
        if done > self.settings.epochs:
            raise ValueError(
                f"epochs: must be at least {done}, as many as are done in {path}, "
                f"but is {self.settings.epochs}"
            )
        self.state.load(path, self.saved)
        self.saved = None

    def _bar(self) -> Any:
        batches, position = self.data.num_batches, self.state.position
        return tqdm(
            total=None if batches is None else batches * self.settings.epochs,
            initial=(position.epoch - 1) * (batches or 0) + position.batch,
            unit="step",
            # None is silent where there is no terminal; notebooks have none, but show bars
            disable=("ipykernel" not in sys.modules and None)
            if self.settings.progress and self.speaks
            else True,
        )

    def _epoch(self, bar: Any, check: bool) -> None:
        """Train an epoch, or what is left of it, validate, and record."""
        settings, state, position = self.settings, self.state, self.state.position
        weight = beta(position.epoch, settings.warm_up)
        bar.set_description(f"epoch {position.epoch}/{settings.epochs}", refresh=False)
        self._started = time.perf_counter()
        if self.loss.compiled is not None:
            self.loss.compiled.epoch = position.epoch
        with pyro.validation_enabled(check):
            batches = self.data.batches(
                settings.transform, self.seed, position.epoch, position.batch
            )
            for args, n, rows in batches:
                where = Where(position.epoch, position.batch + 1, rows)
                try:
                    self._add(*self.steps.train(args, n, weight, where))
                except NonFiniteLoss as error:
                    self._save_last_good(error)
                    raise
                position.batch += 1
                position.data += n
                bar.update()
                self._stop_if_asked()
            if not position.data:
                raise ValueError("x: must hold at least one batch, but the loader gave none")
            self._settle()
            elbo = self._validate()
        self._stop_if_asked()
        row = {
            "loss": position.loss / position.data if self.loss.has_value else math.nan,
            "validation_elbo": elbo,
            "beta": weight,
            "learning_rate": self.optimization.learning_rate,
            "gradient_norm": position.norm / position.batch,
            "seconds": position.seconds + time.perf_counter() - self._started,
        }
        state.history.append(**row)
        if self.board is not None:
            self.board.add(position.epoch, row)
        shown = {"loss": state.history.loss[-1], "validation ELBO": elbo}
        numbers = ", ".join(f"{name} {v:.2f}" for name, v in shown.items() if not math.isnan(v))
        bar.set_postfix_str(f"{numbers} nats per datum")
        self.optimization.end_epoch(-elbo)
        if weight == 1 and not self.loss.is_warming_up and elbo > state.best_elbo:
            state.note_best(elbo, keep=settings.patience is not None)
        best = state.history.best_epoch
        if settings.patience is not None and best is not None:
            state.history.stopped_early = position.epoch - best >= settings.patience
        state.position = Position(position.epoch + 1)
        last = position.epoch == settings.epochs or state.history.stopped_early
        if self.processes is not None:
            generators = capture(self.device).values()
            self.processes.check_same("the state", [*state.values().values(), *generators], HINT)
        due = last or position.epoch % settings.checkpoint_every == 0
        if settings.checkpoint and due and self.speaks:
            state.try_save(settings.checkpoint, self.fingerprint)
        self._started = time.perf_counter()
        self._stop_if_asked()

    def _add(self, loss: float, norm: float) -> None:
        self.state.position.loss += loss
        self.state.position.norm += norm

    def _settle(self) -> None:
        """Look at the steps that were taken without a look."""
        try:
            self._add(*self.steps.settle())
        except NonFiniteLoss as error:
            self._save_last_good(error)
            raise

    def _save_last_good(self, error: NonFiniteLoss) -> None:
        # a device that is not waited for has been sent further, and has moved nothing there
        self.state.position.batch = error.batch - 1
        self._save_unfinished()

    def _validate(self) -> float:
        """The ELBO of the validation data, nats per datum, with the same draws in every epoch."""
        if self.validation is None:
            return math.nan
        total, count = 0.0, 0
        with forked(self.device, derive(self.seed, "validation")), mode(self.roots, False):
            for number, (args, n, rows) in enumerate(self.validation.in_order()):
                where = Where(self.state.position.epoch, number + 1, rows)
                total -= self.steps.evaluate(args, n, where) * n
                count += n
                if self._asked:
                    break  # the caller stops, once the training's random numbers are back
        if not count:
            raise ValueError("validation: must hold at least one batch, but the loader gave none")
        return total / count

    def _save_unfinished(self) -> OSError | None:
        """Save in the middle of an epoch, if there is where to."""
        self.state.position.seconds += time.perf_counter() - self._started
        path = self.settings.checkpoint
        return self.state.try_save(path, self.fingerprint) if path and self.speaks else None

    def _stop_if_asked(self) -> None:
        """After Ctrl-C: save, and say how to go on."""
        asked = self._asked
        if not asked:
            return
        self._settle()
        position, path = self.state.position, self.settings.checkpoint
        where = f"training stopped after batch {position.batch} of epoch {position.epoch}"
        if path is None:
            raise TrainingInterrupted(
                f"{where}. No checkpoint was asked for, so nothing was saved; the parameters are "
                "those after the last step",
                asked,
            )
        if failure := self._save_unfinished():
            raise TrainingInterrupted(f"{where}. Its state could not be saved: {failure}", asked)
        raise TrainingInterrupted(
            f"{where}. Its state is in {path}; to go on, call fit in the same way with resume=True",
            asked,
        )
