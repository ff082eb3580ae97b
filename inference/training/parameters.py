r"""Every parameter of a program pair, wherever Pyro lets one live.

- A bound method of a module, or a module, owns its parameters: all of them are trained.
- A function trains what it says: the tensors of ``pyro.param``, in their unconstrained form, and
  the modules it hands to ``pyro.module``.

The second kind is found by listening to the program's ``param`` statements, as ``pyro.infer.SVI``
does, in every step, since a program may create parameters late. One thing is done differently:
what trains is the module's own parameter, not the tensor that Pyro's store holds under its name.
The two differ when another module was registered under that name before, and then, in SVI, the
second one never moves.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from ..modules import Modules, unused
from ..support import bytes_hint

DIVIDER = "$$$"  # between module and parameter in the names that pyro.module makes
MARKER = "_pyrovae_marker"  # a param statement that stands for no parameter


class Parameters(Messenger):
    """The trainable tensors of a program pair. While entered, it listens for new ones.

    Attributes:
        trainable: by name, the leaf tensors to optimise. Names begin with ``model.`` or
            ``guide.`` (owned), ``module.`` (``pyro.module``) or ``store.`` (``pyro.param``).
        frozen: owned parameters that do not require a gradient.
        changed: whether a statement showed a tensor that is not in ``trainable`` yet.
        pending: values, by name, for parameters that the program has yet to create.
    """

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.modules = modules
        self.trainable: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}
        self.changed = False
        self.statements = 0  # so that "no param statement was seen" can be told
        self.intercept = True
        self._shown: dict[Any, tuple[str, Tensor]] = {}
        self._ids: set[int] = set()
        self.update()

    @property
    def ids(self) -> set[int]:
        """The identities of the trainable tensors."""
        return self._ids

    def _pyro_param(self, msg: Message) -> None:
        # The module's own parameter answers, and the store is not asked: that is right when two
        # modules share a name, and cheaper.
        args = msg["args"]
        if self.intercept and DIVIDER in args[0] and len(args) > 1 and id(args[1]) in self._ids:
            msg["value"] = args[1]
            msg["done"] = True

    def _pyro_post_param(self, msg: Message) -> None:
        name, args, value = str(msg["name"]), msg["args"], msg["value"]
        if name == MARKER:
            return
        assert value is not None
        self.statements += 1
        if DIVIDER in name and len(args) > 1 and isinstance(args[1], nn.Parameter):
            tensor: Tensor = args[1]
            key: Any = (name, id(tensor))
            name = "module." + name.replace(DIVIDER, ".")
        else:
            tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
            key = name = f"store.{name}"
        shown = self._shown.get(key)
        if shown is None or shown[1] is not tensor:
            if name in self.pending:
                with torch.no_grad():
                    tensor.copy_(self.pending.pop(name))
                if name.startswith("store."):  # constrain the new value, for this very statement
                    msg["value"] = pyro.get_param_store()[str(msg["name"])]
            self._shown[key] = (name, tensor)
            self.changed = True

    def update(self) -> dict[str, Tensor]:
        """Take up what was shown since. Returns the newcomers among :attr:`trainable`."""
        before = self._ids
        trainable: dict[str, Tensor] = {}
        frozen: dict[str, Tensor] = {}
        seen: set[int] = set()
        owned = (
            (f"{role}.{name}", parameter)
            for role, module in self.modules.owned.items()
            for name, parameter in module.named_parameters()
            if not isinstance(parameter, nn.parameter.UninitializedParameter)
        )
        for name, tensor in [*owned, *self._shown.values()]:
            if id(tensor) in seen or not tensor.is_leaf:
                continue
            seen.add(id(tensor))
            names = trainable if tensor.requires_grad else frozen
            names[unused(name, names)] = tensor
        self.trainable, self.frozen = trainable, frozen
        self._ids = {id(tensor) for tensor in trainable.values()}
        self.changed = False
        return {name: t for name, t in trainable.items() if id(t) not in before}

    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name, the frozen ones too."""
        return {**self.trainable, **self.frozen}

    def device(self) -> torch.device | None:
        """Where the parameters are; None when there are none yet.

        Raises:
            ValueError: they are on several devices.
        """
        devices = {t.device: name for name, t in self.tensors().items()}
        if len(devices) > 1:
            where = ", ".join(f"{name} on {device}" for device, name in devices.items())
            raise ValueError(f"parameters must be on one device, but {where}")
        return next(iter(devices), None)

    def dtype_error(self, error: Exception, name: str, args: tuple[Any, ...]) -> TypeError | None:
        """A failure of the programs as one of x's dtype, where that is what it is."""
        x = args[0]
        dtypes = sorted({str(t.dtype) for t in self.trainable.values()})
        if not isinstance(x, Tensor) or str(x.dtype) in dtypes or "dtype" not in str(error):
            return None
        expected = " or ".join(dtypes)
        return TypeError(
            f"{name}: must be {expected} like the parameters, but is {x.dtype}{bytes_hint(x)}"
        )
