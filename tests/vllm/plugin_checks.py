"""Runs in vLLM's own Python: the plugin against this vLLM's classes, without a server or a GPU.

    KVLOAD_VLLM_METHOD='{"method": "snapkv", "budget": 128}' PYTHONPATH=FOLDER python plugin_checks.py

``FOLDER`` is what :func:`kvload.servers.plugins.injection.plugin_folder` makes; a release's source in front of it
stands for that release, compiled parts or not. Prints what it checked; ends with an error otherwise.
"""

import os
import random
import types
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import triton
import vllm
from triton import language
from vllm import triton_utils

# vLLM hides Triton where it finds no GPU; in the interpreter the plugin's kernels need none.
triton_utils.triton, triton_utils.tl = triton, language

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.single_type_kv_cache_manager import get_manager_for_kv_cache_spec
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvload.servers.plugins.vllm import contract, layout, selection, table
from kvload.servers.plugins.vllm.eviction.policy import Policy, chosen

BLOCK = 16


def contracts() -> None:
    """Every function the plugin relies on in this release, those of either device."""
    release = contract.release_of(vllm.__version__)
    row = table.row_of(selection.current())
    for expected in (*contract.EXPECTED, *row.expects):
        if not expected.releases or release in expected.releases:
            contract.check_function(expected, vllm.__version__)
    layout.let_backends_choose_pages(release)


def specification(gpu: Any) -> Any:
    """A page with room for scores survives vLLM's merging of layers."""
    plain = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    spec = gpu.EvictionBackend.customize_spec(plain)
    scores = chosen(BLOCK).scores
    assert spec.page_size_bytes == (8448 if scores else 8192)
    merged = type(spec).merge([spec, spec])
    assert type(merged) is type(spec)
    assert merged.page_size_bytes == spec.page_size_bytes
    return spec


def manager(spec: Any, policy: Policy) -> None:
    """Requests come, grow, are preempted and end, with a step in flight: no block is owned twice, none is lost."""
    pool = BlockPool(400, enable_caching=False, hash_block_size=BLOCK)
    made = get_manager_for_kv_cache_spec(
        spec,
        max_in_flight_tokens=4096,
        max_model_len=4096,
        block_pool=pool,
        enable_caching=False,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )
    assert type(made).__name__ == "EvictionManager"
    free = pool.get_num_free_blocks()
    source = random.Random(0)
    requests: dict[str, tuple[int, int, int, int]] = {}  # scheduled, processed, prompt, answer
    gone = 0
    for step in range(3000):
        if len(requests) < 4 and source.random() < 0.2:
            requests[f"r{step}"] = (0, 0, source.randint(1, 700), source.randint(1, 300))
        for name, (scheduled, processed, prompt, answer) in list(requests.items()):
            made.remove_skipped_blocks(name, processed, prompt)
            new = min(source.choice([1, 128, 200]), prompt - scheduled) if scheduled < prompt else 1
            needed = -(-(scheduled + new) // BLOCK)
            short = needed - len(made.req_to_blocks[name]) > pool.get_num_free_blocks()
            if short or source.random() < 0.01 or scheduled >= prompt + answer:
                made.free(name)
                del requests[name]
                continue
            made.allocate_new_blocks(name, scheduled + new, scheduled + new)
            first = int(policy.first_kept(scheduled, prompt))
            gone = max(gone, first)
            blocks = made.req_to_blocks[name]
            assert all(
                not blocks[place].is_null for place in range(needed) if place >= first or place < policy.start_blocks
            )
            requests[name] = (scheduled + new, scheduled, prompt, answer)
        ids = [block.block_id for name in requests for block in made.req_to_blocks[name] if not block.is_null]
        assert len(ids) == len(set(ids))
        assert free - pool.get_num_free_blocks() == len(ids)
    for name in requests:
        made.free(name)
    assert pool.get_num_free_blocks() == free
    assert gone > 0


def builder(gpu: Any, spec: Any, policy: Policy) -> None:
    """Metadata as the model runner asks for it, by keyword: shifted, padded for a graph, and while one is captured."""
    made = object.__new__(gpu.EvictionBuilder)
    made.__dict__.update(
        _policy=policy, block_size=BLOCK, _table=None, _held=torch.zeros(65, dtype=torch.int32),
        _given=torch.zeros(5, 66, dtype=torch.int32), _scratch=None, _counts=None, _tells=True,
        device=torch.device("cpu"),
        aot_schedule=False, use_full_cuda_graph=True, max_cudagraph_size=64, max_num_splits=32, dcp_world_size=1,
        aot_sliding_window=(-1, -1), rswa_window=None, kv_cache_spec=spec, kv_cache_dtype=torch.bfloat16,
        cache_config=types.SimpleNamespace(cache_dtype="auto"),
    )  # fmt: skip
    after, prompts = [300, 480, 700], [250, 480, 900]
    for padding, capturing in ((0, False), (2, False), (0, True)):
        lengths = torch.tensor(after + [0] * padding, dtype=torch.int32)
        first = torch.tensor([0, 1, 201, 501] + [501] * padding, dtype=torch.int32)
        batch = CommonAttentionMetadata(
            query_start_loc=first, query_start_loc_cpu=first.clone(), seq_lens=lengths,
            seq_lens_cpu_upper_bound=lengths.clone(), max_seq_len=700, num_reqs=3 + padding, num_actual_tokens=501,
            max_query_len=300, block_table_tensor=torch.randint(1, 999, (3 + padding, 288), dtype=torch.int32),
            slot_mapping=torch.zeros(501, dtype=torch.int64),
            rswa_prefix_lens=None if capturing else torch.tensor(prompts, dtype=torch.int32),
        )  # fmt: skip
        if capturing:
            metadata = made.build_for_cudagraph_capture(batch)
            assert metadata.eviction.scores == policy.scores
            assert metadata.eviction.rows.first_before.tolist() == [0, 0, 0] or not policy.scores
            continue
        metadata = made.build(common_prefix_len=0, common_attn_metadata=batch)
        gone = [
            int(policy.first_kept(n - new, prompt))
            for n, new, prompt in zip(after, (1, 200, 300), prompts, strict=True)
        ]
        assert any(gone)
        assert (
            metadata.seq_lens.tolist()
            == [n - BLOCK * blocks for n, blocks in zip(after, gone, strict=True)] + [0] * padding
        )
        for row, blocks in enumerate(gone):
            count = -(-after[row] // BLOCK) - blocks
            assert torch.equal(
                metadata.block_table[row, :count], batch.block_table_tensor[row, blocks : blocks + count]
            )


def main() -> None:
    contracts()
    from kvload.servers.plugins.vllm.eviction import gpu

    policy = chosen(BLOCK)
    spec = specification(gpu)
    manager(spec, policy)
    builder(gpu, spec, policy)
    print(f"vLLM {vllm.__version__}, {selection.current()}: contract, pages, manager, metadata")  # noqa: T201


if __name__ == "__main__":
    main()
