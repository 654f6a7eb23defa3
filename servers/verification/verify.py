"""Whether a launched server really compresses its KV cache, and still computes with it.

That a server starts and repeats the setting in its metrics proves neither: some engines accept KV-cache dtypes whose
storage they then corrupt. Two things are checked, both against the same engine without compression:

Size
    Tokens in the pool, against the baseline's, must be as many times more as the method's bytes per token claim. Where
    the number of tokens was given to the engine, the bytes it says the pool takes must be those claimed.
Soundness
    The error of the log-probabilities of a fixed text (:mod:`kvload.servers.verification.likelihood`),

    .. math:: e = \\mathrm{rms}(x_{method} - x_{base}) / \\mathrm{rms}(x_{base, other\\,context} - x_{base})

    is the share of the context's effect on the answers that the cache has lost: 0 for an exact cache, about 1 or more
    for one whose contents might as well be another text's. Being relative, it means the same for a trained model and
    for random weights. Each method's row names the most it may lose.

A method of eviction inside an engine must also show that it evicts (:mod:`kvload.servers.verification.eviction`).

The baseline's figures are kept in kvload's state folder; where they are missing, the baseline is launched once.
"""

import os
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvload.errors import KvloadError, ServerError
from kvload.http import request as http_request
from kvload.servers.engines.arguments import has_flag
from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.lifecycle import interrupts, registry
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import LaunchEvent, OnEvent, api_headers
from kvload.servers.lifecycle.stopping import stop
from kvload.servers.verification.baselines import (
    Baseline,
    await_baseline,
    baseline_path,
    keep,
    load_baseline,
    turn,
)
from kvload.servers.verification.eviction import prove
from kvload.servers.verification.likelihood import Scores, Target, score
from kvload.servers.verification.verdict import (
    FIXED_POOL_FLAGS,
    Verdict,
    combine,
    copies,
    describe,
    judge_bytes,
    judge_memory,
    judge_pool,
    judge_scores,
    limit_by_size,
    with_eviction,
)

T = TypeVar("T")


class VerificationFailedError(ServerError):
    """A server that runs, but not as its method claims. ``result`` holds the figures."""

    def __init__(self, message: str, result: dict[str, Any], hint: str | None = None) -> None:
        self.result = result
        super().__init__(message, hint=hint)


def launch_verified(
    request: LaunchRequest,
    made: Adapter,
    build: Build,
    model: ModelFacts,
    plan: LaunchPlan,
    start: Callable[[LaunchRequest], ServerEntry],
    on_event: OnEvent,
) -> ServerEntry:
    """Start a server and check it; the baseline is measured first where its figures are not known.

    Args:
        request: the server wanted.
        made, build, model, plan: what the launcher found out for it.
        start: starts a server and waits for it.
        on_event: told what is happening.

    Raises:
        ServerError: a server did not come up.
        VerificationFailedError: the wanted one did, but is not what its method claims. It was stopped.
    """
    request = replace(request, verify=False)
    path = baseline_path(request, build, model)
    if request.method == "none":
        with turn(path):
            entry = start(request)
            baseline = _guarded(entry, lambda: measure_baseline(entry, made, request, on_event))
            try:
                keep(path, baseline)
            except BaseException:
                # without room on the disk
                stop(entry)
                raise
        pool = judge_memory(entry.info.pool_tokens, plan.pool_claim or plan.claim, request, made, model)
        figures = {"ok": pool.ok, "is_baseline": True, "pool_tokens": baseline.pool_tokens, "pool": pool.figures}
        if not pool.ok:
            stop(entry)
            raise VerificationFailedError(f"verification failed: {'; '.join(pool.problems)}", figures)
        return _with_verdict(entry, figures)
    if load_baseline(path) is None:
        with turn(path) as ours:
            if ours and load_baseline(path) is None:
                text = "verification: no baseline is known for this engine and model; launching it once"
                on_event(LaunchEvent("note", text))
                wanted = replace(request, method="none", name=f"verify-{secrets.token_hex(4)}", port=None)
                entry = start(wanted)
                try:
                    with interrupts.kept_back() as asked, asked.heeded():
                        baseline = measure_baseline(entry, made, request, on_event)
                    keep(path, baseline)
                finally:
                    stop(entry)
    # Where a launch beside this one measures the baseline, this server starts in the meantime.
    entry = start(request)
    known = _guarded(entry, lambda: await_baseline(path, on_event))
    if known is None:
        stop(entry)
        return launch_verified(request, made, build, model, plan, start, on_event)
    verdict = _guarded(entry, lambda: check(entry, made, request, plan, model, known, on_event))
    try:
        if not verdict.ok:
            raise VerificationFailedError(
                f"verification failed for method {request.method}: {'; '.join(verdict.problems)}",
                verdict.figures,
                hint="the server was stopped; --no-verify starts it all the same",
            )
        on_event(LaunchEvent("note", f"verified: {describe(verdict.figures)}"))
        return _with_verdict(entry, verdict.figures)
    except BaseException:
        stop(entry)
        raise


def measure_baseline(entry: ServerEntry, made: Adapter, request: LaunchRequest, on_event: OnEvent) -> Baseline:
    """Score the text twice on a server without compression.

    Raises:
        ServerError: it cannot be scored.
    """
    on_event(LaunchEvent("waiting", "verification: measuring the baseline"))
    target = target_of(entry, made, request)
    first, second = score(made.scoring, target), score(made.scoring, target)
    return Baseline(
        pool_tokens=entry.info.pool_tokens,
        scoring=first.scoring,
        text_tokens=first.text_tokens,
        own=list(first.own),
        again=list(second.own),
        other=list(first.other),
    )


def check(
    entry: ServerEntry,
    made: Adapter,
    request: LaunchRequest,
    plan: LaunchPlan,
    model: ModelFacts,
    baseline: Baseline,
    on_event: OnEvent,
) -> Verdict:
    """Measure a server and judge it. That it fails at being measured is part of the judgement."""
    on_event(LaunchEvent("waiting", "verification: measuring the method"))
    try:
        scores: Scores | ServerError = score(made.scoring, target_of(entry, made, request))
    except ServerError as error:
        scores = error
    fixed = next((flag for flag in FIXED_POOL_FLAGS if has_flag(request.engine_args, flag)), None)
    if fixed is None and request.kv_memory is not None:
        fixed = made.pool_in_tokens
    claim = plan.pool_claim or plan.claim
    stored = None if fixed is None else stored_bytes_per_token(made.pool_memory, entry.log)
    if stored is not None and claim is not None:
        # The log speaks of one GPU, the claim of all heads.
        ranks = made.ranks(request)
        pool = judge_bytes(stored * ranks / copies(ranks, model), claim, entry.info.pool_tokens)
    else:
        pool = judge_pool(entry.info.pool_tokens, baseline.pool_tokens, claim, plan.compresses, fixed)
    limit = plan.error_limit or limit_by_size(pool.figures.get("ratio"))
    verdict = combine(pool, judge_scores(scores, baseline, limit))
    return verdict if plan.eviction is None else with_eviction(verdict, prove(entry, plan.eviction, request))


def stored_bytes_per_token(pool_memory: re.Pattern[str] | None, log: Path) -> float | None:
    """Bytes a token takes in the pool, over all layers, from what the engine's log tells of it; None where it does not.

    Args:
        pool_memory: finds the tokens, and the GiB of keys and of values.
    """
    if pool_memory is None:
        return None
    match = pool_memory.search(log.read_text("utf-8", errors="replace"))
    if match is None or int(match[1]) == 0:
        return None
    return (float(match[2]) + float(match[3])) * 2**30 / int(match[1])


def target_of(entry: ServerEntry, made: Adapter, request: LaunchRequest) -> Target:
    """The server as something to score a text with.

    Raises:
        ServerError: the size of its vocabulary is not known.
    """
    if entry.vocab_size is None:
        raise ServerError(
            "the model's vocabulary size is not known", where=entry.url, hint="give the model as a folder"
        )
    headers = api_headers({**os.environ, **request.env}, request.engine_args)
    step = None
    if made.scoring == "chunked":
        answer = http_request(entry.address, made.info_path, headers=headers)
        said = answer.json() if answer.ok else {}
        step = said.get("chunk_tokens") if isinstance(said.get("chunk_tokens"), int) else None
    return Target(
        entry.address, entry.info.model or "", entry.vocab_size, entry.info.max_model_len, headers, step_tokens=step
    )


def _with_verdict(entry: ServerEntry, figures: dict[str, Any]) -> ServerEntry:
    entry = msgspec.structs.replace(entry, info=msgspec.structs.replace(entry.info, verified=figures))
    registry.save(entry)
    return entry


def _guarded(entry: ServerEntry, work: Callable[[], T]) -> T:
    """Do something with a server that was just started; whatever goes wrong, the server does not stay behind."""
    try:
        with interrupts.kept_back() as asked, asked.heeded():
            return work()
    except BaseException as error:
        stop(entry)
        if isinstance(error, KvloadError):
            message = f"the verification could not be made: {error.message}"
            raise ServerError(message, where=error.where, hint=error.hint) from error
        raise
