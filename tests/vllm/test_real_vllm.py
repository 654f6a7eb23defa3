"""kvload against the real vLLM, its CPU build: launch, scrape, verify, refuse, stop. ``make test-vllm`` installs it.

``KVLOAD_VLLM_PYTHON`` names its environment. On processors without AVX-512 vLLM refuses every quantised cache; what it
corrupts elsewhere is brought about there by lifting that check (see lift_isa_check/).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kvload.cli.main import run
from kvload.errors import UsageError
from kvload.http import request as http_request
from kvload.records import ServerSample
from kvload.rundir import RunDir
from kvload.servers.host.machine import look
from kvload.servers.launcher import LaunchEvent, LaunchRequest, launch, reset_prefix_cache, stop
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.process import session_members
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import StartFailedError
from kvload.servers.verification.baselines import load_baseline
from kvload.servers.verification.verify import VerificationFailedError
from kvload.servers.watch.scrape import sample_once
from tests.vllm.environment import PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

LIFT_CHECK = {"PYTHONPATH": str(Path(__file__).with_name("lift_isa_check"))}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=4096,
        initializer_range=0.08,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One state folder for all tests, so that a baseline is measured once."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOAD_STATE_DIR", str(folder))
        yield folder
        for entry in registry.entries():
            stop(entry)


def gained(before: ServerSample, after: ServerSample, name: str) -> float:
    """How much a running total grew between two scrapes."""
    first, last = getattr(before, name), getattr(after, name)
    assert first is not None
    assert last is not None
    return float(last - first)


def wanted(model: Path, method: str = "none", **more: Any) -> LaunchRequest:
    options = {"kv_memory": 64 * 2**20, "max_model_len": 1024, "env": LIFT_CHECK, **more}
    return LaunchRequest(model=str(model), engine="vllm", method=method, python=PYTHON, **options)


def complete(entry: ServerEntry, prompt: list[int], tokens: int) -> dict[str, Any]:
    body = {"model": entry.info.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = http_request(entry.address, "/v1/completions", body=body, timeout_s=120)
    assert answer.ok
    return dict(answer.json())


def test_the_baseline_from_launch_to_stop(model: Path, state: Path) -> None:
    events: list[LaunchEvent] = []
    entry = launch(wanted(model, verify=True), events.append)
    assert entry.info.engine_version is not None
    assert entry.info.engine_version.startswith("0.")
    # 64 MiB, two bytes an element, keys and values, six layers, two heads of 64: in blocks of 128 tokens.
    assert entry.info.pool_tokens == 64 * 2**20 // (2 * 2 * 6 * 2 * 64 * 128) * 128
    assert entry.info.bytes_per_token == 2 * 2 * 6 * 2 * 64
    assert entry.info.prefix_cache == "reset"
    assert any("KV cache of" in event.text for event in events)
    assert any("loading weights" in event.text for event in events)

    before = sample_once(entry.address, "vllm")
    usage = complete(entry, list(range(300, 500)), 8)["usage"]
    after = sample_once(entry.address, "vllm")
    assert after.error is None
    assert gained(before, after, "generation_tokens") == usage["completion_tokens"] == 8
    assert gained(before, after, "prompt_tokens") == usage["prompt_tokens"] == 200
    assert gained(before, after, "requests") == 1

    complete(entry, list(range(300, 500)), 1)
    assert gained(after, sample_once(entry.address, "vllm"), "prefix_hits") == 128
    assert reset_prefix_cache(entry) == "reset"
    hits = sample_once(entry.address, "vllm").prefix_hits
    complete(entry, list(range(300, 500)), 1)
    assert sample_once(entry.address, "vllm").prefix_hits == hits

    baselines = [load_baseline(path) for path in (state / "baselines").glob("vllm-*.json")]
    assert len(baselines) == 1
    assert baselines[0] is not None
    assert len(baselines[0].own) >= 60
    assert entry.info.verified is not None
    assert entry.info.verified["is_baseline"]

    family = [process.pid for process in session_members(entry.anchors, entry.token)]
    assert len(family) >= 2
    assert stop(entry).was_running
    assert not [pid for pid in family if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def test_a_dtype_that_corrupts_the_cache_is_refused_by_its_error_and_by_its_size(model: Path, state: Path) -> None:
    with pytest.raises(UsageError, match="corrupts the cache with it"):
        launch(wanted(model, "int8-per-token-head"), lambda _: None)
    with pytest.raises(VerificationFailedError) as caught:
        launch(wanted(model, "raw:int8_per_token_head", verify=True), lambda _: None)
    result = caught.value.result
    assert result["pool"]["ratio"] == pytest.approx(2.0, rel=0.03)
    assert result["pool"]["claimed_ratio"] == pytest.approx(256 / 136, rel=1e-3)
    assert result["soundness"].get("lost", 9.0) > 0.5
    assert len(result["problems"]) == 2
    assert registry.entries() == []


@pytest.mark.parametrize("method", ["fp8-e4m3", "fp8-e5m2"])
def test_fp8_is_sound_where_the_processor_has_it_and_refused_where_not(model: Path, state: Path, method: str) -> None:
    if look().has_avx512:
        entry = launch(wanted(model, method, env={}, verify=True), lambda _: None)
        assert entry.info.verified is not None
        assert entry.info.verified["ok"]
        assert entry.info.verified["pool"]["ratio"] == pytest.approx(2.0, rel=0.02)
        stop(entry)
        return
    with pytest.raises(UsageError, match="AVX-512") as refused:
        launch(wanted(model, method, env={}), lambda _: None)
    assert "it can do here: none;" in str(refused.value)
    with pytest.raises(StartFailedError) as failed:
        launch(wanted(model, f"raw:fp8_{method[-4:]}", env={}), lambda _: None)
    assert failed.value.cause.kind == "dtype"
    assert "AVX-512" in failed.value.cause.message
    assert registry.entries() == []


def test_too_small_a_cache_is_told_with_its_figures(model: Path, state: Path) -> None:
    request = LaunchRequest(model=str(model), engine="vllm", python=PYTHON, kv_memory=10**6, max_model_len=4096)
    with pytest.raises(StartFailedError) as failed:
        launch(request, lambda _: None)
    assert failed.value.cause.kind == "kv_room"
    assert "4096" in failed.value.cause.message
    assert json.dumps(failed.value.log_end)


def mooncake_trace(path: Path) -> tuple[int, int]:
    """A trace whose prompts share blocks of 512 tokens; returns its prompt tokens and those that were seen before."""
    rng = random.Random(5)
    seen: set[tuple[int, ...]] = set()
    total = shared = 0
    rows = []
    for number in range(24):
        blocks = [rng.randrange(2), *(rng.randrange(3) for _ in range(rng.randrange(2))), 1000 + number]
        length = 512 * (len(blocks) - 1) + 200
        total += length
        prefixes = [tuple(blocks[: end + 1]) for end in range(len(blocks))]
        shared += 512 * sum(prefix in seen for prefix in prefixes)
        seen.update(prefixes)
        rows.append({"timestamp": number * 10, "input_length": length, "output_length": 4, "hash_ids": blocks})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return total, shared


def test_prompts_that_share_blocks_hit_the_prefix_cache_as_their_trace_says(
    model: Path, state: Path, tmp_path: Path
) -> None:
    total, shared = mooncake_trace(tmp_path / "trace.jsonl")
    assert 0.4 < shared / total < 0.9
    launch(wanted(model, name="prefix", max_model_len=2048, env={}), lambda _: None)
    run_folder = tmp_path / "run"
    arguments = ["--server", "prefix", "--mode", "forced", "--concurrency", "1", "--out", str(run_folder), "--quiet"]
    arguments += ["--time-unit", "ms"]
    assert run(["replay", str(tmp_path / "trace.jsonl"), *arguments]) == 0
    assert run(["stop", "prefix"]) == 0
    opened = RunDir.open(run_folder)
    assert opened.manifest().server.prefix_cache == "reset"
    first, last = opened.scrapes()[0], opened.scrapes()[-1]
    assert gained(first, last, "prompt_tokens") == total
    assert gained(first, last, "prefix_queries") == total
    # Blocks of 512 tokens are whole blocks of the server's too, so every shared token can be found, and none else.
    assert gained(first, last, "prefix_hits") == shared
    cached = [record.cached_tokens for record, _ in opened.records()]
    assert None not in cached
    assert sum(count or 0 for count in cached) == shared


def test_compare_from_a_trace_to_the_paired_report(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without AVX-512 nothing compressed runs: a second setting of 16 bits stands in for it.
    methods = ["none", "fp8-e4m3", "fp8-e5m2"] if look().has_avx512 else ["none", "raw:bfloat16"]
    trace = tmp_path / "questions.jsonl"
    sample = ["--tasks", "recall,list", "--context", "256", "--requests", "12", "--rate", "10", "--seed", "3"]
    assert run(["traces", "sample", "--probe", *sample, "--out", str(trace)]) == 0
    capfd.readouterr()
    arguments = ["--engine", "vllm", "--python", PYTHON, "--kv-memory", "64MiB", "--max-model-len", "1024", "--json"]
    arguments += ["--repeats", "1"]
    for method in methods:
        arguments += ["--method", method]
    # In bfloat16 this vLLM's worker dies of an illegal instruction on some processors with AMX.
    arguments += ["--out", str(tmp_path / "experiment"), "--", "--dtype", "float32"]
    assert run(["compare", str(trace), *arguments]) == 0
    report = json.loads(capfd.readouterr().out)
    assert [arm["name"] for arm in report["arms"]] == [methods[0], f"{methods[0]} (again)", *methods[1:]]
    # The probe model answers such short questions without an error, and 16 bits cost it nothing.
    quality = {name: row["overall"] for name, row in report["quality"]["arms"].items()}
    assert quality["none (again)"]["base_mean"] == 1
    assert quality["none (again)"]["arm_mean"] == 1
    assert all(row["arm_mean"] > 0.8 for row in quality.values())
    manifests = [RunDir.open(path.parent).manifest() for path in (tmp_path / "experiment").rglob("manifest.json")]
    assert {manifest.server.method for manifest in manifests} == set(methods)
    assert len(manifests) == len(methods) + 1
    assert all(manifest.sent == 12 and not manifest.partial for manifest in manifests)
    assert all((manifest.server.verified or {}).get("ok") for manifest in manifests)
    assert registry.entries() == []
