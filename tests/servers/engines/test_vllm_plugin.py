"""Methods of kvload's plugin in vLLM: the command lines they lead to, and what they are refused with."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest
from kvload.servers.engines.vllm.adapter import VllmAdapter
from kvload.servers.engines.vllm.plugin import NOT_WITH
from kvload.servers.engines.vllm.settings import SETTINGS
from kvload.servers.host.machine import Gpu, Machine
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.plugins.vllm import selection
from kvload.servers.plugins.vllm.eviction.policy import POLICIES, build
from kvload.servers.plugins.vllm.selection import Selection
from kvload.servers.plugins.vllm.table import ROWS

LLAMA_8B = ModelFacts(
    "m", Path("/models/m"), layers=32, query_heads=32, kv_heads=8, head_size=128, vocab_size=4096, dtype="bfloat16"
)
MACHINE = Machine((Gpu(0, "NVIDIA H100", (9, 0), 81559, 0),), "x", 8, frozenset({"avx512f"}), 2**37)
GPU = Build("vllm", "/v/python", "0.26.0", "cuda", (0, 26, 0))
CPU = Build("vllm", "/v/python", "0.32.0+cpu", "cpu", (0, 32, 0))


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def planned(method: str, installed: Build = GPU, *arguments: str, **env: str) -> LaunchPlan:
    request = LaunchRequest(method=method, engine_args=arguments, env=env)
    return VllmAdapter().plan(request, 8000, installed, LLAMA_8B, MACHINE)


def after(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_the_plugin_comes_by_the_environment_and_nothing_else() -> None:
    plan = planned("snapkv:budget=2048")
    assert json.loads(plan.env[selection.VARIABLE]) == {"method": "snapkv", "budget": 2048, "window": 32, "kernel": 5}
    assert plan.env["VLLM_PLUGINS"] == "kvload"
    (folder,) = plan.env["PYTHONPATH"].split(os.pathsep)
    assert (Path(folder) / "kvload" / "__init__.py").is_file()
    assert after(plan.command, "--attention-backend") == "CUSTOM"
    assert after(plan.command, "--block-size") == "16"
    assert "--no-enable-prefix-caching" in plan.command
    assert plan.prefix_cache == "off"
    assert "--kv-cache-dtype" not in plan.command


def test_other_plugins_and_paths_stay() -> None:
    plan = planned("h2o", GPU, "--block-size", "16", PYTHONPATH="/mine", VLLM_PLUGINS="theirs")
    assert plan.env["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]
    assert plan.env["VLLM_PLUGINS"] == "kvload,theirs"
    assert plan.command.count("--block-size") == 1


def test_on_a_cpu_the_backend_takes_the_place_of_the_only_one() -> None:
    assert "--attention-backend" not in planned("h2o", CPU).command


def test_a_vllm_without_the_plugin_is_started_as_ever() -> None:
    plan = planned("none")
    assert selection.VARIABLE not in plan.env
    assert "PYTHONPATH" not in plan.env
    assert plan.eviction is None


@pytest.mark.parametrize("flag", NOT_WITH)
def test_what_eviction_does_not_go_with_is_refused_before_anything_starts(flag: str) -> None:
    with pytest.raises(UsageError, match=f"does not go with {flag}: "):
        planned("h2o", GPU, flag, "2")


def test_other_blocks_and_unknown_releases_are_refused() -> None:
    with pytest.raises(UsageError, match="blocks of 16 tokens, not 32"):
        planned("snapkv", GPU, "--block-size", "32")
    with pytest.raises(UsageError, match=r"runs inside vLLM 0\.26, 0\.32, 0\.33; 0\.29\.1 is installed"):
        planned("snapkv", replace(GPU, version="0.29.1", release=(0, 29, 1)))


def test_the_pool_pays_for_the_scores() -> None:
    scored, plain = planned("snapkv").pool_claim, planned("streamingllm").pool_claim
    assert scored is not None
    assert plain is not None
    # 16 tokens of 8 heads of 128, two bytes, keys and values: 65,536 bytes; then a float for each token and head.
    assert scored.bytes_per_token == 32 * (65536 + 512) / 16
    assert plain.ratio == 1


@pytest.mark.parametrize(
    ("method", "prompt", "freed"),
    [
        ("snapkv:budget=1024", 1024 + 15 + 1 + 9 * 16, 10),
        ("h2o:budget=1000,recent=100", 1168, 10),
        ("streamingllm:start=4,recent=512", 528 + 9 * 16, 9),
    ],
)
def test_the_request_that_proves_eviction_must_lose_blocks(method: str, prompt: int, freed: int) -> None:
    proof = planned(method).eviction
    assert proof is not None
    assert (proof.prompt_tokens, proof.freed_blocks) == (prompt, freed)
    assert proof.kept_tokens == prompt - 16 * freed


def test_a_text_within_the_budget_must_be_answered_as_without_eviction() -> None:
    assert planned("snapkv:budget=1024").error_limit == 0.1
    assert planned("snapkv:budget=128").error_limit == METHODS["snapkv"].error_limit


def test_every_method_of_the_plugin_is_in_the_catalogue_with_the_same_options_and_defaults() -> None:
    assert {name for name, row in SETTINGS.items() if row.plugin} == set(ROWS)
    for name in POLICIES:
        policy = build(Selection(name), 16)
        for option, default in parse_method(name).options.items():
            assert getattr(policy, option) == default
        assert build(Selection(name, parse_method(name).options), 16) == policy


@pytest.mark.parametrize(
    ("arguments", "covered"),
    [
        (("--enforce-eager",), 0),
        (("--max-num-seqs", "64"), 128),
        (("--max-num-seqs", "1024"), 512),
        (("--max-num-seqs", "64", "--max-cudagraph-capture-size", "48"), 48),
        (("-cc", '{"mode":0,"cudagraph_capture_sizes":[1,2,16]}'), 16),
        (("-cc", '{"cudagraph_mode":"NONE"}'), 0),
        (("-cc", '{"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY"}', "--max-num-seqs=8"), 16),
        (("-cc", "3", "--max-num-seqs", "8"), None),
        ((), None),
    ],
)
def test_what_its_graphs_cover_follows_from_its_command(arguments: tuple[str, ...], covered: int | None) -> None:
    assert VllmAdapter().graph_streams(["python", *arguments], "") == covered
