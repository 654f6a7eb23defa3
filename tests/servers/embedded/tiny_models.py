"""Tiny random models of many families, for tests."""

import copy
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "mistral-sliding": ("MistralConfig", {"sliding_window": 7, "head_dim": 16}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "olmo": ("OlmoConfig", {}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 6, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.2}),
    "cohere": ("CohereConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
    "gpt-neox": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 16, "sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration of a family, small; None removes a common setting."""
    import transformers

    name, own = FAMILIES[family]
    settings = {key: value for key, value in {**COMMON, **own, **changes}.items() if value is not None}
    if own.get("sliding_window", 0) is None:
        settings["sliding_window"] = None
    return getattr(transformers, name)(**settings)


def tiny_module(config: Any, implementation: str, seed: int = 0) -> Any:
    """A random model; weights are scaled up so that its greedy answers do not repeat one token."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif name.endswith("sinks"):
                parameter.normal_()
    return module.float().eval()
