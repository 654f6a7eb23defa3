"""What SGLang's scheduler reckons with before it admits a request, and where chunks of a retracted request end.

SGLang reserves for every running request a share of the tokens it may still generate. Under eviction most of them take
no further slot: what is reserved is what the policy will hold at the end over what it holds now.
"""

from typing import Any

from kvload.servers.plugins.sglang.eviction.cache import FREE_EVERY, EvictingCache
from kvload.servers.plugins.sglang.eviction.policy import held


def further_slots(original: Any, adder: Any, req: Any) -> Any:
    """Around the reckoning of what a running request will still take."""
    cache = adder.tree_cache
    if not isinstance(cache, EvictingCache):
        return original(adder, req)
    whole = original(adder, req)
    if whole <= 0 or req.kv is None:
        return whole
    policy, prompt, now = cache.policy, len(req.origin_input_ids), req.kv_committed_len
    left = req.sampling_params.max_new_tokens - len(req.output_ids)
    holds = now - max(0, req.kv.swa_evicted_seqlen - policy.start)
    grows = held(policy, now + left, prompt) + policy.block + FREE_EVERY - holds
    return min(whole, max(0, grows) * adder.new_token_ratio)


def admit(original: Any, adder: Any, req: Any, has_chunked_req: bool, truncation_align_size: int | None) -> Any:
    """Around the admission of a request.

    Where an answer's length is forced, SGLang reckons for each running request with every token to come, as if none
    were ever freed before its end; it is led to its other way, which asks :func:`further_slots`.
    """
    cache = adder.tree_cache
    if not isinstance(cache, EvictingCache):
        return original(adder, req, has_chunked_req, truncation_align_size)
    left = until_prompt_end(cache, req)
    cache.admitting = True
    try:
        if left is None or left >= adder.rem_chunk_tokens:
            return original(adder, req, has_chunked_req, truncation_align_size)
        if has_chunked_req or adder.new_chunked_req is not None:
            from sglang.srt.managers.schedule_policy import AddReqResult

            return AddReqResult.OTHER  # only one request at a time may be in chunks
        return within(adder, left, lambda: original(adder, req, has_chunked_req, truncation_align_size))
    finally:
        cache.admitting = False


def admit_chunk(original: Any, adder: Any, req: Any) -> Any:
    """Around the next chunk of a request that is in chunks."""
    cache = adder.tree_cache
    left = until_prompt_end(cache, req) if isinstance(cache, EvictingCache) else None
    if left is None or left >= adder.rem_chunk_tokens:
        return original(adder, req)
    return within(adder, left, lambda: original(adder, req))


def until_prompt_end(cache: EvictingCache, req: Any) -> int | None:
    """Tokens up to the end of the prompt, where what is left to compute goes beyond it; None where it does not.

    A retracted request comes back with the tokens it had generated. In one chunk with its prompt's end they would see
    the whole prompt; on their own they see what the method kept of it, as they did the first time.
    """
    if not cache.policy.scores:
        return None
    start = len(req.prefix_indices)
    left = len(req.origin_input_ids) - start
    return left if 0 < left < len(req.full_untruncated_fill_ids) - start else None


def within(adder: Any, most: int, admit_it: Any) -> Any:
    """Admit as if no more than ``most`` tokens of the step's chunk were left, and set the rest aside meanwhile."""
    aside = adder.rem_chunk_tokens - most
    adder.rem_chunk_tokens = most
    try:
        return admit_it()
    finally:
        adder.rem_chunk_tokens += aside
