"""Which method vLLM's processes run: one environment variable, which all of them inherit.

vLLM asks a backend static questions that come without any configuration; the environment is what reaches them.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

VARIABLE = "KVLOAD_VLLM_METHOD"
"""JSON: ``{"method": "snapkv", "budget": 1024}``; options left out take the method's defaults."""


class SelectionError(Exception):
    """The variable does not hold a method."""


@dataclass(frozen=True)
class Selection:
    """A method with its options, as the variable holds it."""

    method: str
    options: Mapping[str, int | float] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}:{given}" if given else self.method


def write(selection: Selection) -> str:
    """The variable's value for a method."""
    return json.dumps({"method": selection.method, **selection.options})


def read(environ: Mapping[str, str], variable: str = VARIABLE) -> Selection | None:
    """The method that an environment names; None where it names none.

    Args:
        variable: that names it; each engine has its own.

    Raises:
        SelectionError: the value is not what :func:`write` makes.
    """
    text = environ.get(variable, "")
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SelectionError(f"{variable} is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise SelectionError(f'{variable} must be like {{"method": "snapkv", "budget": 1024}}, not {text[:200]}')
    options = {name: option for name, option in value.items() if name != "method"}
    for name, option in options.items():
        if isinstance(option, bool) or not isinstance(option, int | float):
            raise SelectionError(f"{variable}: option {name} must be a number, not {option!r}")
    return Selection(value["method"], MappingProxyType(options))


@cache
def current() -> Selection:
    """This process's method.

    Raises:
        SelectionError: there is none.
    """
    selection = read(os.environ)
    if selection is None:
        raise SelectionError(f"{VARIABLE} is not set")
    return selection
