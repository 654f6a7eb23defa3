"""KV-cache settings of SGLang (0.5.15 to 0.5.23): bytes as it allocates them, GPU generations as it checks them."""

from collections.abc import Mapping
from types import MappingProxyType

from kvload.servers.engines.settings import Setting


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

SETTINGS: Mapping[str, Setting] = MappingProxyType({row.method: row for row in _ROWS})
"""Method to SGLang's setting."""
