"""What the plugin refuses of vLLM's configuration, without vLLM: several GPUs."""

from types import SimpleNamespace
from typing import Any

import pytest

from kvload.servers.plugins.vllm import selection
from kvload.servers.plugins.vllm.contract import ContractError
from kvload.servers.plugins.vllm.eviction import limits, policy
from kvload.servers.plugins.vllm.selection import VARIABLE, Selection


def config(gpus: int, kv_heads: int) -> Any:
    """As much of a ``VllmConfig`` as is looked at."""
    return SimpleNamespace(
        speculative_config=None,
        kv_transfer_config=None,
        parallel_config=SimpleNamespace(tensor_parallel_size=gpus),
        cache_config=SimpleNamespace(enable_prefix_caching=False, cache_dtype="auto", block_size=16),
        model_config=SimpleNamespace(runner_type="generate", get_total_num_kv_heads=lambda: kv_heads),
    )


@pytest.mark.parametrize(
    ("method", "gpus", "kv_heads", "refused"),
    [("snapkv", 2, 8, False), ("snapkv", 8, 8, False), ("snapkv", 16, 8, True), ("streamingllm", 16, 8, False)],
)
def test_gpus_that_share_a_head_are_refused_where_it_chooses_by_score(
    method: str, gpus: int, kv_heads: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, selection.write(Selection(method, {})))
    selection.current.cache_clear()
    policy.chosen.cache_clear()
    try:
        if not refused:
            limits.check(config(gpus, kv_heads))
            return
        with pytest.raises(ContractError, match="16 GPUs with 8 KV heads"):
            limits.check(config(gpus, kv_heads))
    finally:
        selection.current.cache_clear()
        policy.chosen.cache_clear()
