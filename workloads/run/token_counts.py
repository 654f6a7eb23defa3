"""A server's count of its answers' tokens, held against its own tokenizer after the run.

What a stream shows bounds a count from below only: several tokens may come in one chunk. Where a server has
``/tokenize`` it can be asked what its texts amount to. A text that is tokenised again need not give the tokens that
were generated, but in a sample of answers about as many.
"""

import random
from collections.abc import Callable, Iterable

from kvload.records import RequestRecord, TokenCheck
from kvload.rundir import RunDir

SAMPLE = 16
"""Answers that are asked about."""

_LEAST_TOKENS = 4
_MOST_CHARACTERS = 100_000


def sampled(records: Iterable[RequestRecord], most: int = SAMPLE) -> list[RequestRecord]:
    """Some of the answers whose count can be held against their text, each as likely as any other, by a fixed seed.

    Answers with token ids are left out, whose count is proven, and those with reasoning or tool calls, of whose tokens
    some are marks that no text shows.
    """
    rng = random.Random(0)
    found: list[RequestRecord] = []
    seen = 0
    for record in records:
        if not _can_be_held(record):
            continue
        seen += 1
        if len(found) < most:
            found.append(record)
        elif (place := rng.randrange(seen)) < most:
            found[place] = record
    return found


def check_counts(run: RunDir, count: Callable[[str], int | None]) -> TokenCheck | None:
    """Hold a run's counts against a tokenizer.

    Args:
        count: tokens of a text, without special ones; None where the server does not tell.

    Returns:
        None where there is nothing to hold, or nobody to ask.
    """
    answers = counted = tokenized = 0
    for record in sampled(record for record, _ in run.records()):
        tokens = count(record.text or "")
        if tokens is None:
            return None
        answers += 1
        counted += (record.output_tokens or 0) - record.end_tokens
        tokenized += tokens
    return TokenCheck(answers=answers, counted=counted, tokenized=tokenized) if answers else None


def _can_be_held(record: RequestRecord) -> bool:
    text = record.text
    if record.status != "ok" or not text or record.token_ids or record.reasoning or record.tool_calls:
        return False
    is_whole = not record.damaged and "\ufffd" not in text and len(text) <= _MOST_CHARACTERS
    return is_whole and (record.output_tokens or 0) >= _LEAST_TOKENS and not record.reasoning_tokens
