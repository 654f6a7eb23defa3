"""What vLLM offers no hook for: request slots for the attention backend, where their rings begin, and their bytes.

Each wrap replaces one function of vLLM, once, and calls the original. Their parameters stand in the contract.
"""

from typing import Any

from kvload.servers.plugins.vllm import contract
from kvload.servers.plugins.vllm.contract import Expected
from kvload.servers.plugins.vllm.packed.rings import STARTS
from kvload.servers.plugins.vllm.selection import current

WRAPPED = "kvload_wrapped"

EXPECTED = (
    Expected("vllm.distributed.parallel_state:get_tensor_model_parallel_rank", (), device="cuda"),
    Expected(
        "vllm.v1.attention.backends.utils:split_decodes_and_prefills",
        ("common_attn_metadata", "decode_threshold"),
        device="cuda",
    ),
    Expected("vllm.v1.attention.backends.fa_utils:get_flash_attn_version", (), device="cuda"),
)

RING_EXPECTED = (
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
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.add_requests", ("self", "scheduler_output"), device="cuda"
    ),
    Expected("vllm.v1.worker.gpu_worker:Worker.determine_available_memory", ("self",), device="cuda"),
)
"""What methods with a window rely on besides."""


class Batch:
    """The requests of the batch that the older model runner is preparing, row by row; None between batches."""

    requests: list[str] | None = None


def request_slots(release: tuple[int, int]) -> None:
    """Let the attention backend know which request a row is: its slot, or on the older runner its name."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _wrap_older_runner()
        return
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    original = GPUModelRunner.prepare_inputs
    if not hasattr(original, WRAPPED):

        def prepare_inputs(self: Any, *arguments: Any, **options: Any) -> Any:
            batch = original(self, *arguments, **options)
            # The one field of a batch that reaches the attention's metadata and that no other model fills.
            batch.prompt_lens = batch.idx_mapping
            return batch

        setattr(prepare_inputs, WRAPPED, original)
        GPUModelRunner.prepare_inputs = prepare_inputs
    entering = GPUModelRunner.add_requests
    if not hasattr(entering, WRAPPED):

        def add_requests(self: Any, scheduler_output: Any) -> Any:
            found = entering(self, scheduler_output)
            for request in scheduler_output.scheduled_new_reqs:
                STARTS.enter(self.req_states.req_id_to_index[request.req_id], request.num_computed_tokens)
            return found

        setattr(add_requests, WRAPPED, entering)
        GPUModelRunner.add_requests = add_requests


def _wrap_older_runner() -> None:
    """Model runner V1, which vLLM's CPU build runs; its rows change places, its requests keep their names."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._build_attention_metadata
    if hasattr(original, WRAPPED):
        return

    def build(self: Any, *arguments: Any, **options: Any) -> Any:
        Batch.requests = list(self.input_batch.req_ids[: self.input_batch.num_reqs])
        try:
            return original(self, *arguments, **options)
        finally:
            Batch.requests = None

    setattr(build, WRAPPED, original)
    GPUModelRunner._build_attention_metadata = build


def rings_are_counted(release: tuple[int, int]) -> None:
    """Take the rings' bytes off a pool whose size is given in bytes, which vLLM does not profile."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return
    from vllm.v1.worker.gpu_worker import Worker

    original = Worker.determine_available_memory
    if hasattr(original, WRAPPED):
        return

    def determine_available_memory(self: Any) -> int:
        available = int(original(self))
        if not self.cache_config.kv_cache_memory_bytes:
            return available
        rings = sum(
            layer.impl.ring.nbytes
            for layer in self.vllm_config.compilation_config.static_forward_context.values()
            if getattr(getattr(layer, "impl", None), "ring", None) is not None
        )
        if rings >= available:
            most = self.vllm_config.scheduler_config.max_num_seqs
            contract.refuse(
                current().method,
                [f"with {available} bytes of cache: its window takes {rings} bytes at --max-num-seqs {most}"],
            )
        return available - int(rings)

    setattr(determine_available_memory, WRAPPED, original)
    Worker.determine_available_memory = determine_available_memory
