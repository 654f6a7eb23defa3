"""Patterns of the ``regex`` library, compiled once, when a scorer first needs them."""

import importlib
from functools import cache
from typing import Any


@cache
def compiled(pattern: str, *, is_cased: bool = True, nested: bool = False) -> Any:
    """A pattern, ready for use.

    Args:
        is_cased: whether upper and lower case differ.
        nested: sets may hold sets, and flags hold to the end of their group (the library's version 1).
    """
    regex = importlib.import_module("regex")
    flags = 0 if is_cased else regex.IGNORECASE
    return regex.compile(pattern, flags | regex.V1 if nested else flags)
