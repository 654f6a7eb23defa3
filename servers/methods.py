"""The catalogue of KV-cache compression methods: what each is, claims and takes as options.

A method is named the same for every engine. The embedded engine implements a method under its name; vLLM and SGLang
are started with a setting of their own, which their adapters look up by the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvload.errors import UsageError


@dataclass(frozen=True)
class MethodOption:
    """One option of a method, with its published default. Budgets and windows are whole tokens."""

    name: str
    default: int | float
    help: str
    minimum: float = 0


@dataclass(frozen=True)
class Method:
    """One row of the catalogue.

    Attributes:
        name: what the user types.
        title: the method's own name.
        summary: one line.
        explanation: about ten lines for ``kvload methods NAME``.
        paper: where it is defined.
        keeps_exact: what stays in full precision.
        evicts: whether tokens are dropped (their attention is lost) rather than stored in fewer bits.
        options: in the order they are shown.
    """

    name: str
    title: str
    summary: str
    explanation: str
    paper: str
    keeps_exact: str
    evicts: bool = False
    options: tuple[MethodOption, ...] = ()


@dataclass(frozen=True)
class MethodSpec:
    """A method with the options the user gave: ``h2o:budget=512``."""

    name: str
    options: Mapping[str, int | float] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """Split ``NAME:option=value,...`` into its name and raw options.

    Raises:
        UsageError: an option has no value or stands twice.
    """
    name, _, tail = text.strip().partition(":")
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in tail.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not key or not value:
            raise UsageError(f"'{part}' is not option=value", where=f"--method {text}", hint="as in kivi-4:group=32")
        if key in options:
            raise UsageError(f"option '{key}' is given twice", where=f"--method {text}")
        options[key] = value
    return name, options
