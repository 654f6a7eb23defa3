"""The attention function that stands in for the models' own: it hands every layer to the KV cache.

``transformers`` calls it with rotary embeddings applied, and passes the engine's own keyword argument through.
No mask function is registered under the name, so that models build no masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvload.servers.embedded.cache.api import CacheGeometry, KVCache
from kvload.servers.kernels.attention import AttentionExtras

ATTENTION_NAME = "kvload"


@dataclass(frozen=True)
class StepContext:
    """What the layers of one step share."""

    cache: KVCache
    plan: Any
    extras: Sequence[AttentionExtras]

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: dict[str, Any]
    ) -> torch.Tensor:
        """Store and attend; see :meth:`KVCache.attend` for the shapes."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        return self.cache.attend(layer, self.plan, query, key, value, self.extras[layer])


@dataclass
class Probe:
    """Stands in for a step while a model is inspected: notes what each layer passes, attends to nothing."""

    layers: dict[int, tuple[tuple[int, int, int], AttentionExtras]] = field(default_factory=dict)
    problem: str | None = None
    _keys: list[torch.Tensor] = field(default_factory=list)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        arguments: dict[str, Any],
    ) -> torch.Tensor:
        """Note shapes and extras; the output is zero."""
        layer = int(getattr(module, "layer_idx", -1))
        if layer in self.layers:
            self.problem = f"layer {layer} attends twice"
        if value.shape != key.shape:
            self.problem = "its keys and values differ in shape"
        if any(key.data_ptr() == other.data_ptr() for other in self._keys):
            self.problem = "its layers share keys and values"
        if not getattr(module, "is_causal", True):
            self.problem = "its attention is not causal"
        self._keys.append(key)
        for name, argument in arguments.items():
            if isinstance(argument, torch.Tensor) and name not in KNOWN_TENSORS:
                self.problem = f"its attention takes an argument the engine does not know ({name})"
        head_dim = query.shape[2]
        scaling = arguments.get("scaling")
        self.layers[layer] = (
            (query.shape[1], key.shape[1], head_dim),
            AttentionExtras(
                scaling=float(head_dim**-0.5 if scaling is None else scaling),
                sliding_window=arguments.get("sliding_window"),
                softcap=arguments.get("softcap"),
                sinks=arguments.get("s_aux"),
            ),
        )
        return torch.zeros_like(query)

    def result(
        self, config: Any, dtype: torch.dtype, device: torch.device
    ) -> tuple[CacheGeometry, list[AttentionExtras]]:
        """The model's geometry and each layer's extras.

        Raises:
            ValueError: the layers are not all alike, or not all of them attend; says which.
        """
        if self.problem:
            raise ValueError(self.problem)
        expected = int(config.num_hidden_layers)
        if sorted(self.layers) != list(range(expected)):
            raise ValueError(f"{len(self.layers)} of its {expected} layers attend (hybrid models keep other state)")
        shapes = {shape for shape, _ in self.layers.values()}
        if len(shapes) != 1:
            raise ValueError("its layers differ in heads or head size")
        query_heads, kv_heads, head_dim = shapes.pop()
        extras = [self.layers[layer][1] for layer in range(expected)]
        scalings = {one.scaling if one.plain and one.sliding_window is None else None for one in extras}
        scaling = scalings.pop() if len(scalings) == 1 else None
        return CacheGeometry(expected, query_heads, kv_heads, head_dim, dtype, device, scaling), extras


KNOWN_TENSORS = frozenset({"position_ids", "cache_position", "s_aux"})


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kvload_step: StepContext | Probe,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """What ``transformers`` calls in every layer.

    Args:
        module: the attention layer; ``layer_idx`` numbers it.
        query: ``(1, query_heads, tokens, head_dim)``, rotary embedding applied; all sequences of the step in a row.
        key, value: ``(1, kv_heads, tokens, head_dim)``.
        attention_mask: must be None: causality and windows are the cache's business.
        kvload_step: the step, or the probe.

    Returns:
        ``(1, tokens, query_heads, head_dim)`` and None for the weights.
    """
    if attention_mask is not None:
        raise ValueError("the model builds an attention mask of its own")
    output = kvload_step.attend(
        module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), arguments
    )
    return output.unsqueeze(0), None
