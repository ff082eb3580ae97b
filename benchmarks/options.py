"""``key=value`` options from the command line, and the factories they go to.

A name is either one of the built-in factories or an import path, ``package.module:attribute``. Its
options are its keyword arguments; a factory's signature is all the documentation they need, and
all the checking they get before it is called.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .factories import FactoryError, resolve

HINT = "PYROVAE_TRACEBACK=1 shows where"


def parse_options(words: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from ``key=value`` words; a value is JSON, or else a string.

    >>> parse_options(["latent_dim=16", "hidden=[200, 200]", "name=digits"])
    {'latent_dim': 16, 'hidden': [200, 200], 'name': 'digits'}

    Raises:
        FactoryError: a word without ``=``, a key that is no name, or a key given twice.
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise FactoryError(f"an option should have the form key=value; found '{word}'.")
        if key in options:
            raise FactoryError(f"option '{key}' is given twice.")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def look_up(kind: str, name: str, built_in: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The factory called ``name``: built in, or found by its import path.

    >>> look_up("number", "zero", {"one": int})  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    FactoryError: unknown number 'zero'; there are one, and your own as package.module:factory.

    Raises:
        FactoryError: an unknown name, or a path that leads to nothing callable.
    """
    if ":" in name:
        return resolve(name)
    if name not in built_in:
        near = difflib.get_close_matches(name, built_in, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise FactoryError(
            f"unknown {kind} '{name}'{hint}; there are {', '.join(built_in)}, and your own as "
            "package.module:factory."
        )
    return built_in[name]


def accepts(factory: Callable[..., Any], keyword: str) -> bool:
    """Whether a factory takes this keyword argument by name.

    >>> accepts(parse_options, "words"), accepts(parse_options, "word")
    (True, False)
    """
    names, _ = _keywords(factory, positional=0)
    return keyword in names


def call(
    name: str, factory: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None
) -> Any:
    """``factory(*args, **options)``, every fault of the call put into one line.

    Raises:
        FactoryError: an option that the factory does not have (the message lists those it has), or
            whatever the factory raised.
    """
    options = dict(options or {})
    names, takes_any = _keywords(factory, positional=len(args))
    if not takes_any and (unknown := [key for key in options if key not in names]):
        has = ", ".join(names) if names else "none"
        raise FactoryError(f"'{name}' has no option '{unknown[0]}'; its options: {has}.")
    if ":" not in name:
        try:
            return factory(*args, **options)
        except (TypeError, ValueError) as error:
            raise FactoryError(f"'{name}': {error}") from error
    try:
        return factory(*args, **options)
    except Exception as error:  # the user's code runs here: say whose fault it was
        raise FactoryError(f"'{name}' raised {type(error).__name__}: {error} ({HINT}).") from error


def resolved(factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the factory's own defaults filled in, where JSON can hold those.

    A record of a run that names them stays right when a default changes.

    >>> def factory(x, *, size=3, act=print): ...
    >>> resolved(factory, {"other": 1})
    {'size': 3, 'other': 1}
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return dict(options)
    defaults = {
        p.name: p.default
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.default is not p.empty
        and p.default is not None
        and _plain(p.default)
    }
    return {**json.loads(json.dumps(defaults)), **options}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    return isinstance(value, bool | int | float | str)


def _keywords(factory: Callable[..., Any], positional: int) -> tuple[list[str], bool]:
    """What can be passed by name once ``positional`` arguments are taken, and if anything can."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some built-in callables have no signature
        return [], True
    by_name = [
        p.name
        for i, p in enumerate(parameters)
        if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and i >= positional)
    ]
    return by_name, any(p.kind is p.VAR_KEYWORD for p in parameters)
