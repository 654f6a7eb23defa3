"""Outlier channels in the keys, as large language models have them, without a change to what the model computes.

Real models' keys have a few channels many times larger than the rest, which is why quantising keys per token loses
more than quantising them per channel (Liu et al. 2024, "KIVI", arXiv 2402.02750, section 3). A small model trained for
minutes has none, so 4 bits per token would cost it nothing. Scaling a rotary pair of key channels up and the same
channels of the queries down by a power of two leaves every attention score as it was, and the weights' bits too but
for their exponents.
"""

from __future__ import annotations

from random import Random

from torch import Tensor

from kvload.servers.probe.training.network import Shape

FACTOR = 32.0
"""How many times larger the outlier channels become; a power of two."""

PAIRS = 1
"""Rotary pairs of channels per layer and key head that become outliers."""


def outlier_pairs(shape: Shape) -> list[list[list[int]]]:
    """For each layer and key head the rotary pairs (0 .. head_size / 2 - 1) that become outliers; always the same."""
    rng = Random("outliers")
    return [
        [rng.sample(range(shape.head_size // 2), PAIRS) for _ in range(shape.kv_heads)] for _ in range(shape.layers)
    ]


def add_key_outliers(weights: dict[str, Tensor], shape: Shape) -> None:
    """Scale key and query projections, named as in transformers' ``LlamaForCausalLM``, in place."""
    half, group = shape.head_size // 2, shape.heads // shape.kv_heads
    for layer, heads in enumerate(outlier_pairs(shape)):
        keys = weights[f"model.layers.{layer}.self_attn.k_proj.weight"].view(shape.kv_heads, shape.head_size, -1)
        queries = weights[f"model.layers.{layer}.self_attn.q_proj.weight"].view(
            shape.kv_heads, group, shape.head_size, -1
        )
        for head, pairs in enumerate(heads):
            for channel in (place for pair in pairs for place in (pair, pair + half)):
                keys[head, channel] *= FACTOR
                queries[head, :, channel] /= FACTOR
