"""Everything of SGLang that packed pages hook."""

from kvload.servers.plugins.sglang import hooks

_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"


def install() -> None:
    """Once per process; a second call changes nothing.

    Raises:
        ContractError: a hook did not take.
    """
    from kvload.servers.plugins.sglang.packed import pool

    hooks.wrap(
        {
            f"{_CONFIGURATOR}._build_mha_kv_pool": pool.packed_pool,
            f"{_CONFIGURATOR}.config_from_budget": pool.less_rings,
            "sglang.srt.model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": pool.packed_bytes,
        }
    )
