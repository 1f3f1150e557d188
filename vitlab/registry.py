"""A registry of named functions: the function's name is the key; a duplicate is an error."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from vitlab.errors import UserError


class Registry:
    """Functions by name. A name that ends in a colon is a prefix: `folder:` is found for
    `folder:PATH` and called with PATH first.

    >>> datasets = Registry("dataset")
    >>> @datasets.register
    ... def digits(seed): ...
    >>> datasets["digits"] is digits
    True
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._functions: dict[str, Callable] = {}

    def register(self, function: Callable | None = None, *, name: str | None = None):
        """Decorator. The key is `name`, or the function's own name."""
        if function is None:
            return partial(self.register, name=name)
        key = name or function.__name__
        if key in self._functions:
            raise UserError(f"{self.kind} {key!r} is registered already")
        self._functions[key] = function
        return function

    def names(self) -> list[str]:
        return sorted(self._functions)

    def __contains__(self, name: str) -> bool:
        prefix, colon, argument = name.partition(":")
        return name in self._functions or (bool(argument) and prefix + colon in self._functions)

    def __getitem__(self, name: str) -> Callable:
        """The function of this name; UserError with the nearest names and all choices."""
        if name in self._functions:
            return self._functions[name]
        prefix, colon, argument = name.partition(":")
        if argument and prefix + colon in self._functions:
            return partial(self._functions[prefix + colon], argument)
        raise UserError(unknown(self.kind, name, self.names()))


def unknown(kind: str, name: str, choices: list[str], advice: str = "") -> str:
    """The message for an unknown name, with the nearest choices and all of them."""
    lower = {str(choice).lower(): choice for choice in choices}
    near = [lower[match] for match in difflib.get_close_matches(str(name).lower(), lower, n=3)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"unknown {kind} {name!r}.{hint} Choices:"
        f" {', '.join(choices) or 'none yet'}.{' ' + advice if advice else ''}"
    )
