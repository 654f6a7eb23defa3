"""KV-cache settings of SGLang (0.5.15 to 0.5.23): bytes as it allocates them, GPU generations as it checks them."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from kvload.servers.engines.settings import Setting
from kvload.servers.engines.vllm.packed import token_bytes
from kvload.servers.engines.vllm.settings import PACKED_LIMITS, PACKED_NOTES


def _one_byte(head_size: int) -> float:
    return 2.0 * head_size


def _microscaled_byte(head_size: int) -> float:
    """A byte an element and a one-byte exponent for each 32 of them."""
    return 2 * (head_size + head_size / 32)


def _microscaled_half_byte(head_size: int) -> float:
    """Half a byte an element and a one-byte scale for each 16 of them."""
    return 2 * (head_size / 2 + head_size / 16)


_ROWS = (
    Setting("none", "auto", None, backend="fa3 (Hopper), flashinfer"),
    Setting("fp8-e4m3", "fp8_e4m3", _one_byte, since=(0, 4), capability=(8, 9), backend="fa3 (Hopper), flashinfer"),
    Setting("fp8-e5m2", "fp8_e5m2", _one_byte, since=(0, 4), error_limit=0.35, backend="triton, flashinfer"),
    Setting(
        "fp4-mx",
        "fp4_mx_block16",
        _microscaled_half_byte,
        since=(0, 5, 17),
        arguments=("--attention-backend", "triton"),
        error_limit=0.6,
        backend="triton, torch_native, flex_attention",
        note="the default backend on Hopper (fa3) refuses it: kvload names triton unless you name another",
    ),
    Setting("mxfp8", "mxfp8", _microscaled_byte, since=(0, 5, 17), capability=(10, 0), backend="fa4 (Blackwell)"),
    Setting(
        "nvfp4",
        "nvfp4",
        _microscaled_half_byte,
        since=(0, 5, 17),
        capability=(10, 0),
        error_limit=0.5,
        backend="trtllm_mha (Blackwell)",
    ),
)

_NOTES = {
    "streamingllm": "the window moves on token by token; slots go back 16 at a time",
    "snapkv": "exactly the budget stays of a longer prompt",
    "h2o": "evicts 16 tokens with every 16 generated, where the paper evicts one with each",
}
_EVICTION = tuple(
    Setting(
        method,
        "auto",
        None,
        plugin=True,
        backend="kvload's plugin, over fa3",
        note=f"by kvload's plugin: {note}",
    )
    for method, note in _NOTES.items()
)
_PACKED = tuple(
    Setting(
        method,
        "auto",
        partial(token_bytes, method),
        plugin=True,
        error_limit=PACKED_LIMITS[method],
        backend="kvload's plugin, kernels of its own; fa3 for prompts",
        note=f"by kvload's plugin: {note}",
    )
    for method, note in PACKED_NOTES.items()
)

SETTINGS: Mapping[str, Setting] = MappingProxyType({row.method: row for row in (*_ROWS, *_EVICTION, *_PACKED)})
"""Method to SGLang's setting."""
