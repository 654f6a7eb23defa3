"""The methods that the plugin brings into SGLang: a row each, which names what serves it.

Backends and hooks are dotted paths: they are imported in the engine's processes, where SGLang is.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kvload.servers.kernels.formats import PACKED_METHODS, PAGE_TOKENS
from kvload.servers.plugins.sglang.eviction.expected import EXPECTED as EVICTION_EXPECTED
from kvload.servers.plugins.sglang.selection import BACKEND
from kvload.servers.plugins.vllm.contract import ContractError, Expected
from kvload.servers.plugins.vllm.selection import Selection


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: its name in the catalogue.
        backend: the attention backend's class, as ``module:Class``; called with SGLang's model runner.
        hooks: ``module:function`` that puts the method's hooks in place; must do so only once.
        expects: functions of SGLang that the method relies on, besides those that all rely on.
        page_tokens: the page size that SGLang runs with.
    """

    method: str
    backend: str
    hooks: str
    expects: tuple[Expected, ...] = ()
    page_tokens: int = 1


_ROOM = "kvload.servers.plugins.sglang"

EVICTING = ("streamingllm", "snapkv", "h2o")
"""The policies that were run in SGLang."""

_ROWS: tuple[Row, ...] = (
    *(
        Row(
            method,
            f"{_ROOM}.eviction.backend:EvictionBackend",
            f"{_ROOM}.eviction.hooked:install",
            EVICTION_EXPECTED,
        )
        for method in EVICTING
    ),
    *(
        Row(
            method,
            f"{_ROOM}.packed.backend:PackedBackend",
            f"{_ROOM}.packed.hooked:install",
            page_tokens=PAGE_TOKENS,
        )
        for method in PACKED_METHODS
    ),
)

ROWS: Mapping[str, Row] = MappingProxyType({row.method: row for row in _ROWS})
"""Method to its row."""


def row_of(selection: Selection) -> Row:
    """The row of a method.

    Raises:
        ContractError: the plugin has no such method.
    """
    row = ROWS.get(selection.method)
    if row is None:
        raise ContractError(f"kvload's SGLang plugin has no method '{selection.method}'; it has {', '.join(ROWS)}")
    return row


def resolve(place: str) -> Any:
    """The object at ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def install(row: Row) -> None:
    """Register a method's backend and put its hooks in place. A second call changes nothing.

    Raises:
        ContractError: a hook did not take.
    """
    from sglang.srt import server_args
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    if BACKEND not in server_args.ATTENTION_BACKEND_CHOICES:
        server_args.add_attention_backend_choices([BACKEND])

    def backend(runner: Any) -> Any:
        return resolve(row.backend)(runner)

    register_attention_backend(BACKEND)(backend)
    resolve(row.hooks)()
