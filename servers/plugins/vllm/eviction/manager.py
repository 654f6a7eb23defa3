"""The scheduler's side: a manager that frees what the policy says is gone, and the specification that names it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from kvload.servers.plugins.counting import SchedulerCounts
from kvload.servers.plugins.vllm import contract, layout
from kvload.servers.plugins.vllm.eviction.policy import PAGE_ALIGNMENT, chosen
from kvload.servers.plugins.vllm.selection import current

logger = init_logger("vllm.kvload")


@dataclass(frozen=True, kw_only=True)
class EvictionSpec(FullAttentionSpec):
    """Full attention whose leading blocks go. It has no field of its own: vLLM's merging of layers drops such."""


class EvictionManager(FullAttentionManager):
    """Frees the blocks that :meth:`Policy.first_kept` counts, each time a request is scheduled.

    vLLM asks with the tokens of steps whose output it has seen: a block is free no earlier than the step that compacted
    it is over, and what takes it writes in a later step.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._policy = chosen(self.block_size)
        self._counts = SchedulerCounts(str(current()), logger.info)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Free a request's blocks that are gone.

        Args:
            processed_computed_tokens: computed tokens of steps that are over.
            num_prompt_tokens: of the request; None where vLLM frees something else.
        """
        if num_prompt_tokens is None:
            return
        first = self._policy.start_blocks
        last = self._policy.first_kept(processed_computed_tokens, num_prompt_tokens)
        if last > first:
            free = self.block_pool.get_num_free_blocks()
            self._remove_blocks_in_range(request_id, first, last)
            freed = self.block_pool.get_num_free_blocks() - free
            if freed:
                held = sum(not block.is_null for block in self.req_to_blocks[request_id])
                self._counts.add(request_id, freed, held * self.block_size)
        self._counts.tell()

    def free(self, request_id: str) -> None:
        """Free all blocks of a request that ended or was preempted."""
        self._counts.forget(request_id)
        super().free(request_id)

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """None: compacted blocks are nobody else's prefix."""
        return 0

    def cache_blocks(self, *arguments: Any, **options: Any) -> None:
        """Offer no block to other requests: compaction rewrites it."""

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: Sequence[int],
        *rest: Any,
        **more: Any,
    ) -> tuple[tuple[list[Any], ...], int]:
        """Never one."""
        return tuple([] for _ in kv_cache_group_ids), 0


def eviction_spec(spec: Any) -> Any:
    """A layer's specification as its policy needs it: with room for scores behind each page, or with a window.

    Raises:
        ContractError: the layer is not one of plain full attention.
    """
    if isinstance(spec, EvictionSpec):
        return spec
    if type(spec) is not FullAttentionSpec:
        contract.refuse(current().method, [f"where a layer is not one of full attention ({type(spec).__name__})"])
    policy = chosen(spec.block_size)
    if policy.scores:
        room = layout.page_bytes(spec) + 4 * spec.block_size * spec.num_kv_heads
        return layout.respecified(EvictionSpec, spec, page_size_padded=-(-room // PAGE_ALIGNMENT) * PAGE_ALIGNMENT)
    return layout.respecified(EvictionSpec, spec)


KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(EvictionSpec, EvictionManager, uniform_type_base_spec=EvictionSpec)
