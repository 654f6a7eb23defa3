"""A simulated lossy cache inside transformers, to see early whether the probe tells degrees of loss apart.

Values are rounded as a cache would store them and then used in full precision: no memory is saved and nothing is timed.
The prompt's own attention is exact; every later token reads the lossy cache, as with KIVI and StreamingLLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvload.errors import KvloadError

ATTENTION_NAME = "kvload-probe-lossy"
"""Name under which the attention function is registered with transformers."""

GROUP = 32
"""Tokens (keys) or channels (values) that share a scale in ``kivi``; Liu et al. 2024, arXiv 2402.02750."""

RESIDUAL = 128
"""Newest tokens that ``kivi`` keeps exact; keys in whole blocks of this many."""

SINKS = 4
"""First tokens that ``window`` keeps beside the newest; Xiao et al. 2023, arXiv 2309.17453."""

CacheLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values (1, heads, tokens, head_size) as written -> as read back; may be fewer tokens."""


def fake_quantise(x: Tensor, bits: int, dim: int) -> Tensor:
    """Round to 2^bits evenly spaced levels between the least and the greatest value along ``dim``, and back."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    levels: Tensor = ((x - low) / scale).round()
    restored: Tensor = levels * scale + low
    return restored


def _per_token(bits: int) -> CacheLoss:
    return lambda keys, values: (fake_quantise(keys, bits, -1), fake_quantise(values, bits, -1))


def _kivi(bits: int) -> CacheLoss:
    def read(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        old = keys.size(2) // RESIDUAL * RESIDUAL
        grouped = fake_quantise(torch.unflatten(keys[:, :, :old], 2, (-1, GROUP)), bits, 3).flatten(2, 3)
        keys = torch.cat((grouped, keys[:, :, old:]), dim=2)
        old = max(0, values.size(2) - RESIDUAL)
        grouped = fake_quantise(torch.unflatten(values[:, :, :old], 3, (-1, GROUP)), bits, 4).flatten(3, 4)
        return keys, torch.cat((grouped, values[:, :, old:]), dim=2)

    return read


def _window(size: int) -> CacheLoss:
    def read(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if keys.size(2) <= size:
            return keys, values
        newest = size - SINKS
        return tuple(torch.cat((part[:, :, :SINKS], part[:, :, -newest:]), dim=2) for part in (keys, values))  # type: ignore[return-value]

    return read


def parse_loss(text: str) -> CacheLoss:
    """The loss that a text names: ``intB`` (per token and head), ``kiviB``, with B bits, or ``windowN`` tokens.

    Raises KvloadError for any other text.
    """
    kinds: dict[str, tuple[Callable[[int], CacheLoss], range]] = {
        "int": (_per_token, range(1, 17)),
        "kivi": (_kivi, range(1, 17)),
        "window": (_window, range(SINKS + 1, 10_000)),
    }
    match = re.fullmatch(r"(int|kivi|window)([0-9]{1,4})", text)
    if match is None or int(match[2]) not in kinds[match[1]][1]:
        raise KvloadError(f"unknown cache loss {text!r}", hint="use int8, int4, int2, kivi4, kivi2 or window512, say")
    return kinds[match[1]][0](int(match[2]))


def register() -> None:
    """Make ``attn_implementation=ATTENTION_NAME`` known to transformers; the model call takes ``cache_loss=``."""
    from transformers import AttentionInterface

    def attend(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **extra: Any
    ) -> tuple[Tensor, None]:
        del attention_mask
        loss: CacheLoss | None = getattr(module, "cache_loss", None)
        prompt = query.size(2) > 1
        if loss is not None and not prompt:
            key, value = loss(key, value)
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=prompt, scale=extra.get("scaling"), enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION_NAME, attend)


def apply_loss(model: torch.nn.Module, loss: CacheLoss) -> None:
    """Let every attention layer of a model loaded with ``ATTENTION_NAME`` read its cache with this loss."""
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "q_proj"):
            module.cache_loss = loss  # type: ignore[assignment]
