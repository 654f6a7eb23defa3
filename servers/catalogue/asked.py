"""What a user asks for: a method of the catalogue with options, ``h2o:budget=512``, or an engine's own dtype."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvload.errors import UsageError
from kvload.servers.catalogue import methods


@dataclass(frozen=True)
class MethodSpec:
    """A method with the options the user gave: ``h2o:budget=512``."""

    name: str
    options: Mapping[str, int | float] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name


@dataclass(frozen=True)
class RawDtype:
    """An engine's own KV-cache dtype, passed through as it is: ``raw:NAME``."""

    dtype: str

    def __str__(self) -> str:
        return f"{RAW}{self.dtype}"


RAW = "raw:"


def read_method(text: str) -> MethodSpec | RawDtype:
    """Read what a user asks of any engine: a method with its options, or ``raw:NAME``.

    A name that the catalogue does not have may be a setting that one engine alone offers; its adapter says.

    Raises:
        UsageError: as :func:`parse_method`; or there is nothing behind ``raw:``.
    """
    if text.startswith(RAW):
        dtype = text.removeprefix(RAW)
        if not dtype:
            raise UsageError("raw: needs the engine's own name of a KV-cache dtype", where=f"--method {text}")
        return RawDtype(dtype)
    name, given = split_spec(text)
    if name in methods.METHODS or given:
        return parse_method(text)
    return MethodSpec(name)


OTHER_NAMES = {"fp8": "fp8-e4m3"}
"""What engines call a method, where that is another word."""


def canonical(text: str) -> str:
    """A method's text with the catalogue's name for it: vLLM's ``fp8`` is ``fp8-e4m3``."""
    name, separator, options = text.strip().partition(":")
    return OTHER_NAMES.get(name, name) + separator + options


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


def nearest(name: str, known: Collection[str]) -> str:
    """``did you mean kivi-4? `` where one of the known names is near; else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}? " if close else ""


def parse_method(text: str) -> MethodSpec:
    """Read ``NAME`` or ``NAME:option=value,...`` and fill in the defaults.

    Returns:
        the method with every one of its options.

    Raises:
        UsageError: no such method or option, a value that is not a number of the option's kind, out of its range, or
            options that do not go together.
    """
    name, given = split_spec(text)
    where = f"--method {text}"
    method = methods.METHODS.get(name)
    if method is None:
        hint = f"{nearest(name, methods.METHODS)}known: {', '.join(methods.METHODS)}"
        raise UsageError(f"no compression method '{name}'", where=where, hint=hint)
    known = {option.name: option for option in method.options}
    for key in given:
        if key not in known:
            names = ", ".join(known) or "none"
            raise UsageError(f"method '{name}' has no option '{key}'", where=where, hint=f"its options: {names}")
    options = {option.name: _value(option, given.get(option.name), where) for option in method.options}
    fault = method.check(options)
    if fault:
        raise UsageError(fault, where=where)
    return MethodSpec(name, MappingProxyType(options))


def _value(option: methods.MethodOption, text: str | None, where: str) -> int | float:
    if text is None:
        return option.default
    kind = type(option.default)
    try:
        value = kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"option '{option.name}' must be {wanted}, not '{text}'", where=where) from error
    if not option.minimum <= value <= option.maximum or value in {float("inf"), float("-inf")}:
        limits = f"from {option.minimum:g}" + (f" to {option.maximum:g}" if option.maximum < float("inf") else "")
        raise UsageError(f"option '{option.name}' must be {limits}, not {text}", where=where)
    return value
