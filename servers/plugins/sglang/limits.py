"""What of SGLang the methods do not go with: refused before a request is served, all reasons at once."""

from collections.abc import Sequence
from typing import Any

import torch

from kvload.servers.plugins.vllm import contract


def problems(runner: Any) -> list[str]:
    """What in SGLang's configuration stands in the way of every method, each as the rest of 'does not run ...'.

    Args:
        runner: a ``ModelRunner``, its pools built.
    """
    args, model = runner.server_args, runner.model_config
    # Without a GPU only the tests come here.
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 9
    found = [
        (args.speculative_algorithm is not None, "with speculative decoding: rejected tokens cannot be taken back"),
        (
            args.disaggregation_mode != "null",
            "with prefill and decode apart: these slots mean nothing to another server",
        ),
        (args.enable_dp_attention or args.dp_size > 1, "with data parallel attention or replicas in one server"),
        (args.pp_size > 1, "with pipeline parallelism"),
        (args.dcp_size > 1, "with decode context parallelism"),
        (_set(args, "enable_prefill_cp"), "with prefill context parallelism"),
        (_set(args, "enable_mixed_chunk"), "with prompts and generated tokens in one batch (--enable-mixed-chunk)"),
        (_set(args, "enable_two_batch_overlap"), "with two-batch overlap"),
        (_set(args, "enable_pdmux"), "with multiplexed prefill (--enable-pdmux)"),
        (_set(args, "enable_hierarchical_cache"), "with a hierarchical cache"),
        (_set(args, "enable_lmcache"), "with LMCache"),
        (_set(args, "enable_hisparse"), "with HiSparse"),
        (_set(args, "enable_page_major_kv_layout"), "with page-major keys and values"),
        (_set(args, "enable_streaming_session"), "with streaming sessions: a prompt's length would change"),
        (_set(args, "strip_thinking_cache"), "with --strip-thinking-cache"),
        (args.is_embedding, "with a model that does not generate"),
        (args.chunked_prefill_size is None or args.chunked_prefill_size <= 0, "without chunked prefill"),
        (args.kv_cache_dtype not in {"auto", "bf16", "bfloat16"}, f"with --kv-cache-dtype {args.kv_cache_dtype}"),
        (str(args.cuda_graph_config.prefill.backend) == "full", "with full CUDA graphs of prompts"),
        (major not in {8, 9}, f"on a GPU of compute capability {major}.x: FlashAttention 3 is for 8.x and 9.x"),
        (runner.use_mla_backend, "with latent attention"),
        (runner.sliding_window_size is not None, "where a layer is not one of full attention"),
        (model.is_encoder_decoder, "with an encoder-decoder model"),
        (_set(model, "is_local_attention_model"), "with local attention"),
        (getattr(model, "v_head_dim", model.head_dim) != model.head_dim, "where keys and values have different sizes"),
    ]
    return [reason for wrong, reason in found if wrong]


def check(method: str, runner: Any, more: Sequence[str] = ()) -> None:
    """Refuse a configuration.

    Args:
        more: problems found elsewhere.

    Raises:
        ContractError: names every problem.
    """
    contract.refuse(method, [*problems(runner), *more])


def check_layer(method: str, layer: Any, sinks: Any) -> None:
    """Refuse what a layer asks of its attention beyond plain softmax.

    Args:
        layer: a ``RadixAttention``.

    Raises:
        ContractError: names every problem.
    """
    found = [
        (sinks is not None, "with learned attention sinks"),
        (layer.is_cross_attention, "with cross-attention"),
        (layer.sliding_window_size is not None and layer.sliding_window_size > -1, "with layers that have a window"),
        (bool(layer.logit_cap), "with a cap on attention scores"),
    ]
    contract.refuse(method, [reason for wrong, reason in found if wrong])


def _set(holder: Any, name: str) -> bool:
    return bool(getattr(holder, name, False))
