"""The methods that the plugin brings into vLLM: a row each, which names the backend that serves it.

A row's backends are dotted paths: vLLM imports them in the process that needs them. A backend takes its method and
options from :func:`kvload.servers.plugins.vllm.selection.current`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kvload.servers.kernels.formats import PACKED_METHODS, PAGE_TOKENS, page_format
from kvload.servers.plugins.vllm.contract import ContractError, Expected
from kvload.servers.plugins.vllm.eviction.policy import POLICIES
from kvload.servers.plugins.vllm.eviction.wraps import EXPECTED as EVICTION_EXPECTED
from kvload.servers.plugins.vllm.packed.wraps import EXPECTED as PACKED_EXPECTED
from kvload.servers.plugins.vllm.packed.wraps import RING_EXPECTED
from kvload.servers.plugins.vllm.selection import Selection


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: its name in the catalogue.
        gpu: the backend class under CUDA, as ``module.Class``; None where there is none.
        cpu: the backend class on a CPU.
        wraps: ``module:function`` called with the release of vLLM to wrap what no hook reaches; must do so only once.
        expects: functions of vLLM that the method relies on, besides those that all rely on.
        block_tokens: block sizes of vLLM that the method runs with.
    """

    method: str
    gpu: str | None
    cpu: str | None
    wraps: tuple[str, ...] = ()
    expects: tuple[Expected, ...] = ()
    block_tokens: tuple[int, ...] = (16,)


_EVICTION_WRAPS = (
    "kvload.servers.plugins.vllm.eviction.wraps:prompt_lengths",
    "kvload.servers.plugins.vllm.eviction.wraps:chunks_end_with_the_prompt",
)

_RING_WRAPS = (
    "kvload.servers.plugins.vllm.packed.wraps:request_slots",
    "kvload.servers.plugins.vllm.packed.wraps:rings_are_counted",
)


def _packed(method: str, window: bool) -> Row:
    return Row(
        method,
        gpu="kvload.servers.plugins.vllm.packed.gpu.PackedBackend",
        cpu="kvload.servers.plugins.vllm.packed.cpu.PackedBackend",
        wraps=_RING_WRAPS if window else (),
        expects=(*PACKED_EXPECTED, *(RING_EXPECTED if window else ())),
        block_tokens=(PAGE_TOKENS,),
    )


_ROWS: tuple[Row, ...] = (
    *(
        Row(
            method,
            gpu="kvload.servers.plugins.vllm.eviction.gpu.EvictionBackend",
            cpu="kvload.servers.plugins.vllm.eviction.cpu.EvictionBackend",
            wraps=_EVICTION_WRAPS,
            expects=EVICTION_EXPECTED,
        )
        for method in POLICIES
    ),
    *(_packed(method, page_format(method, 128).window) for method in PACKED_METHODS),
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
        raise ContractError(f"kvload's vLLM plugin has no method '{selection.method}'; it has {', '.join(ROWS)}")
    return row


def install(row: Row, release: tuple[int, int]) -> None:
    """Register a method's backend and wrap what it needs wrapped. A second call changes nothing.

    Args:
        release: of the installed vLLM.

    Raises:
        ContractError: the method has no backend for this platform, or another plugin holds its place.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from kvload.servers.plugins.vllm import layout

    on_cpu = current_platform.is_cpu()
    path = row.cpu if on_cpu else row.gpu
    if path is None:
        raise ContractError(f"kvload's method {row.method} has no backend for {'a CPU' if on_cpu else 'a GPU'} in vLLM")
    place = AttentionBackendEnum.CPU_ATTN if on_cpu else AttentionBackendEnum.CUSTOM
    held = _held(place)
    if not on_cpu and held not in {None, path}:
        raise ContractError(f"another plugin holds vLLM's CUSTOM attention backend ({held}): set VLLM_PLUGINS=kvload")
    register_backend(place, path)
    layout.let_backends_choose_pages(release)
    for name in row.wraps:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)(release)


def _held(place: Any) -> str | None:
    """The class path an attention backend's name stands for; None where it stands for none."""
    try:
        return str(place.get_path())
    except ValueError:  # CUSTOM, before anybody has registered it
        return None
