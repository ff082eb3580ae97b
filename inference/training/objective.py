r"""Any ``pyro.infer.ELBO`` as a loss in nats per datum, with its gradients.

An objective gives an estimate of :math:`-\sum_n \mathcal{L}(x_n)` over the data it believes it
has: the batch, or, with ``pyro.plate("data", N, subsample_size=B)``, all N of them, by weighting
each term with N / B. Dividing by the size that the data plate claims turns either into nats per
datum, which is what is minimised and reported: learning rate, weight decay and clipping then mean
the same at every batch size.

Where the objective has a differentiable loss, that is differentiated. Otherwise its
``loss_and_grads`` is called; some of Pyro's then look for a ``pyro.param`` statement in the trace
and compute no gradient without one, so programs that make none (modules need none) are given one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro.distributions as pyro_dist
import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
)
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..compilation import CompiledGradients
from ..modules import unnoticed
from ..objectives import MonteCarloObjective, Penalised, without_penalties
from ..programs import Program
from ..rng import capture, derive, restore
from ..spaces import refuse_other_space
from .parameters import MARKER, Parameters
from .warmup import weighted

SUMS_NOTHING = (Trace_ELBO, TraceGraph_ELBO, RenyiELBO)
JIT = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


def trace_pair(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[Trace, Trace]:
    """Traces of one run: the model's, on the latents of the guide's."""
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, Messenger):  # an effect-based guide runs its own model
        guide(*args)
        model_trace, guide_trace = unwrapped.get_traces()
        return model_trace, guide_trace
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return model_trace, guide_trace


def claimed_size(model_trace: Trace, guide_trace: Trace, num_data: int) -> float:
    """How many data a loss on this batch stands for, scales of the whole program included.

    The data plate is the one called ``data``, or else the outermost of the batch's size. Without
    one, the scale of the observed sites decides.
    """
    sites = [
        site
        for trace in (model_trace, guide_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
    ]
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    scales = []
    for site in sites:
        scale = site["scale"]
        if isinstance(scale, Tensor):
            if scale.numel() != 1:
                continue
            scale = scale.item()
        for frame in site["cond_indep_stack"]:
            if frame.size > 0 and frame.full_size:
                scale = scale * frame.size / frame.full_size
        scales.append((scale, site["is_observed"]))
    # A scale on every site alike (1 / N, 1 / pixels) is a unit, and is taken out of the report.
    values = [scale for scale, _ in scales]
    common = values[0] if values and math.isclose(min(values), max(values)) else 1.0

    named = [frame for frame in frames if frame.name == "data"]
    sized = [frame for frame in frames if num_data in (frame.size, frame.full_size)]
    if plates := named or sized:
        frame = plates[0]
        full = frame.full_size or frame.size
        return common * (full if full > 0 else num_data)  # a plate without a size has -1
    observed = {scale for scale, is_observed in scales if is_observed}
    return num_data * (observed.pop() if len(observed) == 1 else common)


class Loss:
    """The objective of a program pair, in nats per datum.

    Attributes:
        differentiable: whether the objective's differentiable loss is used.
        has_value: whether the objective has a value at all (the tail-adaptive one only has
            gradients). If not, the loss is given as 0 and Trace_ELBO serves for validation; so it
            does for an upper bound.
        newcomers: parameters that programs created since the caller last emptied it.
        norm: over the gradients that were set last, where they came with one.
        watch: is entered while the objective runs the programs.
    """

    def __init__(
        self,
        objective: Any,
        model: Program,
        guide: Program,
        parameters: Parameters,
        device: torch.device,
        seed: int,
        compile: bool = False,
    ) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.parameters = parameters
        self.device, self.seed = device, seed
        self.jit = isinstance(objective, JIT)
        bare = without_penalties(objective)
        self.ours = bare if isinstance(bare, MonteCarloObjective) else None
        self.differentiable = False
        self.has_value = True
        self.newcomers: dict[str, Tensor] = {}
        self._sizes: dict[int, float] = {}
        self.compiled = (
            CompiledGradients(self._traced_loss, parameters.modules, device) if compile else None
        )
        self.by_whole_steps = False
        self.norm: Tensor | None = None
        self.watch: AbstractContextManager[Any] = nullcontext()
        self._weighted: tuple[float, tuple[Program, Program]] = (1.0, (model, guide))
        self._marked = False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Run the programs without leaving a mark: generators, modes and buffers stay."""
        modules = self.parameters.modules  # all within reach: which are trained is not known yet
        state = self.state()
        seed = derive(self.seed, "inspection")
        with unnoticed(modules, self.device, seed, training=False), self.parameters:
            try:
                yield
            finally:
                self.load_state(state)

    def state(self) -> dict[str, Any]:
        """What the objective itself has learned, and what is to be compiled."""
        state = {} if self.ours is None else self.ours.state_dict()
        return state if self.compiled is None else state | {"seen": dict(self.compiled.seen)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        if self.compiled is not None:
            self.compiled.seen = dict(state.get("seen", {}))
        if self.ours is not None:
            self.ours.load_state_dict(state)

    @property
    def is_warming_up(self) -> bool:
        """Whether the objective has a warm-up of its own, and it is not over."""
        return self.ours is not None and self.ours.is_warming_up

    def inspect(self, args: tuple[Any, ...], num_data: int) -> None:
        """Run the pair once to find its parameters, and how the objective gives gradients."""
        parameters = self.parameters
        parameters.intercept = not self.jit
        with self.quiet(), torch.no_grad():
            traces = trace_pair(self.model, self.guide, args)
        self._check_latents(*traces)
        self._sizes[num_data] = claimed_size(*traces, num_data)
        parameters.update()
        if not parameters.trainable:
            frozen = f"; the {len(parameters.frozen)} found are frozen" if parameters.frozen else ""
            raise ValueError(
                "model, guide: must have parameters to train, but have none"
                f"{frozen}. Pass bound methods of a module, or use pyro.param or pyro.module"
            )
        self._marked = parameters.statements == 0
        if self.jit and self._marked:
            raise ValueError(
                f"objective: {type(self.objective).__name__} compiles programs that name their "
                "parameters by pyro.param or pyro.module, but model and guide name none"
            )
        if not self.jit and hasattr(self.objective, "differentiable_loss"):
            with self.quiet():
                try:
                    self.objective.differentiable_loss(self.model, self.guide, *args)
                    self.differentiable = True
                except NotImplementedError:
                    self.differentiable = False
        with self.quiet(), torch.no_grad():
            try:
                self.objective.loss(self.model, self.guide, *args)
            except NotImplementedError:
                self.has_value = False
        parameters.update()

    def _check_latents(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse what an objective would take for something else, and say nothing."""
        sampled = {
            name: site
            for name, site in model_trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        }
        for name, site in sampled.items():
            if name in guide_trace.nodes:
                refuse_other_space(name, guide_trace.nodes[name]["fn"], site["fn"])
        self._check_sums(sampled, guide_trace)
        if sampled and not any(
            site["type"] == "sample" and site["is_observed"] for site in model_trace.nodes.values()
        ):
            raise ValueError(
                "model: must observe data, but has no site with obs=, nor a pyro.factor (are model "
                "and guide swapped?)"
            )
        for name, site in guide_trace.nodes.items():
            asks = site["type"] == "sample" and hasattr(site["fn"], "penalty")
            if asks and not isinstance(self.objective, Penalised):
                warnings.warn(
                    f"objective: leaves out what the guide asks for besides the bound at '{name}' "
                    f"({type(site['fn']).__name__}): wrap it, Penalised(...)",
                    stacklevel=6,
                )

    def _check_sums(self, sampled: dict[str, Any], guide_trace: Trace) -> None:
        """Refuse an objective that would draw what the programs ask to be summed out."""
        if not isinstance(without_penalties(self.objective), SUMS_NOTHING):
            return
        guides = {n: s for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
        for name, site in (sampled | guides).items():
            if site["infer"].get("enumerate") == "parallel" and not site["is_observed"]:
                raise ValueError(
                    f"objective: must sum over latent '{name}', which is marked for enumeration, "
                    f"but {type(self.objective).__name__} would draw it: take "
                    "TraceEnum_ELBO(max_plate_nesting=1), or an objective of pyrovae.inference"
                )

    def size(self, args: tuple[Any, ...], num_data: int) -> float:
        """What to divide a loss on ``num_data`` data by: found once for each batch size."""
        if num_data not in self._sizes:
            with self.quiet(), torch.no_grad():
                traces = trace_pair(self.model, self.guide, args)
            self._sizes[num_data] = claimed_size(*traces, num_data)
        return self._sizes[num_data]

    def check_warm_up(self) -> None:
        """Refuse a warm-up of the KL where the objective has none."""
        if self.ours is not None:
            self.ours.check_kl_term("warm_up")

    def end_warm_up(self) -> None:
        """Leave the objective without the weight of the last epoch."""
        if self.ours is not None:
            self.ours.kl_factor = 1.0

    def _pair(self, weight: float) -> tuple[Program, Program]:
        if self.ours is not None:
            self.ours.kl_factor = weight
        elif self._weighted[0] != weight:
            pair = (self.model, self.guide)
            self._weighted = (weight, pair if weight == 1 else weighted(*pair, weight))
        return self._weighted[1]

    def gradients(self, args: tuple[Any, ...], num_data: int, weight: float) -> Tensor:
        """Set the parameters' gradients on a batch; return its loss, a scalar, nats per datum."""
        size = self.size(args, num_data)
        self.norm = None
        if not self.by_whole_steps:
            found = self.compiled_gradients(args, size, weight)
            if found is not None:
                assert self.compiled is not None
                self.norm = self.compiled.norm
                return found
        model, guide = self._pair(weight)
        if self.differentiable:
            with self.parameters, self.watch:
                loss = self.objective.differentiable_loss(model, guide, *args) / size
            self._take_up()
            if not loss.requires_grad:
                raise self._no_gradient()
            loss.backward()
            return loss.detach() if self.has_value else torch.zeros_like(loss)
        with self.parameters, self.watch:
            value = self.objective.loss_and_grads(
                _marked(model) if self._marked else model, guide, *args
            )
        self._take_up()
        tensors = self.parameters.trainable.values()
        gradients = [p.grad for p in tensors if p.grad is not None]
        if not gradients:
            raise self._no_gradient()
        torch._foreach_mul_(gradients, 1 / size)
        return _first(value, gradients[0]) / size

    def tensors(self) -> list[Tensor]:
        """What is trained."""
        return list(self.parameters.trainable.values())

    def _may_be_compiled(self) -> bool:
        """Whether a graph could stand for a step: it repeats what does not change from step to step
        on its own, as a warm-up of the objective and moving averages do."""
        if self.compiled is None or self.compiled.reason:
            return False
        if not self.differentiable:
            self.compiled.give_up(
                f"{type(self.objective).__name__} sets gradients itself, and has no loss to trace"
            )
            return False
        return self.ours is None or not (self.ours.is_warming_up or self.ours._memory)

    def compiled_gradients(
        self, args: tuple[Any, ...], size: float, weight: float
    ) -> Tensor | None:
        """As :meth:`gradients`, by a graph; None where there is none."""
        if not self._may_be_compiled():
            return None
        assert self.compiled is not None
        if pyro_dist.is_validation_enabled():  # a graph does not look at data
            with self.quiet(), torch.no_grad():
                trace_pair(self.model, self.guide, args)
        tensors = self.tensors()
        self._size = size
        before = capture(self.device)
        found = self.compiled(args, weight, tensors)
        if found is None or self.parameters.changed:  # a comparison may show a new parameter
            restore(before, self.device)
            self._take_up()
            return None
        loss, gradients = found
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        if self.ours is not None:
            self.ours.steps += 1
        return loss if self.has_value else torch.zeros_like(loss)

    def _traced_loss(self, args: tuple[Any, ...], weight: Tensor | None) -> Tensor:
        """The loss of a batch, a scalar with a graph; leaves the objective's count of steps."""
        state = self.state()
        pair = (self.model, self.guide)
        if weight is not None and self.ours is not None:
            self.ours.kl_factor = weight
        elif weight is not None:
            pair = weighted(*pair, weight)
        try:
            with self.parameters:
                loss: Tensor = self.objective.differentiable_loss(*pair, *args) / self._size
        finally:
            self.load_state(state)
            if self.ours is not None:
                self.ours.kl_factor = 1.0
        return loss

    def _take_up(self) -> None:
        if self.parameters.changed:
            self.newcomers |= self.parameters.update()

    def _no_gradient(self) -> ValueError:
        return ValueError(
            f"objective: must give gradients, but {type(self.objective).__name__} gave none to any "
            f"of the {len(self.parameters.trainable)} parameters"
        )

    def evaluate(self, args: tuple[Any, ...], num_data: int) -> float:
        """The loss on a batch without gradients, at weight 1, nats per datum."""
        size = self.size(args, num_data)
        is_upper = self.ours is not None and self.ours.bound.direction == "upper"
        objective = Trace_ELBO() if is_upper or not self.has_value else self.objective
        with self.parameters, self.watch, torch.no_grad():
            value = objective.loss(self.model, self.guide, *args)
        return float(value[0] if isinstance(value, tuple) else value) / size


def _first(value: Any, like: Tensor) -> Tensor:
    """The loss of the model where an objective (wake-sleep) has two."""
    value = value[0] if isinstance(value, tuple) else value
    if isinstance(value, Tensor):
        return value.detach().to(like.device)
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def _marked(model: Program) -> Program:
    """The model with a ``param`` statement that touches neither a parameter nor the store."""
    marker = torch.zeros(())

    def marked(*args: Any) -> Any:
        effectful(lambda *_, **__: marker, type="param")(MARKER, event_dim=None, name=MARKER)
        return model(*args)

    return marked
