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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
)
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..modules import unnoticed
from ..objectives import MonteCarloObjective
from ..programs import Program
from ..rng import derive
from .parameters import MARKER, Parameters
from .warmup import weighted

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
    """

    def __init__(
        self,
        objective: Any,
        model: Program,
        guide: Program,
        parameters: Parameters,
        device: torch.device,
        seed: int,
    ) -> None:
        self.objective, self.model, self.guide = objective, model, guide
        self.parameters = parameters
        self.device, self.seed = device, seed
        self.jit = isinstance(objective, JIT)
        self.ours = objective if isinstance(objective, MonteCarloObjective) else None
        self.differentiable = False
        self.has_value = True
        self.newcomers: dict[str, Tensor] = {}
        self._sizes: dict[int, float] = {}
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
        """What the objective itself has learned."""
        return {} if self.ours is None else self.ours.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
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
            self._sizes[num_data] = claimed_size(
                *trace_pair(self.model, self.guide, args), num_data
            )
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
        model, guide = self._pair(weight)
        if self.differentiable:
            with self.parameters:
                loss = self.objective.differentiable_loss(model, guide, *args) / size
            self._take_up()
            if not loss.requires_grad:
                raise self._no_gradient()
            loss.backward()
            return loss.detach() if self.has_value else torch.zeros_like(loss)
        with self.parameters:
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
        with self.parameters, torch.no_grad():
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
