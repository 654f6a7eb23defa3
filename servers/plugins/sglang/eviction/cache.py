"""The scheduler's side: slots of running requests are freed as the policy says, and the rest when a request ends.

With overlapped scheduling a step is prepared while the one before it runs. What is freed then is what the *running*
step does not read any more: tokens that were gone when that step began.
"""

import logging
from typing import Any

import torch
from sglang.srt.mem_cache.chunk_cache import ChunkCache

from kvload.servers.plugins.counting import SchedulerCounts
from kvload.servers.plugins.sglang.eviction.policy import chosen, leading
from kvload.servers.plugins.sglang.selection import current

FREE_EVERY = 16
"""Slots of a request that are freed together: each time costs a call on the device, and a few more held cost little."""

CHUNK_START = "kvload_chunk_start"
"""Attribute of a request: where the last chunk of its prompt that was scheduled began."""

logger = logging.getLogger("kvload.sglang")


class EvictingCache(ChunkCache):
    """SGLang's cache without sharing, which does not free again what is gone already.

    How far a request is freed stands in ``req.kv.swa_evicted_seqlen``, which SGLang keeps for the same purpose in
    models with a sliding window, resets with the request's slots and does not touch in others.
    """

    admitting = False
    """Whether the scheduler is asking which way to admit a request, see :mod:`.admission`."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.policy = chosen()
        self.counts = SchedulerCounts(str(current()), logger.info)

    @property
    def disable(self) -> bool:
        """As its base class, but for admission."""
        return not self.admitting

    def release(self, batch: Any) -> None:
        """Free what is gone of a batch's requests. May be called at any time of scheduling, also twice.

        Args:
            batch: a ``ScheduleBatch`` that is being prepared.
        """
        freed = []
        extending = batch.forward_mode is not None and batch.forward_mode.is_extend()
        for req in batch.reqs:
            if req.kv is None or req.req_pool_idx is None:
                continue
            settled = settled_tokens(req)
            if extending and req.decode_batch_idx == 0 and req.extend_range is not None:
                setattr(req, CHUNK_START, req.extend_range.start)
            last = leading(self.policy, settled, len(req.origin_input_ids))
            first = max(self.policy.start, req.kv.swa_evicted_seqlen)
            if last - first < FREE_EVERY:
                continue
            freed.append(self.req_to_token_pool.req_to_token[req.req_pool_idx, first:last])
            req.kv.swa_evicted_seqlen = last
            held = req.kv.kv_allocated_len - (last - self.policy.start)
            self.counts.add(req.rid, last - first, held)
        if freed:
            self.token_to_kv_pool_allocator.free(torch.cat(freed))
        self.counts.tell()

    def cache_finished_req(self, req: Any, is_insert: bool = True, *, kv_len_to_handle: int) -> None:
        """Free what a request that ended or was retracted still holds."""
        self.counts.forget(req.rid)
        row = self.req_to_token_pool.req_to_token[req.req_pool_idx, :kv_len_to_handle]
        gone = req.kv.swa_evicted_seqlen
        if gone > self.policy.start:
            row = torch.cat([row[: self.policy.start], row[gone:]])
        self.token_to_kv_pool_allocator.free(row)
        setattr(req, CHUNK_START, 0)


def settled_tokens(req: Any) -> int:
    """Tokens of a request that were computed before the step which may be running began.

    While a chunk of the prompt runs these are the tokens before it; while a token is generated, those before it.
    """
    if req.decode_batch_idx == 0:
        return int(getattr(req, CHUNK_START, 0))
    return int(req.kv_committed_len) - 1


def evicting_cache(context: Any) -> EvictingCache:
    """What SGLang's registry of caches calls.

    Args:
        context: a ``TreeCacheBuildContext``.
    """
    return EvictingCache(context.params)


def release(original: Any, batch: Any, *arguments: Any, **options: Any) -> Any:
    """Around functions of a batch that come before slots are counted or taken."""
    if isinstance(batch.tree_cache, EvictingCache):
        batch.tree_cache.release(batch)
    return original(batch, *arguments, **options)
