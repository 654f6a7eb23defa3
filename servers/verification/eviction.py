"""Whether a method of eviction evicts: a request too long for its budget must lose blocks, by the server's own count.

A method that never acts passes every other check, and answers as well as no method at all. kvload's plugin tells in the
engine's log how many requests lost blocks, how many blocks that were, and how much the requests still held. Every run's
manifest has what was counted during the run (:func:`during`): a method that acted at the start has shown nothing of
requests that never exceed its budget.
"""

import json
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvload.errors import ServerError
from kvload.http import request as http_request
from kvload.servers.engines.base import EvictionProof, LaunchRequest
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import api_headers

COUNTS = re.compile(r"kvload eviction: (\{[^{}]*\})")
ANSWER_TOKENS = 4
WAIT_S = 30.0
POLL_S = 0.7
"""The plugin tells its counts no more than twice a second, and only while requests are served."""
TIMEOUT_S = 300.0
LOG_TAIL = 4 * 2**20


@dataclass(frozen=True)
class Proof:
    """What was counted, as it goes into the manifest, and what is wrong with it."""

    figures: dict[str, Any]
    problems: tuple[str, ...] = ()


def counts(log: Path) -> dict[str, Any]:
    """The newest counts in an engine's log, scheduler's and workers' together; empty where there are none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for match in COUNTS.finditer(text):
        try:
            said = json.loads(match[1])
        except ValueError:
            continue
        if isinstance(said, dict):
            found |= {name: value for name, value in said.items() if isinstance(value, int | float)}
    return found


def prove(entry: ServerEntry, wanted: EvictionProof, request: LaunchRequest) -> Proof:
    """Send a request that must lose blocks, and hold the server's counts against it."""
    figures: dict[str, Any] = {"checked": False, "prompt_tokens": wanted.prompt_tokens}
    most = entry.info.max_model_len
    room = entry.info.pool_tokens
    if most is not None and wanted.prompt_tokens + ANSWER_TOKENS > most:
        return Proof({**figures, "why_not": f"the server takes no more than {most} tokens: nothing is ever evicted"})
    if room is not None and wanted.prompt_tokens + ANSWER_TOKENS > room:
        return Proof({**figures, "why_not": f"the cache holds no more than {room} tokens"})
    if entry.vocab_size is None:
        return Proof({**figures, "why_not": "the model's vocabulary size is not known"})
    headers = api_headers({**os.environ, **request.env}, request.engine_args)
    source = random.Random(7)
    prompt = [source.randrange(entry.vocab_size // 4, entry.vocab_size) for _ in range(wanted.prompt_tokens)]
    try:
        time.sleep(POLL_S)
        _ask(entry, prompt[:3], headers)  # what earlier requests lost is told before it is looked up
        before = counts(entry.log)
        _ask(entry, prompt, headers)
        deadline = time.monotonic() + WAIT_S
        while True:
            time.sleep(POLL_S)
            _ask(entry, prompt[:3], headers)  # the counts are told while something is served
            freed = _grown(before, counts(entry.log), "freed_blocks")
            if freed or time.monotonic() > deadline:
                break
    except ServerError as error:
        return Proof(figures, (f"the server failed at a request of {wanted.prompt_tokens} tokens: {error.message}",))
    return judge(before, counts(entry.log), wanted)


def judge(before: Mapping[str, Any], after: Mapping[str, Any], wanted: EvictionProof) -> Proof:
    """Hold counts from before and after the request against what it must have lost."""
    freed = _grown(before, after, "freed_blocks")
    figures: dict[str, Any] = {
        "checked": True,
        "prompt_tokens": wanted.prompt_tokens,
        "wanted_blocks": wanted.freed_blocks,
        "freed_blocks": freed,
        "requests": _grown(before, after, "requests"),
    }
    if "compactions" in after:
        figures["compactions"] = _grown(before, after, "compactions")
    if freed < wanted.freed_blocks:
        asked = f"a request of {wanted.prompt_tokens} tokens must lose {wanted.freed_blocks} blocks"
        return Proof(figures, (f"nothing is evicted: {asked} and lost {freed}",))
    return Proof(figures)


COUNTED = ("requests", "freed_blocks", "compactions")
"""Counts that only grow; the others are means."""


def during(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int] | None:
    """What was counted between two readings of a log; None where it tells no counts."""
    told = [name for name in COUNTED if name in after]
    return {name: _grown(before, after, name) for name in told} or None


def _grown(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> int:
    return int(after.get(name, 0)) - int(before.get(name, 0))


def _ask(entry: ServerEntry, prompt: list[int], headers: Mapping[str, str]) -> None:
    body = {
        "model": entry.info.model,
        "prompt": prompt,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = http_request(entry.address, "/v1/completions", body=body, headers=headers, timeout_s=TIMEOUT_S)
    if not answer.ok:
        raise ServerError(f"/v1/completions answered {answer.status}: {answer.text()[:300]}", where=entry.url)
