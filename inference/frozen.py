"""A guide whose encoder has run: its distributions kept, to be drawn from again and again.

Scoring one datum with thousands of samples asks the guide for them tile by tile. Where no latent's
distribution depends on another draw, the distributions of the first run serve all tiles, and the
encoder runs once per datum.
"""

from __future__ import annotations

from contextlib import ExitStack

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from .particles import ParticlePlan
from .programs import Program, run_program, sample_sites


class _Recorder(Messenger):
    """Notes each site's distribution, mask and scale before the particle plate spreads them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict] = {}

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] is not None:
            self.seen[msg["name"]] = {
                "fn": msg["fn"],
                "mask": msg["mask"],
                "scale": msg["scale"],
                "frames": msg["cond_indep_stack"],
            }


class Frozen:
    """A program that draws from the distributions that a guide had.

    Args:
        guide: the guide.
        sites: what was noted of each of its sites.
    """

    def __init__(self, guide: Program, sites: dict[str, dict]) -> None:
        self.guide, self.sites = guide, sites

    def __call__(self, *_: object) -> None:
        for name, site in self.sites.items():
            with ExitStack() as stack:
                for frame in site["frames"]:
                    if frame.vectorized:
                        stack.enter_context(IndepMessenger(frame.name, frame.size, frame.dim))
                if isinstance(site["scale"], torch.Tensor) or site["scale"] != 1:
                    stack.enter_context(poutine.scale(scale=site["scale"]))
                if site["mask"] is not None:
                    stack.enter_context(poutine.mask(mask=site["mask"]))
                pyro.sample(name, site["fn"])


def thawed(guide: Program | None) -> Program | None:
    """The guide itself."""
    return guide.guide if isinstance(guide, Frozen) else guide


def freeze_guide(guide: Program, args: tuple, plan: ParticlePlan) -> Program:
    """Run the guide once and return a program that draws from the distributions it had.

    Returns the guide itself where a distribution depends on another latent, or where the guide
    does not take a plate of particles: then every tile must run it.
    """
    if plan.guide_way != "plate" or plan.layout.enumerated:
        return guide
    rank = plan.layout.nesting + 1
    recorder = _Recorder()
    # with two particles, whatever depends on a draw has a dimension of size two for them
    trace = run_program(guide, args, particles=2, particle_dim=-rank, inside=recorder)
    sites = {name: recorder.seen[name] for name in sample_sites(trace)}
    for site in sites.values():
        shapes = [site["fn"].batch_shape]
        if isinstance(site["mask"], torch.Tensor):
            shapes.append(site["mask"].shape)
        if any(len(shape) >= rank and shape[-rank] > 1 for shape in shapes):
            return guide

    return Frozen(guide, sites)
