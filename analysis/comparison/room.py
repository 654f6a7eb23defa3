"""What an arm's cache holds beside the baseline's: its pool, the bytes of a token, and what this traffic took."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvload.analysis.comparison.arms import ArmSummary
from kvload.analysis.records.pairs import LoadedArm
from kvload.analysis.records.table import Floats, RecordTable
from kvload.records import ServerSample

MOST_SAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class CacheRoom:
    """An arm's cache against the baseline's; every figure is None where it is not known on both sides.

    Attributes:
        pool_ratio: tokens that the pool holds, arm over baseline, as the servers report them.
        base_pool_tokens, pool_tokens: these tokens.
        base_bytes, bytes: bytes of a token over all layers and KV heads, as the methods claim them.
        claim_tokens: length of the sequence that ``bytes`` is claimed for.
        element_bytes: of an uncompressed element of the baseline: 2 for 16-bit types, 4 for float32.
        used_ratio: share of the pool that a token of this traffic took under the baseline, over that under the arm,
            from the scraped usage and the tokens in flight; above 1 the arm took less.
        tokens_per_request: mean length of the sequences in flight when the arm's usage was read.
        verified: whether the arm's server passed its verification; None where it was not made.
    """

    pool_ratio: float | None
    base_pool_tokens: int | None
    pool_tokens: int | None
    base_bytes: float | None
    bytes: float | None
    claim_tokens: int | None
    element_bytes: int | None
    used_ratio: float | None
    tokens_per_request: float | None
    verified: bool | None


def cache_room(base: ArmSummary, arm: ArmSummary, base_runs: LoadedArm, arm_runs: LoadedArm) -> CacheRoom:
    """Put the two caches side by side."""
    used_base, _ = _share_per_token(base_runs)
    used, per_request = _share_per_token(arm_runs)
    both = base.pool_tokens and arm.pool_tokens
    verified = arm.info.verified
    return CacheRoom(
        pool_ratio=arm.pool_tokens / base.pool_tokens if base.pool_tokens and arm.pool_tokens else None,
        base_pool_tokens=base.pool_tokens if both else None,
        pool_tokens=arm.pool_tokens if both else None,
        base_bytes=base.info.bytes_per_token,
        bytes=arm.info.bytes_per_token,
        claim_tokens=arm.info.claim_tokens,
        element_bytes=base.info.element_bytes,
        used_ratio=used_base / used if used_base and used else None,
        tokens_per_request=per_request,
        verified=None if not verified or "ok" not in verified else bool(verified["ok"]),
    )


def _share_per_token(arm: LoadedArm) -> tuple[float | None, float | None]:
    """The share of the pool that a token in flight took, and the mean length of a sequence in flight."""
    usage = tokens = requests = 0.0
    for run in arm.runs.values():
        samples = [s for s in run.samples if s.error is None and s.cache_usage]
        held, number = tokens_in_flight(run.table, samples[:: -(-len(samples) // MOST_SAMPLES) or 1])
        known = held > 0
        shares = np.array([s.cache_usage for s in samples[:: -(-len(samples) // MOST_SAMPLES) or 1]], np.float64)
        usage += float(shares[known].sum())
        tokens += float(held[known].sum())
        requests += float(number[known].sum())
    if not tokens or not requests:
        return None, None
    return usage / tokens, tokens / requests


def tokens_in_flight(table: RecordTable, samples: Sequence[ServerSample]) -> tuple[Floats, Floats]:
    """Prompt and output tokens of the requests whose answers were coming at each sample, and how many these were.

    Output tokens are taken to come evenly between the first and the last.
    """
    prompt = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    known = ~np.isnan(prompt) & ~np.isnan(table.t_first_s) & ~np.isnan(table.t_last_s) & ~np.isnan(table.output_tokens)
    first, last = table.t_first_s[known], table.t_last_s[known]
    prompt, output = prompt[known], table.output_tokens[known]
    held, number = np.zeros(len(samples)), np.zeros(len(samples))
    for place, sample in enumerate(samples):
        rows = np.flatnonzero((first <= sample.t_s) & (sample.t_s < last))
        done = (sample.t_s - first[rows]) / (last[rows] - first[rows])
        held[place] = float((prompt[rows] + output[rows] * done).sum())
        number[place] = len(rows)
    return held, number
