"""Save a model to one file and build it again from that file alone.

The file is in the safetensors format: the numbers, and in its header a JSON description of how
the modules were constructed. Loading reads numbers and JSON and nothing else; it never unpickles,
and it constructs only classes of this package, of ``torch.nn``, and those the caller names.

A class can be described when every argument of its constructor is kept as an attribute of the
same name, as all classes here do, and every tensor among them as a parameter or a buffer.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .generative import GenerativeModel

FORMAT = "pyrovae-model-1"
_SCALARS = (bool, int, float, str, type(None))
# what belongs to one process or one device and not to the model
_NOT_DESCRIBED = {"device", "dtype", "validate_args"}


def save(module: nn.Module, path: str | os.PathLike) -> None:
    """Write ``module`` to ``path``, whole or not at all.

    Raises:
        TypeError: the arguments of a constructor do not describe what it made; names the class,
            and the argument where it is one.
        OSError: the file cannot be written; what stood at ``path`` is left as it was.

    Example:
        >>> from pyrovae.models import LinearGaussianVAE
        >>> linear = LinearGaussianVAE(data_dim=4, latent_dim=2)
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "linear.safetensors"
        >>> save(linear, path)
        >>> x = torch.zeros(3, 4)
        >>> torch.equal(load(path).log_evidence(x), linear.log_evidence(x))
        True
    """
    description = {
        "module": _describe_whole(module),
        "training": [name for name, part in module.named_modules() if part.training],
        "frozen": [name for name, value in module.named_parameters() if not value.requires_grad],
    }
    rebuilt = _build_quietly(
        description["module"], {_key(type(part)): type(part) for part in module.modules()}
    )
    tensors = _tensors(module)
    if {k: v.shape for k, v in tensors.items()} != {
        k: v.shape for k, v in _tensors(rebuilt).items()
    }:
        raise TypeError(
            f"{type(module).__name__} holds parameters that its constructor arguments do not "
            "explain: keep every argument as an attribute of the same name"
        )
    if _describe_whole(rebuilt) != description["module"]:
        raise TypeError(
            f"{type(module).__name__}, built from the attributes that bear its constructor "
            "arguments' names, has others: keep every argument as it is given"
        )
    path = Path(path)
    content = serialize(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        metadata={"format": FORMAT, "description": json.dumps(description)},
    )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    path: str | os.PathLike,
    classes: Iterable[type[nn.Module]] = (),
    device: str | torch.device = "cpu",
) -> Any:
    """Build the module that :func:`save` wrote.

    Args:
        path: the file.
        classes: module classes of your own that the file may construct.
        device: where to put it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or names a class that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a saved model, but there is no file {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a saved model: its format is {metadata.get('format')!r}")
    allowed = {_key(one): one for one in classes}
    try:
        description = json.loads(metadata["description"])
        module = _build_quietly(description["module"], allowed)
        training, frozen = set(description["training"]), set(description["frozen"])
        if not isinstance(module, nn.Module):
            raise TypeError("it describes no module")
    except (KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} has a description that nothing can be built from: {what}"
        ) from error
    floating = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    module.to(device=device, dtype=floating)
    places = _tensors(module)
    if set(places) != set(tensors):
        odd = sorted(set(places) ^ set(tensors))
        raise ValueError(f"{path} does not fit the classes it names; parameters at odds: {odd}")
    with torch.no_grad():
        for name, place in places.items():
            if place.shape != tensors[name].shape:
                raise ValueError(
                    f"{path}: '{name}' should have shape {tuple(place.shape)}, "
                    f"but has {tuple(tensors[name].shape)}"
                )
            place.data = tensors[name].clone()  # off the file, and aligned as torch allocates
    for name, part in module.named_modules():
        part.training = name in training
    for name, value in module.named_parameters():
        value.requires_grad_(name not in frozen)
    return module


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, shared ones once."""
    kept = module.state_dict(keep_vars=True)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if name in kept}


def _key(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _describe_whole(module: nn.Module) -> Any:
    kept = {id(tensor) for tensor in _tensors(module).values()}
    return _describe(module, {}, kept, type(module).__name__)


def _describe(value: Any, seen: dict[int, int], kept: set[int], where: str) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, list | tuple):
        return {"tuple": [_describe(item, seen, kept, where) for item in value]}
    if isinstance(value, Tensor):
        if id(value) not in kept:  # its numbers would be lost
            raise TypeError(f"{where} is a tensor, but no parameter and no persistent buffer")
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": _key(value)}
    if not isinstance(value, nn.Module):
        raise TypeError(f"{where} is a {type(value).__name__}, which cannot be described in JSON")
    if id(value) in seen:
        return {"shared": seen[id(value)]}
    seen[id(value)] = index = len(seen)
    cls = type(value)
    arguments: dict[str, Any] = {}
    is_container = cls.__init__ in (nn.Sequential.__init__, nn.ModuleList.__init__)
    if isinstance(value, nn.Sequential | nn.ModuleList) and is_container:
        children = [_describe(child, seen, kept, f"{where}.{i}") for i, child in enumerate(value)]
        return {"module": _key(cls), "index": index, "children": children}
    for name, parameter in _constructor(cls).items():
        if _is_left_out(value, name):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{cls.__name__} takes '{parameter}', which cannot be described")
        if not hasattr(value, name):
            raise TypeError(
                f"{cls.__name__} does not keep its constructor argument '{name}' as an attribute"
            )
        held = getattr(value, name)
        if name == "bias" and _is_torchs(cls):
            held = held is not None  # torch keeps the parameter under the name of the switch
        arguments[name] = _describe(held, seen, kept, f"{cls.__name__}.{name}")
    return {"module": _key(cls), "index": index, "arguments": arguments}


def _constructor(cls: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    if cls.__init__ is nn.Module.__init__ or issubclass(cls, nn.Identity):
        return {}  # they take anything and use nothing
    return inspect.signature(cls).parameters


def _is_left_out(module: nn.Module, argument: str) -> bool:
    if isinstance(module, GenerativeModel) and argument == "name":
        return True  # a model that is loaded beside the one that was saved is another one
    private = _is_torchs(type(module)) and argument.startswith("_")
    return argument in _NOT_DESCRIBED or private


def _is_torchs(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.")


def _build_quietly(description: Any, classes: dict[str, type]) -> Any:
    # constructors draw a start that is then replaced: those draws are nobody's but ours
    with torch.random.fork_rng(devices=[]):
        return _build(description, {}, classes)


def _build(description: Any, built: dict[int, nn.Module], classes: dict[str, type]) -> Any:
    if not isinstance(description, dict):
        return description
    if "tuple" in description:
        return tuple(_build(item, built, classes) for item in description["tuple"])
    if "tensor" in description:
        return torch.zeros(description["tensor"], dtype=getattr(torch, description["dtype"]))
    if "shared" in description:
        return built[description["shared"]]
    if "class" in description:
        return _find(description["class"], classes)
    cls = _find(description["module"], classes)
    if "children" in description:
        children = [_build(child, built, classes) for child in description["children"]]
        module = cls(*children) if issubclass(cls, nn.Sequential) else cls(children)
    else:
        arguments = description["arguments"]
        module = cls(**{name: _build(value, built, classes) for name, value in arguments.items()})
    built[description["index"]] = module
    return module


def _find(key: str, classes: dict[str, type]) -> type[nn.Module]:
    if key in classes:
        return classes[key]
    module_name, _, name = key.partition(":")
    home = __name__.rpartition(".")[0]
    if not any(
        module_name == root or module_name.startswith(f"{root}.") for root in (home, "torch.nn")
    ):
        raise ValueError(f"the file constructs {key}: pass that class in classes= to allow it")
    try:
        cls = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"the file constructs {key}, which is no module class")
    return cls
