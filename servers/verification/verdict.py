"""What the figures of a check mean: a pool's size held against its claim, scores held against the baseline's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvload.errors import ServerError
from kvload.servers.engines.arguments import has_flag
from kvload.servers.engines.base import Adapter, Claim, LaunchRequest
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.verification.baselines import Baseline
from kvload.servers.verification.eviction import Proof
from kvload.servers.verification.likelihood import Scores

POOL_TOLERANCE = 0.035
"""Pages hold whole numbers of tokens; the worst fit of a method of ours is 2.9 % (leankv at head size 64)."""


POOL_GRAIN_TOKENS = 128
"""Largest block of a pool: its size comes in steps of this many tokens."""


LEAST_EFFECT = 1e-3
"""Nats. Where the context moves the answers by less, nothing can be said of the cache."""


FIXED_POOL_FLAGS = ("--num-gpu-blocks-override", "--max-total-tokens")


@dataclass(frozen=True)
class Verdict:
    """The figures of both checks, as they go into the manifest, and what they object to."""

    figures: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


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
    if made.width(request) == 1 or fixed or not known or tokens is None or claim is None or request.kv_memory is None:
        return Verdict(figures, ())
    expected = request.kv_memory / (claim.bytes_per_token * copies(ranks, model))
    figures |= {"checked": True, "expected_tokens": round(expected)}
    if abs(tokens / expected - 1) <= POOL_TOLERANCE + POOL_GRAIN_TOKENS / expected:
        return Verdict(figures, ())
    return Verdict(
        figures,
        (f"the pool of the server on {ranks} GPUs holds {tokens:,} tokens; its memory is that of {expected:,.0f}",),
    )


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


def rms_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Root of the mean squared difference of two rows of equal length."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
