"""Whether two arms count tokens alike, where one of them is believed on its word.

A chunk may hold several tokens, and how many a server alone may say. Such a count cannot be checked against the chunks,
but against the other arm and the servers' own tokenizers: one model's tokens have about as many bytes each in all arms.
Where they have not, the two counts are not of the same thing, and no length, TPOT or throughput of one may be held
against the other's.
"""

from dataclasses import replace

import numpy as np

from kvload.analysis.quality.texts import said
from kvload.analysis.records.loading import texts
from kvload.analysis.records.pairs import LoadedArm, LoadedRun, Pairs
from kvload.analysis.records.table import Categories, count_true, proven

UNLIKE_SHARE = 0.2
"""Arms whose shares of unproven tokens are closer than this are taken to count alike."""

UNLIKE_RATIO = 1.5
"""Tokens a byte of text that differ by more than this factor are not the same tokens."""

UNLIKE_PROMPT, UNLIKE_PROMPT_TOKENS = 0.1, 16
"""Prompts whose counts differ by more than this share, and by more tokens, are unlike: templates differ by less."""

_MOST_TEXTS = 500


def held_against(base: LoadedArm, other: LoadedArm) -> LoadedArm:
    """The other arm, with its answers taken out where the two arms' counts contradict their texts or tokenizers."""
    shares = [_unproven_share(base), _unproven_share(other)]
    alike = abs(shares[0] - shares[1]) <= UNLIKE_SHARE
    runs = dict(other.runs)
    for repeat in set(base.runs) & set(runs):
        one, two = base.runs[repeat], runs[repeat]
        reason = _by_tokenizers(one, two, base.name) or (None if alike else _contradiction(one, two, base.name))
        if reason is not None:
            runs[repeat] = _doubted(runs[repeat], reason)
    return replace(other, runs=runs)


def unlike_prompts(pairs: Pairs) -> int:
    """Pairs of which the servers counted the same prompt unlike: one cut it, or made another of it."""
    before, after = pairs.base.prompt_tokens, pairs.other.prompt_tokens
    apart = np.abs(after - before)
    unlike = (apart > UNLIKE_PROMPT * np.maximum(before, after)) & (apart > UNLIKE_PROMPT_TOKENS)
    return count_true(unlike & pairs.answered)


def _by_tokenizers(one: LoadedRun, two: LoadedRun, base_name: str) -> str | None:
    """Why two runs do not count alike, by what their servers' own tokenizers find in their texts."""
    first, second = one.manifest.token_check, two.manifest.token_check
    if first is None or second is None or not min(first.counted, second.counted, first.tokenized, second.tokenized):
        return None
    before, after = first.counted / first.tokenized, second.counted / second.tokenized
    if 1 / UNLIKE_RATIO <= after / before <= UNLIKE_RATIO:
        return None
    return (
        f"it counts {after:.2f} tokens for each that its tokenizer finds in its texts, {base_name} counts {before:.2f}"
    )


def _unproven_share(arm: LoadedArm) -> float:
    ok = arm.table.ok
    tokens = float(np.nansum(arm.table.output_tokens[ok]))
    return float(arm.table.unproven_tokens[ok].sum()) / tokens if tokens else 0.0


def _contradiction(one: LoadedRun, two: LoadedRun, base_name: str) -> str | None:
    """Why the counts of two runs cannot both be right; None where they may, or there are no texts to tell by."""
    if one.path is None or two.path is None:
        return None
    both = np.intersect1d(one.table.index[one.table.ok], two.table.index[two.table.ok])[:_MOST_TEXTS].tolist()
    each = []
    for run in (one, two):
        records = texts(run.path, both).values() if run.path is not None else ()
        tokens = sum(record.output_tokens or 0 for record in records)
        size = sum(len(part.encode("utf-8", "replace")) for record in records for part in said(record))
        each.append(tokens / size if size else None)
    before, after = each
    if not before or not after or 1 / UNLIKE_RATIO <= after / before <= UNLIKE_RATIO:
        return None
    return f"its texts have {after:.2f} tokens a byte by its own count, those of {base_name} {before:.2f}"


def _doubted(run: LoadedRun, reason: str) -> LoadedRun:
    table = run.table
    names = (*table.count_doubt.names, reason)
    codes = np.where(table.ok, len(names) - 1, table.count_doubt.codes)
    return replace(run, table=proven(replace(table, count_doubt=Categories(names, codes))))
