"""Runs with SGLang's source on the path: its scheduler's side and its attention backend, with a method of eviction.

    KVLOAD_SGLANG_METHOD='{"method": "snapkv", "budget": 64, "window": 16}' \\
        PYTHONPATH=SOURCE:CHECKOUT python eviction_checks.py

Requests are read in chunks, generate, are retracted and end, with a step in flight: what the scheduler frees is made
unreadable at once, before the step in flight reads. Outputs are held against a second implementation of the eviction.
Prints what it checked; ends with an error otherwise.
"""

import os
import random
import types
from collections import deque
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.sglang import stubs

stubs.install()

import torch
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

from kvload.servers.plugins import sglang as plugin
from kvload.servers.plugins.sglang.selection import current

plugin.register()

from kvload.servers.plugins.sglang.eviction import admission, backend, cache
from kvload.servers.plugins.sglang.eviction.policy import chosen, held, leading
from tests.sglang import rig
from tests.vllm import eviction_reference

POLICY = chosen()
HEADS, GROUP, SIZE = rig.HEADS, rig.GROUP, rig.SIZE


class Reference(eviction_reference.Reference):
    """The second implementation, on one layer that is fed tensors."""

    def __init__(self, prompt: int) -> None:
        options = {name: int(getattr(POLICY, name)) for name in POLICY.__dataclass_fields__ if name != "block"}
        self.method, self.options, self.state, self.prompt = current().method, options, {}, prompt

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """``(tokens, heads, size)`` each, as the next tokens of the request."""
        query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
        out, _ = self._attend(types.SimpleNamespace(layer_idx=0), query, key, value, None, SIZE**-0.5)
        return out[0]


def request(name: int, prompt: int, answer: int) -> Any:
    """What the cache and the adder look at of a ``Req``."""
    return types.SimpleNamespace(
        rid=str(name), kv=None, req_pool_idx=None, decode_batch_idx=0, extend_range=None, kv_committed_len=0,
        origin_input_ids=[0] * prompt, output_ids=[], answer=answer, inflight_middle_chunks=1, prefix_indices=[],
        sampling_params=types.SimpleNamespace(max_new_tokens=answer, ignore_eos=True), done=0,
        reference=Reference(prompt), tokens=[],
    )  # fmt: skip


class Engine:
    """SGLang's loop with a step in flight.

    Args:
        graphs: whether steps of generated tokens go the way of a graph's replay.
    """

    def __init__(self, graphs: bool, seed: int) -> None:
        self.rig = rig.Rig(1)
        self.backend = backend.EvictionBackend(self.rig.runner)
        self.graphs = graphs
        if graphs:
            self.backend.init_cuda_graph_state(rig.REQUESTS, rig.REQUESTS)
        self.cache = cache.EvictingCache(
            types.SimpleNamespace(
                req_to_token_pool=self.rig.requests, token_to_kv_pool_allocator=self.rig.allocator, page_size=1
            )
        )
        self.flight: deque[Any] = deque()
        self.source = torch.Generator().manual_seed(seed)
        self.worst = 0.0
        self._captured: set[int] = set()
        self.releasing = False
        original = self.rig.allocator.free

        def free(slots: torch.Tensor) -> None:
            # What a request frees by ending is overwritten no earlier than by the step after that in flight.
            for buffer in (self.rig.pool.k_buffer[0], self.rig.pool.v_buffer[0]) if self.releasing else ():
                buffer[slots.long()] = torch.nan
            original(slots)

        self.rig.allocator.free = free

    def step(self, reqs: list[Any], stops: list[int], decoding: bool) -> None:
        """Prepare a step, and only then run the one before it."""
        from sglang.srt.managers.schedule_batch import ReqKvInfo

        for req, stop in zip(reqs, stops, strict=True):
            if not decoding:
                req.extend_range = types.SimpleNamespace(start=req.kv_committed_len, end=stop)
        scheduled = types.SimpleNamespace(reqs=reqs, forward_mode=rig.Mode(decoding))
        self.releasing = True
        self.cache.release(scheduled)
        self.releasing = False
        self.rig.requests.alloc(reqs)
        starts = [req.kv_committed_len for req in reqs]
        for req, start, stop in zip(reqs, starts, stops, strict=True):
            slots = self.rig.allocator.alloc(stop - start)
            assert slots is not None
            self.rig.requests.req_to_token[req.req_pool_idx, start:stop] = slots.int()
            if req.kv is None:
                req.kv = ReqKvInfo(kv_allocated_len=stop, swa_evicted_seqlen=0)
            req.kv.kv_allocated_len = req.kv_committed_len = stop
            req.decode_batch_idx += decoding
        prompts = [len(req.origin_input_ids) for req in reqs]
        made = rig.batch(self.rig, [req.req_pool_idx for req in reqs], starts, stops, prompts, decoding)
        self.flight.append((made, list(reqs), starts, stops))
        if len(self.flight) > 1:
            self.run()

    def run(self) -> None:
        """The oldest step in flight."""
        made, reqs, starts, stops = self.flight.popleft()
        count = len(made.out_cache_loc)
        for req, stop in zip(reqs, stops, strict=True):
            while len(req.tokens) < stop:  # a retracted request's tokens come again as they were
                req.tokens.append(torch.randn(HEADS * (GROUP + 2), SIZE, generator=self.source))
        fresh = torch.cat([torch.stack(req.tokens[a:b]) for req, a, b in zip(reqs, starts, stops, strict=True)])
        q, k, v = rig.parts(fresh)
        decoding = made.forward_mode.decoding
        if decoding and self.graphs:
            self.backend.init_forward_metadata_out_graph(made, in_capture=made.batch_size not in self._captured)
            self._captured.add(made.batch_size)
        else:
            self.backend.init_forward_metadata(made)
        forward = self.backend.forward_decode if decoding else self.backend.forward_extend
        out = forward(q.reshape(count, -1), k, v, self.rig.layer(), made).view(count, HEADS * GROUP * SIZE)
        assert not out.isnan().any(), "a freed slot was read"
        place = 0
        for req, start, stop in zip(reqs, starts, stops, strict=True):
            req.outs = getattr(req, "outs", {})
            for position in range(start, stop):
                req.outs[position] = out[place + position - start]
            place += stop - start

    def drain(self) -> None:
        """Run what is in flight."""
        while self.flight:
            self.run()

    def end(self, req: Any) -> None:
        """A request ends, or is retracted."""
        self.cache.cache_finished_req(req, kv_len_to_handle=req.kv_committed_len)
        req.kv = None
        self.rig.requests.free(req)
        req.kv_committed_len = req.decode_batch_idx = 0
        req.extend_range = None

    def judge(self, req: Any) -> None:
        """Hold a request's outputs against the second implementation's."""
        prompt, total = len(req.origin_input_ids), len(req.tokens)
        cuts = [prompt, *range(prompt + 1, total + 1)]
        start = 0
        for stop in cuts:
            fresh = torch.stack(req.tokens[start:stop])
            wanted = req.reference.attend(*rig.parts(fresh))
            for position in range(start, stop):
                gap = (wanted[position - start].flatten() - req.outs[position]).abs().max()
                self.worst = max(self.worst, float(gap))
                assert gap < 2e-4, f"token {position} of request {req.rid} (prompt {prompt}): {float(gap)}"
            start = stop


def lives(graphs: bool, seed: int) -> None:
    """Requests through their lives."""
    source = random.Random(seed)
    engine = Engine(graphs, seed)
    waiting = [request(i, source.choice([20, 63, 64, 65, 100, 130, 170]), source.randrange(4, 45)) for i in range(9)]
    everyone = list(waiting)
    running: list[Any] = []
    retracted = 0
    before = engine.rig.allocator.available_size()
    while waiting or running:
        if waiting and len(running) < rig.REQUESTS - 1 and source.random() < 0.4:
            req = waiting.pop(0)
            total = len(req.origin_input_ids) + len(req.output_ids)
            start = 0
            while start < total:
                stop = min(total, start + source.choice([16, 50, 64, 200]))
                req.prefix_indices, req.full_untruncated_fill_ids = [0] * start, [0] * total
                left = admission.until_prompt_end(engine.cache, req)
                stop = stop if left is None else min(stop, start + left)
                engine.step([req], [stop], False)
                start = stop
            running.append(req)
            req.output_ids.append(0)
            continue
        if not running:
            continue
        engine.step(running, [req.kv_committed_len + 1 for req in running], True)
        for req in list(running):
            req.output_ids.append(0)
            if len(req.output_ids) >= req.answer:
                running.remove(req)
                engine.end(req)
            elif source.random() < 0.01:
                retracted += 1
                req.retracted = True
                running.remove(req)
                engine.drain()
                engine.end(req)
                waiting.insert(0, req)
    engine.drain()
    assert engine.rig.allocator.available_size() == before, "slots were lost or freed twice"
    free = engine.rig.allocator.free_pages.sort().values
    assert torch.equal(free, torch.arange(1, rig.SLOTS + 1)), "a slot is free twice"
    for req in everyone:
        # H2O evicts between tokens that a retracted request computes together when it comes back.
        if not (hasattr(req, "retracted") and POLICY.judges is None):
            engine.judge(req)
    print(f"lives: graphs {graphs}, worst {engine.worst:.1e}, retracted {retracted}")  # noqa: T201
    assert engine.cache.counts._blocks > 0


def arithmetic() -> None:
    """What is held never falls under what a query sees, whatever the order of steps."""
    for prompt in (1, 63, 64, 65, 200):
        gone = [leading(POLICY, n, prompt) for n in range(400)]
        assert gone == sorted(gone)
        assert all(0 <= held(POLICY, n, prompt) <= n for n in range(400))
    table = torch.arange(400, dtype=torch.int32)
    for prompt in (1, 64, 200):
        policy: Any = POLICY
        many = policy.first_kept(table, torch.full((400,), prompt, dtype=torch.int32)) * POLICY.block
        assert many.tolist() == [leading(POLICY, n, prompt) for n in range(400)]


def main() -> None:
    """All checks."""
    rig.publish()
    FlashAttentionBackend._compute_scheduler_metadata = lambda *_, **__: None
    vars(backend)["flash_attn_with_kvcache"] = rig.paged
    eviction_reference.BLOCK = POLICY.block
    arithmetic()
    for seed, graphs in enumerate((False, True)):
        lives(graphs, seed)


if __name__ == "__main__":
    main()
