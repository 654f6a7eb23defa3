"""Which method SGLang's processes run: one environment variable, which all of them inherit."""

import os
from collections.abc import Mapping
from functools import cache

from kvload.servers.plugins.vllm import selection
from kvload.servers.plugins.vllm.selection import Selection, SelectionError

VARIABLE = "KVLOAD_SGLANG_METHOD"
"""JSON: ``{"method": "snapkv", "budget": 1024}``; options left out take the method's defaults."""

BACKEND = "kvload"
"""The name of the methods' attention backends, and of the cache of methods that evict, in SGLang's registries."""


def read(environ: Mapping[str, str]) -> Selection | None:
    """The method that an environment names; None where it names none.

    Raises:
        SelectionError: the value is not one.
    """
    return selection.read(environ, VARIABLE)


@cache
def current() -> Selection:
    """This process's method.

    Raises:
        SelectionError: there is none.
    """
    found = read(os.environ)
    if found is None:
        raise SelectionError(f"{VARIABLE} is not set")
    return found
