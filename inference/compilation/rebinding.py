"""Programs that keep something from run to run: what a graph can repeat of that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..modules import Modules
from .told import Unrepeatable

_NOTHING: tuple[Tensor | None, int] = (None, 0)


@contextmanager
def tensors_stay(modules: Modules) -> Iterator[None]:
    """Check that a run leaves modules the tensors they have.

    Numbers, and how long lists and dictionaries are, have to stay, too.

    Raises:
        Unrepeatable: it put another in the place of one, or wrote to one that is no buffer, which
            nobody puts back after a trial.
    """
    before, numbers = dict(_tensors(modules.roots())), dict(_numbers(modules.roots()))
    yield
    after = dict(_tensors(modules.roots()))
    for name in before | after:
        (old, written), (new, now) = before.get(name, _NOTHING), after.get(name, _NOTHING)
        if old is not new:
            raise Unrepeatable(
                f"the program puts another tensor in the place of {name}; it could write to it, by "
                ".copy_() or .add_()"
            )
        if written != now:
            raise Unrepeatable(
                f"the program writes to {name}, which is no buffer (register_buffer makes it one)"
            )
    counted = dict(_numbers(modules.roots()))
    for name, value in counted.items():
        if name in numbers and value != numbers[name]:
            raise Unrepeatable(
                f"the program changes {name}, which is no tensor; a buffer could count"
            )


def _tensors(roots: list[nn.Module]) -> Iterator[tuple[str, tuple[Tensor | None, int]]]:
    """Buffers and plain attributes, and how often these were written to, by name."""
    for root in roots:
        for path, module in root.named_modules(prefix=type(root).__name__):
            for name, buffer in module.named_buffers(recurse=False):
                yield f"{path}.{name}", (buffer, 0)
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}", (value, 0 if value.is_inference() else value._version)


def _numbers(roots: list[nn.Module]) -> Iterator[tuple[str, float | str | None]]:
    """Plain attributes that a program could count by, by name."""
    for root in roots:
        for path, module in root.named_modules(prefix=type(root).__name__):
            for name, value in vars(module).items():
                if isinstance(value, int | float | str | None):
                    yield f"{path}.{name}", value
                elif isinstance(value, list | dict | set) and not name.startswith("_"):
                    yield f"{path}.{name}", len(value)
