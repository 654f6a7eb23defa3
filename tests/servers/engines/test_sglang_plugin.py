"""Methods of kvload's plugin in SGLang: the command lines they lead to, and what they are refused with."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import kvload
from kvload.errors import UsageError
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest
from kvload.servers.engines.sglang.adapter import SglangAdapter
from kvload.servers.engines.sglang.plugin import NOT_WITH
from kvload.servers.engines.sglang.settings import SETTINGS
from kvload.servers.host.machine import Gpu, Machine
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.plugins.sglang import selection
from kvload.servers.plugins.sglang.contract import release_of
from kvload.servers.plugins.sglang.eviction.policy import held, leading, policy_of
from kvload.servers.plugins.sglang.table import ROWS
from kvload.servers.plugins.vllm.contract import ContractError
from kvload.servers.plugins.vllm.selection import Selection

LLAMA_8B = ModelFacts(
    "m", Path("/models/m"), layers=32, query_heads=32, kv_heads=8, head_size=128, vocab_size=4096, dtype="bfloat16"
)
MACHINE = Machine((Gpu(0, "NVIDIA H100", (9, 0), 81559, 0),), "x", 8, frozenset({"avx512f"}), 2**37)
GPU = Build("sglang", "/v/python", "0.5.17", "cuda", (0, 5, 17))
GIB = 2**30


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)


def planned(
    method: str, *arguments: str, installed: Build = GPU, kv_memory: int | None = None, **env: str
) -> LaunchPlan:
    request = LaunchRequest(method=method, engine_args=arguments, env=env, kv_memory=kv_memory)
    return SglangAdapter().plan(request, 8000, installed, LLAMA_8B, MACHINE)


def after(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_the_plugin_comes_by_the_environment_and_nothing_else() -> None:
    plan = planned("snapkv:budget=2048")
    assert json.loads(plan.env[selection.VARIABLE]) == {"method": "snapkv", "budget": 2048, "window": 32, "kernel": 5}
    assert plan.env["SGLANG_PLUGINS"] == "kvload"
    (folder,) = plan.env["PYTHONPATH"].split(os.pathsep)
    points = (Path(folder) / f"kvload-{kvload.__version__}.dist-info" / "entry_points.txt").read_text()
    assert "[sglang.srt.plugins]\nkvload = kvload.servers.plugins.sglang:register" in points
    assert after(plan.command, "--attention-backend") == "kvload"
    assert after(plan.command, "--radix-cache-backend") == "kvload"
    assert after(plan.command, "--page-size") == "1"
    assert "--disable-radix-cache" in plan.command
    assert plan.prefix_cache == "off"
    assert "--kv-cache-dtype" not in plan.command


def test_packed_pages_share_prefixes_unless_there_is_a_window() -> None:
    plan = planned("int4")
    assert after(plan.command, "--page-size") == "64"
    assert "--radix-cache-backend" not in plan.command
    assert "--disable-radix-cache" not in plan.command
    assert plan.prefix_cache == "reset"
    windowed = planned("kivi-4", "--max-running-requests", "64")
    assert "--disable-radix-cache" in windowed.command
    assert windowed.prefix_cache == "off"


def test_other_plugins_and_paths_stay() -> None:
    plan = planned("h2o", "--page-size", "1", PYTHONPATH="/mine", SGLANG_PLUGINS="theirs")
    assert plan.env["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]
    assert plan.env["SGLANG_PLUGINS"] == "kvload,theirs"
    assert plan.command.count("--page-size") == 1


def test_an_sglang_without_the_plugin_is_started_as_ever() -> None:
    plan = planned("none")
    assert selection.VARIABLE not in plan.env
    assert "PYTHONPATH" not in plan.env
    assert plan.eviction is None


def test_the_pool_is_as_many_tokens_as_fit_with_scores_and_without_rings() -> None:
    plain = 32 * 8 * 2 * 128 * 2
    assert after(planned("none", kv_memory=8 * GIB).command, "--max-total-tokens") == str(8 * GIB // plain)
    scored = planned("snapkv", kv_memory=8 * GIB)
    assert after(scored.command, "--max-total-tokens") == str(8 * GIB // (plain + 32 * 8 * 4))
    assert scored.pool_claim is not None
    assert scored.pool_claim.bytes_per_token == plain
    packed = planned("int4", kv_memory=8 * GIB)
    assert after(packed.command, "--max-total-tokens") == str(8 * GIB // (32 * 8 * 136) // 64 * 64)
    assert packed.pool_claim is not None
    assert packed.pool_claim.bytes_per_token == 32 * 8 * 136
    ring = 32 * 8 * 2 * 128 * 128 * 2
    windowed = planned("kivi-4", "--max-running-requests", "64", kv_memory=8 * GIB)
    assert after(windowed.command, "--max-total-tokens") == str((8 * GIB - 65 * ring) // (32 * 8 * 144) // 64 * 64)


def test_a_window_wants_the_number_of_requests_and_room_for_them() -> None:
    with pytest.raises(UsageError, match=r"kivi-4 keeps the newest tokens .* 16\.0 MiB a request"):
        planned("kivi-4")
    with pytest.raises(UsageError, match=r"takes 16\.02 GiB for 1024 requests"):
        planned("kivi-4", "--max-running-requests", "1024", kv_memory=GIB)


@pytest.mark.parametrize("method", ["snapkv", "int4"])
@pytest.mark.parametrize("flag", NOT_WITH)
def test_what_the_methods_do_not_go_with_is_refused_before_anything_starts(flag: str, method: str) -> None:
    with pytest.raises(UsageError, match=f"does not go with {flag}: "):
        planned(method, flag, "2")


def test_other_pages_prompts_in_one_and_unknown_releases_are_refused() -> None:
    with pytest.raises(UsageError, match="pages of 1 tokens, not 16"):
        planned("snapkv", "--page-size", "16")
    with pytest.raises(UsageError, match="pages of 64 tokens, not 1"):
        planned("int8", "--page-size", "1")
    with pytest.raises(UsageError, match="read in chunks"):
        planned("h2o", "--chunked-prefill-size", "-1")
    with pytest.raises(UsageError, match=r"runs inside SGLang 0\.5\.17; 0\.5\.23 is installed"):
        planned("snapkv", installed=replace(GPU, version="0.5.23", release=(0, 5, 23)))
    assert release_of("0.5.17.post1") == (0, 5, 17)
    with pytest.raises(ContractError, match="is not a release"):
        release_of("main")


def test_all_arms_run_without_shared_prefixes_where_one_does() -> None:
    adapter = SglangAdapter()
    assert adapter.shared_arguments(["none", "snapkv"], ()) == ("--disable-radix-cache",)
    assert adapter.shared_arguments(["none", "kivi-4"], ()) == ("--disable-radix-cache",)
    assert adapter.shared_arguments(["none", "snapkv"], ("--disable-radix-cache",)) == ()
    assert adapter.shared_arguments(["none", "int4", "fp8-e4m3"], ()) == ()


def test_every_method_of_the_plugin_is_offered_and_in_the_catalogue() -> None:
    offered = {name for name, row in SETTINGS.items() if row.plugin}
    assert offered == set(ROWS)
    assert offered <= set(METHODS)


@pytest.mark.parametrize("method", ["streamingllm", "snapkv", "h2o"])
def test_the_proof_asks_for_what_the_policy_frees(method: str) -> None:
    plan = planned(method)
    assert plan.eviction is not None
    policy = policy_of(Selection(method))
    prompt = plan.eviction.prompt_tokens
    assert plan.eviction.freed_blocks == leading(policy, prompt, prompt) - policy.start >= 128
    assert held(policy, prompt, prompt) == prompt - plan.eviction.freed_blocks == plan.eviction.kept_tokens


def test_what_its_graphs_cover_stands_in_its_log() -> None:
    log = (
        "[2026-11-26 20:00:01] Capture target prefill CUDA graph begin. backend=breakable, bs=[4, 2048]\n"
        "[2026-11-26 20:00:09] Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, "
        "bs=[1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64], avail mem=68.12 GB\n"
    )
    adapter = SglangAdapter()
    assert adapter.graph_streams(["python"], log) == 64
    assert adapter.graph_streams(["python"], "nothing of the kind") is None
    assert adapter.graph_streams(["python", "--disable-decode-cuda-graph"], log) == 0
