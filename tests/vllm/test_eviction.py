"""kvload's plugin in the real vLLM, its CPU build: exact tokens, memory given back, and refusals.

The servers compute in float32, so that their tokens can be held against a second implementation of the same eviction,
token for token. What a CPU does not show is FlashAttention, graphs and the kernels: those have tests of their own.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvload.cli.main import run
from kvload.http import request as http_request
from kvload.rundir import RunDir
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.host.installed import find_python
from kvload.servers.launcher import launch, stop
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import StartFailedError
from kvload.servers.plugins.injection import plugin_folder
from kvload.servers.probe import MODEL_DIR
from kvload.servers.verification.eviction import counts
from kvload.servers.watch.scrape import sample_once
from tests.vllm.environment import PYTHON
from tests.vllm.eviction_reference import Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

POOL_BYTES = 7 * 2**20
LENGTHS = (40, 431, 300, 480, 200, 470)
ANSWER = 60
TRIES = 5

METHODS: dict[str, dict[str, Any]] = {
    "streamingllm": {"start": 4, "recent": 100},
    "snapkv": {"budget": 128, "window": 32, "kernel": 5},
    "h2o": {"budget": 128, "recent": 64},
    "h2o-prompt": {"budget": 128, "recent": 64},
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOAD_STATE_DIR", str(folder))
        yield folder
        for entry in registry.entries():
            stop(entry)


def wanted(method: str, *arguments: str, **more: Any) -> LaunchRequest:
    options = {"kv_memory": POOL_BYTES, "max_model_len": 640, **more}
    arguments = ("--dtype", "float32", "--max-num-batched-tokens", "200", "--max-num-seqs", "8", *arguments)
    return LaunchRequest(
        model=str(MODEL_DIR), engine="vllm", method=method, python=PYTHON, engine_args=arguments, **options
    )


def named(method: str) -> str:
    return f"{method}:" + ",".join(f"{name}={value}" for name, value in METHODS[method].items())


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Pieces of the probe model's own kind of text."""
    from tokenizers import Tokenizer

    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    sample = ["--tasks", "recall,list", "--context", "512", "--requests", "12", "--rate", "10", "--seed", "3"]
    assert run(["traces", "sample", "--probe", *sample, "--out", str(path)]) == 0
    texts = [json.loads(line)["messages"][0]["content"] for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    ids = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]
    starts = [sum(LENGTHS[:place]) for place in range(len(LENGTHS))]
    return [[1, *ids[start : start + length - 1]] for start, length in zip(starts, LENGTHS, strict=True)]


def complete(entry: ServerEntry, prompt: list[int], tokens: int) -> list[int]:
    body = {"model": entry.info.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = http_request(entry.address, "/v1/completions", body={**body, "return_token_ids": True}, timeout_s=300)
    assert answer.ok
    return [int(token) for token in answer.json()["choices"][0]["token_ids"]]


def complete_watched(entry: ServerEntry, prompt: list[int]) -> tuple[list[int], list[float]]:
    """An answer, and the shares of the cache that were seen in use on the way to it."""
    usage: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            usage.append(sample_once(entry.address, "vllm").cache_usage or 0.0)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = complete(entry, prompt, ANSWER)
    finally:
        over.set()
        watcher.join()
    return answer, [value for value in usage if value]


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_those_of_a_second_implementation_and_blocks_come_back(
    method: str, state: Path, prompts: list[list[int]]
) -> None:
    entry = launch(wanted(named(method), verify=True), lambda _: None)
    assert entry.info.verified is not None
    assert entry.info.verified["ok"]
    assert entry.info.verified["eviction"]["freed_blocks"] >= entry.info.verified["eviction"]["wanted_blocks"]
    reference = Reference(MODEL_DIR, method, **METHODS[method])

    # One after the other, then all at once in a pool that does not hold them: chunks, mixed batches, preemption.
    longest = prompts[3]
    expected = reference.greedy(longest, ANSWER)
    # The server is asked while it computes, and may answer twice in a whole request: some get several tries.
    for _ in range(TRIES):
        answer, held = complete_watched(entry, longest)
        assert answer == expected
        if min(held[len(held) // 2 :], default=1.0) < 0.7 * max(held, default=0.0):
            break
    else:
        pytest.fail(f"no blocks came back in {TRIES} requests; the last one held {held}")

    before = sample_once(entry.address, "vllm").preemptions or 0
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: complete(entry, prompt, ANSWER), prompts))
    preempted = (sample_once(entry.address, "vllm").preemptions or 0) - before
    for prompt, answer in zip(prompts, answers, strict=True):
        gaps = reference.gaps(prompt, answer)
        # A request that H2O recomputes after preemption evicts at other steps: only then may it differ.
        if method != "h2o" or not preempted:
            assert float(gaps.max()) < 0.02, (len(prompt), preempted)
    assert counts(entry.log)["requests"] >= len([length for length in LENGTHS if length > 150])
    stop(entry)


def test_a_budget_nobody_exceeds_changes_no_token(state: Path, prompts: list[list[int]]) -> None:
    plain = launch(wanted("none", "--no-enable-prefix-caching", "--block-size", "32"), lambda _: None)
    expected = [complete(plain, prompt, 20) for prompt in prompts[:4]]
    stop(plain)
    entry = launch(wanted("h2o:budget=600,recent=64"), lambda _: None)
    assert [complete(entry, prompt, 20) for prompt in prompts[:4]] == expected
    stop(entry)


def test_what_the_plugin_cannot_do_ends_the_start_with_a_sentence(state: Path) -> None:
    """As where somebody runs vLLM with the plugin by themselves and misspells an option."""
    raw = {
        "KVLOAD_VLLM_METHOD": '{"method": "snapkv", "budgets": 3}',
        "PYTHONPATH": str(plugin_folder(state)),
        "VLLM_PLUGINS": "kvload",
    }
    with pytest.raises(StartFailedError) as failed:
        launch(wanted("none", env=raw, name="wrong"), lambda _: None)
    assert failed.value.log_end


def test_compare_from_a_trace_to_the_paired_report(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "questions.jsonl"
    sample = ["--tasks", "recall,list", "--context", "512", "--requests", "10", "--rate", "10", "--seed", "3"]
    assert run(["traces", "sample", "--probe", *sample, "--out", str(trace)]) == 0
    capfd.readouterr()
    arguments = ["--engine", "vllm", "--python", PYTHON, "--kv-memory", "64MiB", "--max-model-len", "1024", "--json"]
    arguments += ["--method", "none", "--method", "snapkv:budget=256", "--no-floor", "--repeats", "1"]
    engine = ["--", "--dtype", "float32"]  # bfloat16 is an illegal instruction in vLLM's build on some processors
    assert run(["compare", str(trace), *arguments, "--out", str(tmp_path / "experiment"), *engine]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert [arm["name"] for arm in report["arms"]] == ["none", "snapkv:budget=256"]
    assert "--no-enable-prefix-caching" in captured.err
    manifests = [RunDir.open(path.parent).manifest() for path in (tmp_path / "experiment").rglob("manifest.json")]
    assert {manifest.server.prefix_cache for manifest in manifests} == {"off"}
    assert all((manifest.server.verified or {}).get("ok") for manifest in manifests)
    assert registry.entries() == []


@pytest.mark.parametrize("method", METHODS)
def test_the_plugin_fits_this_vllm_s_classes(method: str, tmp_path: Path) -> None:
    """Also those that only a GPU runs: managers with a real pool, metadata over FlashAttention's builder.

    ``KVLOAD_VLLM_SOURCES`` may name folders with the source of other releases, each to stand in for this one.
    """
    python = find_python(PYTHON)
    sources = [None, *filter(None, os.environ.get("KVLOAD_VLLM_SOURCES", "").split(os.pathsep))]
    for source in sources:
        path = os.pathsep.join(filter(None, [source, str(plugin_folder(tmp_path))]))
        variables = {"KVLOAD_VLLM_METHOD": json.dumps({"method": method, **METHODS[method]}), "PYTHONPATH": path}
        script = Path(__file__).with_name("plugin_checks.py")
        done = subprocess.run(
            [python, str(script)], env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "contract, pages, manager, metadata" in done.stdout
