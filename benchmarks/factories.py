"""A factory named by its import path, ``package.module:attribute``: the only registry there is.

Wherever a built-in model, objective, estimator or data set can be named on the command line, so can
a callable of the user's own. The part before the colon is imported, the part after it is looked up
in the module (dots reach into classes).
"""

import importlib
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = r"[^\W\d]\w*"
_PATH = re.compile(rf"(?P<module>{_NAME}(\.{_NAME})*):(?P<attribute>{_NAME}(\.{_NAME})*)")


class FactoryError(ValueError):
    """An import path that does not lead to a callable; the message says at which step it fails."""


def resolve(path: str) -> Callable[..., Any]:
    """The callable that ``package.module:attribute`` names.

    The current working directory is importable, as under ``python -m``: it is put first on
    ``sys.path`` when it is not there (a console script starts without it), and stays, because the
    factory may import its neighbours only when it is called.

    Args:
        path: the import path; the attribute may be dotted, ``package.module:Class.method``.

    Raises:
        FactoryError: the path is not of that form, the module is not found or fails to import, it
            has no such attribute, or the attribute cannot be called.

    >>> resolve("math:sqrt")(9.0)
    3.0
    >>> resolve("math:root")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    FactoryError: 'math:root': module 'math' has no attribute 'root'.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise FactoryError(f"'{path}' should have the form 'package.module:attribute'.")
    found: Any = _import(match["module"], path)
    owner = f"module '{match['module']}'"
    for part in match["attribute"].split("."):
        if not hasattr(found, part):
            raise FactoryError(f"'{path}': {owner} has no attribute '{part}'.")
        found, owner = getattr(found, part), f"'{part}'"
    if not callable(found):
        raise FactoryError(
            f"'{path}' should be callable, as a function or a class is; "
            f"found {type(found).__name__}."
        )
    return found


def _import(module: str, path: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that exists but imports one that does not is a different fault.
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise FactoryError(
                f"'{path}': no module named '{error.name}', neither installed nor in {here}."
            ) from error
        raise FactoryError(f"'{path}': importing '{module}' failed: {error}.") from error
    except Exception as error:  # the user's module runs here: anything can come out of it
        raise FactoryError(
            f"'{path}': importing '{module}' failed: {type(error).__name__}: {error}"
        ) from error
