"""What of SGLang methods of eviction rely on."""

from kvload.servers.plugins.vllm.contract import Expected

_BATCH = "sglang.srt.managers.schedule_batch:ScheduleBatch"
_ADDER = "sglang.srt.managers.schedule_policy:PrefillAdder"
_CACHE = "sglang.srt.mem_cache.chunk_cache:ChunkCache"

EXPECTED = (
    Expected(f"{_BATCH}.maybe_evict_swa", ("self",)),
    Expected(f"{_BATCH}.check_decode_mem", ("self", "selected_indices")),
    Expected(f"{_ADDER}._get_running_request_total_token_offset", ("self", "req")),
    Expected(f"{_ADDER}.add_one_req", ("self", "req", "has_chunked_req", "truncation_align_size")),
    Expected(f"{_ADDER}.add_chunked_req", ("self", "req")),
    Expected("sglang.srt.mem_cache.registry:register_radix_cache_backend", ("name", "factory")),
    Expected(f"{_CACHE}.cache_finished_req", ("self", "req", "is_insert", "kv_len_to_handle")),
    Expected("sglang.srt.mem_cache.allocator.token:TokenToKVPoolAllocator.free", ("self", "free_index")),
    Expected("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.set_kv_buffer", ("self", "layer")),
)
