"""Packed pages in the real vLLM, its CPU build: exact tokens in chunks, in a crowd, after preemption and prefix hits.

The servers compute in float32, so that their tokens can be held against a second implementation of the same caches. On
a CPU the pages are read by the kernels' torch reference: kernels and graphs have tests of their own.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kvload.cli.main import run
from kvload.http import request as http_request
from kvload.servers.engines.base import LaunchRequest
from kvload.servers.launcher import launch, stop
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.probe import MODEL_DIR
from kvload.servers.watch.scrape import sample_once
from tests.vllm.environment import PYTHON
from tests.vllm.packed_reference import Reference

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CHUNK = 200
LENGTHS = (40, 129, 201, 300, 401, 480)
ANSWER = 70
NEAR = 0.5
"""How far the chosen token's logit may lie below the reference's best one. Another order of additions turns a code here
and there; such a token is rare, and a cache that is read wrongly is tens of logits away."""

AGREE = 0.97
"""Share of tokens that are the reference's own choice."""

TURNING = {"k4v2"}
"""Methods with so few levels that rounding decides whole answers: the second implementation itself moves logits by 4
where its embeddings change by 2e-7. They are held against how far answers lie from those of an uncompressed cache."""

POOL_BYTES = 2 * 2**20
"""Less than all the requests take at once."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOAD_STATE_DIR", str(folder))
        yield folder
        for entry in registry.entries():
            stop(entry)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Pieces of the probe model's own kind of text."""
    from tokenizers import Tokenizer

    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    sample = ["--tasks", "recall,list", "--context", "512", "--requests", "8", "--rate", "10", "--seed", "3"]
    assert run(["traces", "sample", "--probe", *sample, "--out", str(path)]) == 0
    texts = [json.loads(line)["messages"][0]["content"] for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    ids = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]
    starts = [sum(LENGTHS[:place]) for place in range(len(LENGTHS))]
    return [[1, *ids[start : start + length - 1]] for start, length in zip(starts, LENGTHS, strict=True)]


def complete(entry: ServerEntry, prompt: list[int]) -> list[int]:
    body = {"model": entry.info.model, "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
    answer = http_request(entry.address, "/v1/completions", body={**body, "return_token_ids": True}, timeout_s=300)
    assert answer.ok
    return [int(token) for token in answer.json()["choices"][0]["token_ids"]]


def wanted(method: str, kv_memory: int, *, verify: bool) -> LaunchRequest:
    arguments = ("--dtype", "float32", "--max-num-batched-tokens", str(CHUNK), "--max-num-seqs", "8")
    return LaunchRequest(
        model=str(MODEL_DIR),
        engine="vllm",
        method=method,
        python=PYTHON,
        kv_memory=kv_memory,
        max_model_len=640,
        engine_args=arguments,
        verify=verify,
    )


def check(method: str, gaps: list[torch.Tensor], wrong: list[torch.Tensor]) -> None:
    """Answers are the reference's.

    Args:
        gaps: of each answer's tokens to the reference's choices.
        wrong: the same to those of an uncompressed cache.
    """
    found = torch.cat(gaps)
    if method in TURNING:
        assert float(found.mean()) < 0.5 * float(torch.cat(wrong).mean())
        return
    assert float(found.max()) < NEAR
    assert float((found == 0).float().mean()) > AGREE


@pytest.mark.parametrize("method", ["int8", "int4", "kivi-4", "kivi-2", "k8v4", "k4v2"])
def test_tokens_are_those_of_a_second_implementation(method: str, state: Path, prompts: list[list[int]]) -> None:
    entry = launch(wanted(method, POOL_BYTES, verify=False), lambda _: None)
    reference, plain = Reference(MODEL_DIR, method), Reference(MODEL_DIR, "none")
    answers = [complete(entry, prompt) for prompt in prompts]
    pairs = list(zip(prompts, answers, strict=True))
    gaps = [reference.gaps(prompt, answer, chunk=CHUNK) for prompt, answer in pairs]
    wrong = [plain.gaps(prompt, answer) for prompt, answer in pairs]
    check(method, gaps, wrong)
    if method in {"int4", "kivi-2", "k4v2"}:  # the method does something
        assert max(float(one.max()) for one in wrong) > NEAR

    # Prefixes of the newest prompt, whose pages nothing has taken yet: read as they were packed, the rest is computed.
    longest = prompts[-1]
    for prompt, hit in ((longest, 448), ([*longest[:300], *prompts[0]], 256)):
        before = sample_once(entry.address, "vllm").prefix_hits or 0
        answer = complete(entry, prompt)
        assert (sample_once(entry.address, "vllm").prefix_hits or 0) - before == hit
        check(method, [reference.gaps(prompt, answer, chunk=CHUNK, hit=hit)], [plain.gaps(prompt, answer)])

    # All at once in a pool that does not hold them. A preempted request reads its answer so far as a prompt, and chunks
    # depend on the others: what they answer cannot be told in advance.
    others = [[1, *prompt[2:]] for prompt in prompts]
    with ThreadPoolExecutor(len(others)) as pool:
        assert all(len(answer) == ANSWER for answer in pool.map(lambda prompt: complete(entry, prompt), others))
    if method == "int8":
        assert sample_once(entry.address, "vllm").preemptions
    stop(entry)


def test_a_packed_pool_is_verified(state: Path) -> None:
    entry = launch(wanted("kivi-4", 12 * 2**20, verify=True), lambda _: None)
    assert entry.info.verified is not None
    assert entry.info.verified["ok"]
    assert entry.info.verified["pool"]["ratio"] > 6
    stop(entry)
