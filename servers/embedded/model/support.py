"""Which models the engine serves rightly; the others are refused by name, before their weights are read."""

from typing import Any

from kvload.errors import UsageError

SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config(decoder=True)


def check_config(config: Any, model_class: Any, name: str) -> None:
    """Refuse a model whose attention the engine's cache cannot stand for.

    Args:
        config: the model's ``transformers`` configuration.
        model_class: the class that would be built for it; None where there is no causal language model.
        name: the model as the user named it.

    Raises:
        UsageError: says which property of the model is in the way.
    """
    reason = _reason(config, model_class)
    if reason:
        raise UsageError(
            f"the embedded engine cannot serve {config.model_type} models like this one: {reason}",
            where=name,
            hint="take a decoder-only model with plain attention, or another engine",
        )


def _reason(config: Any, model_class: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if model_class is None:
        return "transformers has no causal language model of this type"
    text = text_config(config)
    if getattr(text, "kv_lora_rank", None):
        return "multi-head latent attention (MLA) stores no keys and values per head"
    foreign = sorted(set(getattr(text, "layer_types", None) or ()) - SERVED_LAYER_TYPES)
    if foreign:
        return f"it has layers of type {', '.join(foreign)} (hybrid and linear attention keep other state)"
    if getattr(text, "num_kv_shared_layers", 0):
        return "its layers share keys and values"
    if getattr(text, "use_bidirectional_attention", None):
        return "its attention is bidirectional"
    if getattr(model_class, "_is_stateful", False):
        return "it keeps recurrent state beside the KV cache"
    if not getattr(model_class, "_supports_attention_backend", False):
        return "its attention cannot be replaced (no _supports_attention_backend)"
    if (getattr(text, "rope_parameters", None) or {}).get("rope_type") == "dynamic":
        return "dynamic rotary scaling depends on the longest request of a batch"
    return None


def context_limit(config: Any) -> int | None:
    """Positions the model can take; None where its configuration does not say.

    With "longrope" the rotary factors change for the whole batch once a position passes the original limit, so that
    the engine stays below it.
    """
    text = text_config(config)
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limit = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", limit)
    return int(limit) if limit else None
