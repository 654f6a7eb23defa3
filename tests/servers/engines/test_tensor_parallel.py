"""Servers spread over several GPUs: their command lines, and the pool that all of the GPUs hold together."""

from dataclasses import replace

import pytest

from kvload.errors import UsageError
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import Adapter, Claim, LaunchRequest
from kvload.servers.engines.embedded.adapter import EmbeddedAdapter
from kvload.servers.engines.sglang.adapter import SglangAdapter
from kvload.servers.engines.vllm.adapter import VllmAdapter
from kvload.servers.verification.verdict import copies, judge_memory
from tests.servers.engines.test_settings import CPU_MACHINE, GPU_MACHINE, LLAMA_8B, SGLANG, VLLM_GPU

BYTES_8B = 131_072
"""Of a token: 32 layers, 8 KV heads of 128, keys and values, two bytes each."""


def test_vllm_is_told_the_ranks_and_each_gpus_part_of_the_memory() -> None:
    request = LaunchRequest(engine="vllm", tensor_parallel=2, kv_memory=8 * 2**30)
    command = VllmAdapter().plan(request, 1, VLLM_GPU, LLAMA_8B, GPU_MACHINE).command
    assert flag_value(command, "--tensor-parallel-size") == "2"
    assert flag_value(command, "--kv-cache-memory-bytes") == str(4 * 2**30)


def test_sglang_is_told_the_ranks_and_the_tokens_of_the_whole_server() -> None:
    request = LaunchRequest(engine="sglang", tensor_parallel=2, kv_memory=8 * 2**30)
    command = SglangAdapter().plan(request, 1, SGLANG, LLAMA_8B, GPU_MACHINE).command
    assert flag_value(command, "--tp-size") == "2"
    assert flag_value(command, "--max-total-tokens") == str(8 * 2**30 // BYTES_8B)


@pytest.mark.parametrize(
    ("made", "flags"),
    [(VllmAdapter(), ("--tensor-parallel-size", "-tp")), (SglangAdapter(), ("--tp-size", "--tensor-parallel-size"))],
)
def test_the_engines_own_words_count_and_are_not_repeated(made: Adapter, flags: tuple[str, ...]) -> None:
    for flag in flags:
        request = LaunchRequest(engine=made.name, engine_args=(flag, "4"))
        assert made.ranks(request) == 4
        assert made.spread(request) == ()
        with pytest.raises(UsageError, match="say 4"):
            made.ranks(replace(request, tensor_parallel=2))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="one device"):
        EmbeddedAdapter().ranks(LaunchRequest(engine="embedded", tensor_parallel=2))
    with pytest.raises(UsageError, match="2 GPUs are needed, and 1 named"):
        VllmAdapter().plan(
            LaunchRequest(engine="vllm", tensor_parallel=2, gpus=("0",)), 1, VLLM_GPU, LLAMA_8B, CPU_MACHINE
        )


@pytest.mark.parametrize(("tokens", "ok"), [(65_536, True), (65_424, True), (131_072, False), (32_768, False)])
def test_a_servers_pool_is_that_of_all_its_memory(tokens: int, ok: bool) -> None:
    """8 GiB over two GPUs hold 65,536 tokens of the 8B shape: not twice as many, and not half."""
    request = LaunchRequest(engine="vllm", tensor_parallel=2, kv_memory=8 * 2**30)
    verdict = judge_memory(tokens, Claim(BYTES_8B, BYTES_8B), request, VllmAdapter(), LLAMA_8B)
    assert verdict.ok is ok
    assert verdict.figures["checked"]
    assert verdict.figures["expected_tokens"] == 65_536


def test_more_gpus_than_heads_store_each_head_more_than_once() -> None:
    assert copies(8, LLAMA_8B) == 1
    assert copies(16, LLAMA_8B) == 2
    request = LaunchRequest(engine="vllm", tensor_parallel=16, kv_memory=8 * 2**30)
    verdict = judge_memory(32_768, Claim(BYTES_8B, BYTES_8B), request, VllmAdapter(), LLAMA_8B)
    assert verdict.ok
    assert verdict.figures["expected_tokens"] == 32_768


def test_one_gpu_or_an_unknown_memory_is_not_judged() -> None:
    claim = Claim(BYTES_8B, BYTES_8B)
    for request in (
        LaunchRequest(engine="vllm", kv_memory=8 * 2**30),
        LaunchRequest(engine="vllm", tensor_parallel=2),
        LaunchRequest(engine="vllm", tensor_parallel=2, kv_memory=1, engine_args=("--num-gpu-blocks-override", "100")),
    ):
        verdict = judge_memory(5, claim, request, VllmAdapter(), LLAMA_8B)
        assert verdict.ok
        assert not verdict.figures["checked"]


def test_stages_and_copies_take_gpus_of_their_own() -> None:
    arguments = ("--pipeline-parallel-size", "2", "-dp", "3")
    request = LaunchRequest(engine="vllm", tensor_parallel=2, kv_memory=12 * 2**30, engine_args=arguments)
    assert VllmAdapter().width(request) == 12
    command = VllmAdapter().plan(request, 1, VLLM_GPU, LLAMA_8B, GPU_MACHINE).command
    assert flag_value(command, "--kv-cache-memory-bytes") == str(2**30)
    copies_of_two = LaunchRequest(
        engine="sglang", tensor_parallel=2, kv_memory=8 * 2**30, engine_args=("--dp-size", "2")
    )
    assert SglangAdapter().width(copies_of_two) == 4
    command = SglangAdapter().plan(copies_of_two, 1, SGLANG, LLAMA_8B, GPU_MACHINE).command
    assert flag_value(command, "--max-total-tokens") == str(4 * 2**30 // BYTES_8B)
    attention = replace(copies_of_two, engine_args=("--dp-size", "2", "--enable-dp-attention"))
    assert SglangAdapter().width(attention) == 2


def test_the_pools_of_copies_add_up_to_the_servers_memory() -> None:
    request = LaunchRequest(engine="vllm", kv_memory=8 * 2**30, engine_args=("--data-parallel-size", "2"))
    claim = Claim(BYTES_8B, BYTES_8B)
    assert judge_memory(65_536, claim, request, VllmAdapter(), LLAMA_8B).ok
    assert not judge_memory(131_072, claim, request, VllmAdapter(), LLAMA_8B).ok
