"""Packed pages in vLLM: the command lines they lead to, what they claim, and what they are refused with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvload.errors import UsageError
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest
from kvload.servers.engines.vllm.adapter import VllmAdapter
from kvload.servers.engines.vllm.packed import token_bytes
from kvload.servers.engines.vllm.settings import SETTINGS
from kvload.servers.host.machine import Gpu, Machine
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.kernels.formats import PACKED_METHODS, page_format
from kvload.servers.plugins.vllm import selection
from kvload.servers.plugins.vllm.table import ROWS

LLAMA_8B = ModelFacts(
    "m", Path("/models/m"), layers=32, query_heads=32, kv_heads=8, head_size=128, vocab_size=4096, dtype="bfloat16"
)
MACHINE = Machine((Gpu(0, "NVIDIA H100", (9, 0), 81559, 0),), "x", 8, frozenset({"avx512f"}), 2**37)
GPU = Build("vllm", "/v/python", "0.26.0", "cuda", (0, 26, 0))
CPU = Build("vllm", "/v/python", "0.32.0+cpu", "cpu", (0, 32, 0))
SLOTS = ("--max-num-seqs", "64")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def planned(
    method: str, *arguments: str, build: Build = GPU, model: ModelFacts = LLAMA_8B, kv_memory: int | None = None
) -> LaunchPlan:
    request = LaunchRequest(method=method, engine_args=arguments, kv_memory=kv_memory)
    return VllmAdapter().plan(request, 8000, build, model, MACHINE)


@pytest.mark.parametrize("method", PACKED_METHODS)
def test_vllm_is_started_with_blocks_of_a_page_and_its_own_prefix_cache(method: str) -> None:
    plan = planned(method, *SLOTS)
    assert json.loads(plan.env[selection.VARIABLE])["method"] == method
    assert plan.command[plan.command.index("--block-size") + 1] == "64"
    assert plan.command[plan.command.index("--attention-backend") + 1] == "CUSTOM"
    assert "--kv-cache-dtype" not in plan.command
    assert plan.prefix_cache != "off"
    assert ROWS[method].block_tokens == (64,)
    assert plan.claim is not None
    assert plan.claim.bytes_per_token == 32 * 8 * token_bytes(method, 128)


def test_rotation_reaches_the_plugin() -> None:
    assert json.loads(planned("int4:rotate=0").env[selection.VARIABLE]) == {"method": "int4", "rotate": 0}


def test_a_ring_is_part_of_the_bytes_and_comes_off_the_pool() -> None:
    assert token_bytes("kivi-4", 128) == 144 + 4 * 128 * 128 / 8192
    plan = planned("kivi-4", *SLOTS, kv_memory=8 * 2**30)
    ring = 65 * 32 * 8 * page_format("kivi-4", 128).ring_bytes()
    assert plan.pool_claim is not None
    assert plan.pool_claim.ratio == pytest.approx(512 / 144 * (1 - ring / 2**33))
    assert planned("int4", kv_memory=8 * 2**30).pool_claim.ratio == pytest.approx(512 / 136)  # type: ignore[union-attr]


def test_rings_are_refused_where_their_number_is_open_or_they_do_not_fit() -> None:
    with pytest.raises(UsageError, match="say how many requests may run at once") as raised:
        planned("kivi-2")
    assert "--max-num-seqs=64" in str(raised.value.hint)
    with pytest.raises(UsageError, match="more than the cache"):
        planned("kivi-2", *SLOTS, kv_memory=2**30)
    assert planned("kivi-2", build=CPU).pool_claim is not None


def test_what_does_not_go_with_packed_pages_is_refused() -> None:
    for flag in ("--speculative-config", "--kv-transfer-config", "--kv-cache-dtype", "--attention-backend"):
        with pytest.raises(UsageError, match=f"does not go with {flag}: "):
            planned("int4", flag, "2")
    with pytest.raises(UsageError, match="blocks of 64 tokens, not 16"):
        planned("int4", "--block-size", "16")
    with pytest.raises(UsageError, match="takes no option group"):
        planned("kivi-4:group=64", *SLOTS)
    with pytest.raises(UsageError, match="multiple of 16"):
        planned("int4", model=replace(LLAMA_8B, head_size=40))


def test_arms_beside_packed_pages_keep_their_own_blocks() -> None:
    adapter = VllmAdapter()
    assert adapter.shared_arguments(["none", "int4", "fp8-e4m3"], ()) == ()
    assert adapter.shared_arguments(["none", "int4", "h2o"], ()) == ("--no-enable-prefix-caching",)
    assert adapter.shared_arguments(["none", "h2o"], ()) == ("--no-enable-prefix-caching",)


def test_names_are_not_vllms_own() -> None:
    assert {"int8-per-token-head", "int4-per-token-head"} <= set(SETTINGS)
    assert all(SETTINGS[method].plugin for method in PACKED_METHODS)
    assert all(page_format(method, 128).method == method for method in PACKED_METHODS)
