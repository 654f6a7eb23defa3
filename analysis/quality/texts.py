"""How far the answers' texts are the baseline's: no score, since nobody says which of two different answers is right.

Greedy decoding tips over at near ties: another batch, another kernel or another dtype changes many answers without
making them worse. So these figures say that answers differ, and mean something only beside two runs of the baseline.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from kvload.analysis.quality import scorers
from kvload.analysis.records.table import Bools, Floats, Ints
from kvload.analysis.statistics import estimates
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RequestRecord

_WORDS = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class TextPairs:
    """Answers beside the baseline's, one entry a pair that has both texts.

    Attributes:
        request: the request's index.
        identical: text, reasoning and tool calls are the same.
        first_other: position of the first token that differs (of the first word, where token ids were not kept); NaN
            where none does.
        agreement: ROUGE-L against the baseline's answer, 0 to 1; NaN for requests whose right answer is known.
        by_tokens: positions count tokens, not words.
    """

    request: Ints
    identical: Bools
    first_other: Floats
    agreement: Floats
    by_tokens: bool


@dataclass(frozen=True, kw_only=True)
class TextChange:
    """The texts of one arm against the baseline's, over all repeats.

    Attributes:
        n: pairs.
        identical: share of answers that are the same to the last character.
        first_other: median position of the first difference among those that differ; None where none does.
        unit: ``token`` or ``word``.
        agreement: mean agreement of the answers of which nobody knows the right one; None where there are none.
    """

    n: int
    identical: Estimate
    first_other: float | None
    unit: str
    agreement: float | None


def said(record: RequestRecord) -> tuple[str, str, str]:
    """What an answer said: its text, its reasoning, and the tools it called, by name and arguments."""
    calls = [f"{call.get('name')}({_arguments(call.get('arguments') or '')})" for call in record.tool_calls or ()]
    return record.text or "", record.reasoning or "", "\n".join(calls)


def _arguments(text: str) -> str:
    """A call's arguments whatever their white space and the order of their names."""
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="deterministic").decode()
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, RecursionError, OverflowError):
        return text


def compare_texts(base: Iterable[RequestRecord], other: Iterable[RequestRecord]) -> TextPairs:
    """Put two runs' answers side by side, by index; only requests that ended well and said something on both sides."""
    before = {record.index: record for record in base if record.status == "ok" and any(said(record))}
    rows = []
    by_tokens = True
    for record in other:
        one = before.get(record.index)
        if one is None or record.status != "ok" or not any(said(record)):
            continue
        first, second = said(one), said(record)
        if first == second:
            rows.append((record.index, True, np.nan, np.nan if one.expected is not None else 1.0))
            continue
        ids = one.token_ids is not None and record.token_ids is not None
        by_tokens &= ids
        position = _first_other(one, record)
        known = one.expected is not None
        agreement = np.nan if known else scorers.agreement(second[0], first[0], second[1:], first[1:])
        rows.append((record.index, False, position, agreement))
    rows.sort()
    return TextPairs(
        request=np.array([row[0] for row in rows], np.int64),
        identical=np.array([row[1] for row in rows], np.bool_),
        first_other=np.array([row[2] for row in rows], np.float64),
        agreement=np.array([row[3] for row in rows], np.float64),
        by_tokens=by_tokens,
    )


def _first_other(one: RequestRecord, two: RequestRecord) -> float:
    if one.token_ids is not None and two.token_ids is not None:
        left: list[object] = list(one.token_ids)
        right: list[object] = list(two.token_ids)
    else:
        left, right = (list(_WORDS.findall("\n".join(said(record)))) for record in (one, two))
    same = (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return float(next(same, min(len(left), len(right))))


def text_change(pairs: list[TextPairs], *, level: float = estimates.LEVEL) -> TextChange:
    """Sum up the repeats of an arm."""
    request = np.concatenate([each.request for each in pairs])
    identical = np.concatenate([each.identical for each in pairs])
    first = np.concatenate([each.first_other for each in pairs])
    agreement = np.concatenate([each.agreement for each in pairs])
    differing, known = first[~identical], agreement[~np.isnan(agreement)]
    return TextChange(
        n=len(request),
        identical=estimates.clustered_share(identical, request, level=level)
        if len(request)
        else estimates.undefined("Wilson", level=level),
        first_other=float(np.median(differing)) if len(differing) else None,
        unit="token" if all(each.by_tokens for each in pairs) else "word",
        agreement=float(known.mean()) if len(known) else None,
    )
