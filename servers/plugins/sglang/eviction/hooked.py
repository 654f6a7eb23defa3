"""Everything of SGLang that methods of eviction hook."""

from kvload.servers.plugins.sglang import hooks
from kvload.servers.plugins.sglang.eviction import admission, cache, pool
from kvload.servers.plugins.sglang.selection import BACKEND

_BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"
_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"


def install() -> None:
    """Once per process; a second call changes nothing.

    Raises:
        ContractError: a hook did not take.
    """
    from sglang.srt.mem_cache import registry

    if registry.get_radix_cache_factory(BACKEND) is None:
        registry.register_radix_cache_backend(BACKEND, cache.evicting_cache)
    hooks.wrap(
        {
            f"{_BATCH}.maybe_evict_swa": cache.release,
            f"{_BATCH}.check_decode_mem": cache.release,
            f"{_ADDER}._get_running_request_total_token_offset": admission.further_slots,
            f"{_ADDER}.add_one_req": admission.admit,
            f"{_ADDER}.add_chunked_req": admission.admit_chunk,
            "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._build_mha_kv_pool": pool.with_scores,
            "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": (
                pool.with_score_bytes
            ),
        }
    )
