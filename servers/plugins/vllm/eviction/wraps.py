"""What vLLM offers no hook for: prompt lengths for the attention backend, and chunks that end where the prompt does.

Each wrap replaces one function of vLLM, once, and calls the original. Their parameters stand in the contract.
"""

from typing import Any

import numpy as np

from kvload.servers.plugins.vllm.contract import Expected
from kvload.servers.plugins.vllm.eviction.policy import Counts

WRAPPED = "kvload_wrapped"

EXPECTED = (
    Expected("vllm.distributed.parallel_state:get_tensor_model_parallel_rank", (), device="cuda"),
    Expected("vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata", ("self",), device="cpu"),
    Expected(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
        ("self", "scheduler_output", "batch_desc"),
        ((0, 26),),
        "cuda",
    ),
    Expected(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
        ("self", "scheduler_output", "batch_req_state", "batch_desc"),
        ((0, 32), (0, 33)),
        "cuda",
    ),
    Expected(
        "vllm.v1.core.sched.scheduler:Scheduler._mamba_block_aligned_split",
        ("self", "request", "num_new_tokens", "num_new_local_computed_tokens", "num_external_computed_tokens"),
    ),
    Expected(
        "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.remove_skipped_blocks",
        ("self", "request_id", "processed_computed_tokens", "num_prompt_tokens"),
    ),
    Expected(
        "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager._remove_blocks_in_range",
        ("self", "request_id", "first_block", "last_block"),
    ),
)


class Batch:
    """Prompt lengths of the batch that the older model runner is preparing, which hands them to nobody."""

    prompts: Counts | None = None


def prompt_lengths(release: tuple[int, int]) -> None:
    """Let the attention backend know how long the prompts of its rows are.

    vLLM has a place for them in a batch's metadata (``rswa_prefix_lens``), filled for one model family only.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _wrap_older_runner()
    else:
        _wrap_runner()


def _wrap_runner() -> None:
    """Model runner V2: its batch carries prompt lengths to the metadata; they are put there, on the host."""
    import torch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    original = GPUModelRunner.prepare_inputs
    if hasattr(original, WRAPPED):
        return

    def prepare_inputs(self: Any, *arguments: Any, **options: Any) -> Any:
        batch = original(self, *arguments, **options)
        batch.prompt_lens = torch.from_numpy(self.req_states.prompt_len.np[batch.idx_mapping_np])
        return batch

    setattr(prepare_inputs, WRAPPED, original)
    GPUModelRunner.prepare_inputs = prepare_inputs


def _wrap_older_runner() -> None:
    """Model runner V1, which vLLM's CPU build runs."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._build_attention_metadata
    if hasattr(original, WRAPPED):
        return

    def build(self: Any, *arguments: Any, **options: Any) -> Any:
        Batch.prompts = self.input_batch.num_prompt_tokens_cpu_tensor.numpy()[: self.input_batch.num_reqs].astype(
            np.int64
        )
        try:
            return original(self, *arguments, **options)
        finally:
            Batch.prompts = None

    setattr(build, WRAPPED, original)
    GPUModelRunner._build_attention_metadata = build


def chunks_end_with_the_prompt(release: tuple[int, int]) -> None:
    """No chunk goes beyond the end of its prompt.

    A preempted request comes back with the tokens it had generated. In one chunk with its prompt's end they would see
    the whole prompt; on their own they see what the method kept of it, as they did the first time. The scheduler has a
    function that shortens chunks, for models this plugin refuses.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    original = Scheduler.__init__
    if hasattr(original, WRAPPED):
        return

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807
        original(self, *arguments, **options)
        self.need_mamba_block_aligned_split = True

    setattr(__init__, WRAPPED, original)
    Scheduler.__init__ = __init__
    Scheduler._mamba_block_aligned_split = until_prompt_end


def until_prompt_end(
    self: Any,
    request: Any,
    num_new_tokens: int,
    num_new_local_computed_tokens: int = 0,
    num_external_computed_tokens: int = 0,
) -> int:
    """How many of the tokens a step may take of a request: those up to its prompt's end, if it is not there yet."""
    start = request.num_computed_tokens + num_new_local_computed_tokens + num_external_computed_tokens
    left = request.num_prompt_tokens - start
    return min(num_new_tokens, left) if left > 0 else num_new_tokens
