"""The modules that a program pair stands on: which they are, their modes and their buffers."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .rng import forked


class Modules:
    """The modules that a program pair stands on.

    Attributes:
        owned: by role (``model``, ``guide``), the modules whose methods, or selves, the programs
            are; and what else is theirs (a ``baseline``).
        reachable: by variable name, modules that plain functions refer to.
        all_owned: whether both programs are owned, with no plain function among them.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.owned: dict[str, nn.Module] = {}
        self.reachable: dict[str, nn.Module] = {}
        self.all_owned = True
        self._seen: set[int] = set()
        self._explore(model, "model")
        self._explore(guide, "guide")

    def _explore(self, program: Any, role: str) -> None:
        if id(program) in self._seen:
            return
        self._seen.add(id(program))
        if isinstance(program, nn.Module):
            self._own(program, role)
        elif inspect.ismethod(program) and isinstance(program.__self__, nn.Module):
            self._own(program.__self__, role)
        elif isinstance(program, functools.partial):
            # Pyro's handlers wrap a program as partial(enter, handler, program).
            if program.args and isinstance(program.args[0], Messenger):
                self._explore(program.args[1], role)
                return
            self._explore(program.func, role)
            self._reach(dict(enumerate(program.args)) | program.keywords, role)
        else:
            self.all_owned = False
            self._reach(_variables(program), role)

    def _own(self, module: nn.Module, role: str) -> None:
        if all(module is not other for other in self.owned.values()):
            self.owned[role] = module

    def _reach(self, variables: Mapping[Any, Any], role: str) -> None:
        for name, value in variables.items():
            if isinstance(value, nn.Module):
                self._reach_module(str(name), value)
            elif inspect.ismethod(value) and isinstance(value.__self__, nn.Module):
                self._reach_module(str(name), value.__self__)
            elif callable(value) and not isinstance(value, type) and id(value) not in self._seen:
                self._seen.add(id(value))
                self._reach(_variables(value), role)

    def _reach_module(self, name: str, module: nn.Module) -> None:
        known = [*self.owned.values(), *self.reachable.values()]
        if all(module is not other for other in known):
            self.reachable[unused(name, self.reachable)] = module

    @property
    def local(self) -> bool:
        """Whether Pyro's store can be left out: owned programs, and no PyroModule among them.

        A PyroModule built under ``module_local_params=False`` cannot run under True.
        """
        modules = [m for root in self.roots() for m in root.modules()]
        return self.all_owned and not any(isinstance(m, PyroModule) for m in modules)

    def roots(self, trained: set[int] | None = None) -> list[nn.Module]:
        """The owned modules, and the reachable ones with a parameter in ``trained`` (ids)."""
        reachable = [
            module
            for module in self.reachable.values()
            if trained is None or any(id(p) in trained for p in module.parameters())
        ]
        return [*self.owned.values(), *reachable]

    def buffers(self, trained: set[int] | None = None) -> dict[str, tuple[nn.Module, str]]:
        """Where each buffer stands, by name: ``(module, attribute)``."""
        roots = self.roots(trained)
        names = {id(m): name for name, m in {**self.reachable, **self.owned}.items()}
        places: dict[str, tuple[nn.Module, str]] = {}
        seen: set[int] = set()
        for root in roots:
            for path, module in root.named_modules(prefix=names[id(root)]):
                if id(module) not in seen:
                    seen.add(id(module))
                    for name, _ in module.named_buffers(recurse=False):
                        places[f"{path}.{name}"] = (module, name)
        return places

    def attributes(self) -> dict[str, tuple[nn.Module, str]]:
        """Where tensors stand that are neither parameters nor buffers, by name."""
        return {
            f"{number}.{name}": (module, name)
            for number, module in enumerate(m for root in self.roots() for m in root.modules())
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }


def unused(name: str, names: Mapping[str, object]) -> str:
    """``name``, or where that is taken ``name#2``, ``name#3``, ..."""
    candidates = itertools.chain([name], (f"{name}#{count}" for count in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in names)


def _variables(program: Any) -> dict[str, Any]:
    """What a plain callable refers to: enclosing variables and globals, or its attributes."""
    if inspect.ismethod(program):
        return _variables(program.__func__) | dict(getattr(program.__self__, "__dict__", {}))
    if not inspect.isfunction(program):
        return dict(getattr(program, "__dict__", {}))
    near = {  # modules anywhere, but helper functions only from the same file
        name: value
        for name in program.__code__.co_names
        if (value := program.__globals__.get(name)) is not None
        and (isinstance(value, nn.Module) or getattr(value, "__module__", "") == program.__module__)
    }
    for name, cell in zip(program.__code__.co_freevars, program.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable has no value yet
            near[name] = cell.cell_contents
    return near


@contextmanager
def mode(roots: list[nn.Module], training: bool) -> Iterator[None]:
    """Put modules into training or evaluation mode, and each submodule back to what it was."""
    before = [(module, module.training) for root in roots for module in root.modules()]
    try:
        for root in roots:
            root.train(training)
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextmanager
def unnoticed(
    modules: Modules,
    device: torch.device,
    seed: int | None = None,
    training: bool | None = None,
) -> Iterator[None]:
    """Run programs without moving generators or tensors; by choice from a seed, in another mode."""
    buffers, roots = Buffers(modules.buffers() | modules.attributes()), modules.roots()
    buffers.keep()
    with ExitStack() as stack:
        stack.enter_context(forked(device, seed))
        if training is not None:
            stack.enter_context(mode(roots, training))
        stack.callback(buffers.put_back)
        yield


class Buffers:
    """The buffers' values before a step, so that a step that went wrong can be undone.

    Large buffers are copied only when torch's count of their changes moved. Small ones always are,
    because batch norm changes its own behind that count; with ``copy_all`` large ones, too, because
    compiled code does.
    """

    SMALL = 2**16

    def __init__(self, places: Mapping[str, tuple[nn.Module, str]], copy_all: bool = False) -> None:
        self.places, self.copy_all = dict(places), copy_all
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}

    def current(self) -> dict[str, Tensor]:
        """The buffers by name."""
        values = {name: getattr(module, key) for name, (module, key) in self.places.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _unchanged(self, name: str, value: Tensor) -> bool:
        kept = self._kept.get(name)
        return (
            kept is not None
            and kept[0] is value
            and not value.is_inference()
            and kept[1] == value._version
            and value.numel() > self.SMALL
            and not self.copy_all
        )

    def keep(self) -> None:
        """Remember the values."""
        for name, value in self.current().items():
            if not self._unchanged(name, value):
                version = 0 if value.is_inference() else value._version
                self._kept[name] = (value, version, value.detach().clone())

    def changed(self) -> list[str]:
        """Names of those that are not what they were at the last :meth:`keep`."""
        current = self.current()
        return [
            name
            for name, (value, _, copy) in self._kept.items()
            if current.get(name) is not value or not torch.equal(value, copy)
        ]

    def put_back(self) -> None:
        """Return to the tensors, and their values, of the last :meth:`keep`."""
        current = self.current()
        for name, (value, _, copy) in self._kept.items():
            if name in current and self._unchanged(name, current[name]):
                continue
            if not (value.is_inference() or torch.equal(value, copy)):
                with torch.no_grad():
                    value.copy_(copy)
            if current.get(name) is not value:  # another was put in its place, perhaps the data
                module, key = self.places[name]
                setattr(module, key, value)

    def assign(self, name: str, value: Tensor) -> None:
        """Give a buffer a value, in place where its shape allows."""
        module, key = self.places[name]
        current = getattr(module, key)
        if current is not None and current.shape == value.shape:
            with torch.no_grad():
                current.copy_(value)
        else:
            setattr(module, key, value.clone())
