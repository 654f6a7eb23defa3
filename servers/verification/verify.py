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

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvload.config import state_dir
from kvload.errors import KvloadError, ServerError
from kvload.http import request as http_request
from kvload.servers.engines.base import Adapter, Build, Claim, LaunchPlan, LaunchRequest, has_flag
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.starting import LaunchEvent, OnEvent, api_headers
from kvload.servers.lifecycle.stopping import stop
from kvload.servers.verification.eviction import Proof, prove
from kvload.servers.verification.likelihood import Scores, Target, score

POOL_TOLERANCE = 0.035
"""Pages hold whole numbers of tokens; the worst fit of a method of ours is 2.9 % (leankv at head size 64)."""
POOL_GRAIN_TOKENS = 128
"""Largest block of a pool: its size comes in steps of this many tokens."""
LEAST_EFFECT = 1e-3
"""Nats. Where the context moves the answers by less, nothing can be said of the cache."""
T = TypeVar("T")

FIXED_POOL_FLAGS = ("--num-gpu-blocks-override", "--max-total-tokens")


class VerificationFailedError(ServerError):
    """A server that runs, but not as its method claims. ``result`` holds the figures."""

    def __init__(self, message: str, result: dict[str, Any], hint: str | None = None) -> None:
        self.result = result
        super().__init__(message, hint=hint)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a baseline: its pool in tokens, and two measurements of the same scores."""

    pool_tokens: int | None
    scoring: str
    text_tokens: int
    own: list[float]
    again: list[float]
    other: list[float]


@dataclass(frozen=True)
class Verdict:
    """The figures of both checks, as they go into the manifest, and what they object to."""

    figures: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


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
        with _turn(path):
            entry = start(request)
            baseline = _guarded(entry, lambda: measure_baseline(entry, made, request, on_event))
            _keep(path, baseline)
        pool = judge_memory(entry.info.pool_tokens, plan.pool_claim or plan.claim, request, made, model)
        figures = {"ok": pool.ok, "is_baseline": True, "pool_tokens": baseline.pool_tokens, "pool": pool.figures}
        if not pool.ok:
            stop(entry)
            raise VerificationFailedError(f"verification failed: {'; '.join(pool.problems)}", figures)
        return _with_verdict(entry, figures)
    if load_baseline(path) is None:
        with _turn(path) as ours:
            if ours and load_baseline(path) is None:
                text = "verification: no baseline is known for this engine and model; launching it once"
                on_event(LaunchEvent("note", text))
                wanted = replace(request, method="none", name=f"verify-{secrets.token_hex(4)}", port=None)
                entry = start(wanted)
                try:
                    _keep(path, measure_baseline(entry, made, request, on_event))
                finally:
                    stop(entry)
    # Where a launch beside this one measures the baseline, this server starts in the meantime.
    entry = start(request)
    known = _guarded(entry, lambda: _await_baseline(path, on_event))
    if known is None:
        stop(entry)
        return launch_verified(request, made, build, model, plan, start, on_event)
    verdict = _guarded(entry, lambda: check(entry, made, request, plan, model, known, on_event))
    if not verdict.ok:
        stop(entry)
        raise VerificationFailedError(
            f"verification failed for method {request.method}: {'; '.join(verdict.problems)}",
            verdict.figures,
            hint="the server was stopped; --no-verify starts it all the same",
        )
    on_event(LaunchEvent("note", f"verified: {describe(verdict.figures)}"))
    return _with_verdict(entry, verdict.figures)


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


def limit_by_size(ratio: float | None) -> float:
    """The error limit of a setting nothing is known of: the more bytes are kept, the less reason there is to err.

    Args:
        ratio: the pool's tokens over the baseline's; None where they are not known.
    """
    if ratio is None:
        return 0.5
    return next((limit for most, limit in ((1.5, 0.12), (2.2, 0.3), (4.2, 0.5)) if ratio < most), 0.6)


def judge_pool(
    tokens: int | None, baseline_tokens: int | None, claim: Claim | None, compresses: bool, fixed_by: str | None
) -> Verdict:
    """Hold the pool's size against the claim.

    Args:
        tokens, baseline_tokens: pool sizes as the servers report them.
        claim: None where it is not known; then the pool must only be larger than the baseline's.
        compresses: whether the method is meant to make room.
        fixed_by: the flag that set the number of tokens, if one did: then it shows nothing.
    """
    figures: dict[str, Any] = {"tokens": tokens, "baseline_tokens": baseline_tokens, "checked": False}
    if claim is not None:
        figures["claimed_ratio"] = round(claim.ratio, 4)
    if tokens is None or baseline_tokens is None or fixed_by is not None:
        figures["why_not"] = f"its size was set by {fixed_by}" if fixed_by else "a server does not tell its pool's size"
        return Verdict(figures, ())
    ratio = tokens / baseline_tokens
    figures |= {"checked": True, "ratio": round(ratio, 4)}
    if claim is None:
        if compresses and ratio <= 1 + POOL_TOLERANCE:
            return Verdict(figures, (f"nothing is compressed: the pool holds {ratio:.2f} times the baseline's tokens",))
        return Verdict(figures, ())
    if compresses and claim.ratio <= 1:
        return Verdict(figures, ("nothing is compressed: the method leaves all layers of this model as they are",))
    tolerance = POOL_TOLERANCE + POOL_GRAIN_TOKENS / baseline_tokens
    if abs(ratio / claim.ratio - 1) > tolerance:
        return Verdict(
            figures,
            (f"the pool holds {ratio:.3f} times the baseline's tokens; the method's bytes claim {claim.ratio:.3f}",),
        )
    return Verdict(figures, ())


def copies(ranks: int, model: ModelFacts) -> float:
    """How often a KV head is stored where layers are spread over more GPUs than there are heads (1 where they are not).

    Args:
        ranks: GPUs that every layer is spread over.
    """
    return max(1.0, ranks / model.kv_heads) if model.kv_heads else 1.0


def judge_memory(
    tokens: int | None, claim: Claim | None, request: LaunchRequest, made: Adapter, model: ModelFacts
) -> Verdict:
    """Hold the pool of a server that is spread over several GPUs against the memory that all of them were given for it.

    Each GPU holds its part of every token, so that the server's pool is neither the sum of theirs nor one of theirs.

    Args:
        tokens: the pool's size as the server tells it.
        claim: the method's; None where it is not known.
    """
    ranks = made.ranks(request)
    figures: dict[str, Any] = {"tokens": tokens, "tensor_parallel": ranks, "checked": False}
    fixed = any(has_flag(request.engine_args, flag) for flag in FIXED_POOL_FLAGS)
    known = tokens is not None and claim is not None and request.kv_memory is not None
    if ranks == 1 or fixed or not known or tokens is None or claim is None or request.kv_memory is None:
        return Verdict(figures, ())
    expected = request.kv_memory / (claim.bytes_per_token * copies(ranks, model))
    figures |= {"checked": True, "expected_tokens": round(expected)}
    if abs(tokens / expected - 1) <= POOL_TOLERANCE + POOL_GRAIN_TOKENS / expected:
        return Verdict(figures, ())
    return Verdict(
        figures,
        (f"the pool of the server on {ranks} GPUs holds {tokens:,} tokens; its memory is that of {expected:,.0f}",),
    )


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


def judge_bytes(stored: float, claim: Claim, tokens: int | None) -> Verdict:
    """Hold the bytes a token takes against the claim, where the number of tokens was given and so shows nothing.

    Args:
        stored: bytes per token over all layers, from what the engine says of its pool's memory.
        tokens: the pool's size, for the figures.
    """
    ratio = claim.baseline_bytes_per_token / stored
    figures: dict[str, Any] = {
        "tokens": tokens,
        "checked": True,
        "bytes_per_token": round(stored, 1),
        "claimed_bytes_per_token": claim.bytes_per_token,
        "ratio": round(ratio, 4),
        "claimed_ratio": round(claim.ratio, 4),
    }
    if abs(stored / claim.bytes_per_token - 1) <= POOL_TOLERANCE:
        return Verdict(figures, ())
    return Verdict(
        figures, (f"a token takes {stored:,.0f} bytes of the pool; the method claims {claim.bytes_per_token:,.0f}",)
    )


def judge_scores(scores: Scores | ServerError, baseline: Baseline, limit: float) -> Verdict:
    """Hold a method's scores against the baseline's.

    Args:
        scores: or the failure to take them.
        limit: largest share of the context's effect that may be lost.
    """
    figures: dict[str, Any] = {"checked": True, "limit": limit, "scoring": baseline.scoring}
    if isinstance(scores, ServerError):
        figures["failure"] = scores.message
        return Verdict(figures, (f"the server failed at the check: {scores.message}",))
    if len(scores.own) != len(baseline.own):
        figures |= {"checked": False, "why_not": "the baseline was scored over another text"}
        return Verdict(figures, ())
    effect = rms_difference(baseline.other, baseline.own)
    noise = rms_difference(baseline.again, baseline.own)
    error = rms_difference(scores.own, baseline.own)
    figures |= {
        "text_tokens": scores.text_tokens,
        "scored_tokens": len(scores.own),
        "baseline_nll": round(-_mean(baseline.own), 4),
        "nll": round(-_mean(scores.own), 4),
        "other_context_nll": round(-_mean(baseline.other), 4),
        "context_effect": round(effect, 5),
        "noise": round(noise, 5),
        "error": round(error, 5),
    }
    if effect < max(LEAST_EFFECT, 4 * noise):
        figures |= {"checked": False, "why_not": "this model's answers hardly depend on their context"}
        return Verdict(figures, ())
    lost = error / effect
    figures["lost"] = round(lost, 4)
    if lost <= limit:
        return Verdict(figures, ())
    problem = (
        f"the cache is corrupt: its error is {lost:.2f} of the effect of the context (limit {limit:g}); "
        f"{figures['nll']:.3f} nats a token against {figures['baseline_nll']:.3f}"
    )
    return Verdict(figures, (problem,))


def combine(pool: Verdict, scores: Verdict) -> Verdict:
    """Both checks as one, in the form of the manifest's ``verified``."""
    problems = (*pool.problems, *scores.problems)
    figures = {"ok": not problems, "pool": pool.figures, "soundness": scores.figures, "problems": list(problems)}
    return Verdict(figures, problems)


def with_eviction(verdict: Verdict, proof: Proof) -> Verdict:
    """A verdict with the proof that blocks are freed, or the objection that they are not."""
    problems = (*verdict.problems, *proof.problems)
    figures = {**verdict.figures, "ok": not problems, "eviction": proof.figures, "problems": list(problems)}
    return Verdict(figures, problems)


def describe(figures: dict[str, Any]) -> str:
    """Both checks in one line."""
    pool, soundness = figures["pool"], figures["soundness"]
    claimed = f" (claimed {pool['claimed_ratio']:.2f})" if "claimed_ratio" in pool else ""
    size = (
        f"pool {pool['ratio']:.2f} times the baseline's{claimed}"
        if pool["checked"]
        else f"pool not checked ({pool['why_not']})"
    )
    sound = (
        f"cache error {soundness['lost']:.3f} of the context's effect (limit {soundness['limit']:g})"
        if soundness["checked"]
        else f"soundness not checked ({soundness['why_not']})"
    )
    evicted = figures.get("eviction")
    if evicted is None:
        return f"{size}; {sound}"
    freed = (
        f"{evicted['freed_blocks']} blocks freed of a request of {evicted['prompt_tokens']} tokens"
        if evicted["checked"]
        else f"eviction not checked ({evicted['why_not']})"
    )
    return f"{size}; {sound}; {freed}"


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


def baseline_path(request: LaunchRequest, build: Build, model: ModelFacts) -> Path:
    """Where the baseline's figures are kept: the name is made of everything they depend on."""
    key = {
        "engine": build.engine,
        "version": build.version,
        "device": build.device,
        "model": model.digest or model.name,
        "load_format": request.load_format,
        "kv_memory": request.kv_memory,
        "max_model_len": request.max_model_len,
        "tensor_parallel": request.tensor_parallel,
        "engine_args": list(request.engine_args),
        "env": dict(sorted(request.env.items())),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return state_dir() / "baselines" / f"{build.engine}-{digest}.json"


def load_baseline(path: Path) -> Baseline | None:
    """The figures kept there; None where there are none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except (OSError, msgspec.MsgspecError):
        return None


def rms_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Root of the mean squared difference of two rows of equal length."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _keep(path: Path, baseline: Baseline) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Servers that start beside each other may each measure it.
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(msgspec.json.encode(baseline))
    temporary.replace(path)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Whether it is this launch that measures a baseline, of all that start beside each other, in any process."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _await_baseline(path: Path, on_event: OnEvent) -> Baseline | None:
    """The baseline's figures, once whoever measures them is done; None where that came to nothing."""
    while (known := load_baseline(path)) is None:
        with _turn(path) as ours:
            if ours:
                return load_baseline(path)
        on_event(LaunchEvent("waiting", "verification: the baseline is measured beside"))
        time.sleep(0.2)
    return known


def _with_verdict(entry: ServerEntry, figures: dict[str, Any]) -> ServerEntry:
    entry = msgspec.structs.replace(entry, info=msgspec.structs.replace(entry.info, verified=figures))
    registry.save(entry)
    return entry


def _guarded(entry: ServerEntry, work: Callable[[], T]) -> T:
    """Do something with a server that was just started; whatever goes wrong, the server does not stay behind."""
    try:
        return work()
    except BaseException as error:
        stop(entry)
        if isinstance(error, KvloadError):
            message = f"the verification could not be made: {error.message}"
            raise ServerError(message, where=error.where, hint=error.hint) from error
        raise
