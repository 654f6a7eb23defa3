"""How many tokens an answer has, and which of its chunks they came in.

Chunks are not tokens, and a server's count is a claim. What arrived comes first: a chunk with text (or reasoning, a
tool call, a refusal) is at least one token at its time. Tokens that are listed (by their ids, or their log
probabilities) and counts are believed as far as they agree with that; where they do not, chunks are counted, and the
answer says so.

A chunk without text is a token only where one must stand: between two chunks with text, where the server counts more
tokens than there are texts (half a character that waits for its rest). Before the first text it is a keep-alive or
names the role; the one that closes the answer is none either, and a token that the server counts beyond the texts (the
end of the sequence) is kept apart, for it has no time of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvload.workloads.client.events import MAX_COUNT, NO_RAW, Choice, Event
from kvload.workloads.client.sse import Reading

_UNSEEN_TOKENS = 16
"""Tokens that a server may count and not show for an answer, and for each tool call: marks around them, a stop word."""

Source = Literal["usage", "token_ids", "chunks"]


@dataclass(frozen=True, slots=True)
class Counted:
    """The tokens of one answer.

    Attributes:
        by_event: tokens in every event, shape (events,).
        total: tokens in all; None where nothing was answered that could be counted.
        source: where ``total`` is from.
        end_tokens: those of ``total`` that came in no chunk: the end of the sequence.
        thought: tokens of reasoning among ``total``; None where there is no reasoning.
        doubt: why the server's own count was not believed; None if it was, or there is none.
        unproven: those of ``total`` that nothing but the server's count speaks for: neither a chunk nor a listed token.
    """

    by_event: npt.NDArray[np.int64]
    total: int | None
    source: Source | None
    end_tokens: int = 0
    thought: int | None = None
    doubt: str | None = None
    unproven: int = 0


def count_tokens(reading: Reading, max_tokens: int | None = None) -> Counted:
    """Count an answer's tokens.

    Args:
        max_tokens: the most that were asked for; a larger claim is not believed.
    """
    choices = [event.choice for event in reading.events]
    carries = [choice is not None and choice.carries for choice in choices]
    run = len(reading.run)
    carrying = sum(carries) + run
    ids = _by_ids(choices)
    claim, doubt = _claim(reading.events, carrying, sum(ids or ()), max_tokens)
    if claim is not None and claim > max(carrying, sum(ids or ())) + 1:
        doubt = _unfounded(claim, reading, choices, carries)
        claim = claim if doubt is None else None
    if ids is not None and _in_step(ids, carries, run):
        total = claim if claim is not None else sum(ids)
        source: Source = "usage" if claim is not None else "token_ids"
        counts = _placed(ids, reading)
        unproven = max(total - sum(ids) - 1, 0)
        return Counted(counts, total, source, 0, _thought(reading, choices, counts, total), doubt, unproven)
    running = _by_running_total(reading.events, carries) if not run and doubt is None else None
    if running is not None:
        single, end_tokens = running
    else:
        single, end_tokens = _by_chunks(choices, carries, reading, claim)
    counts = _placed(single, reading)
    if claim is not None:
        total, source = claim, "usage"
    elif ids is not None and sum(ids) >= carrying:
        total, source = sum(ids), "token_ids"
    elif reading.ends.size:
        total, source, end_tokens = int(counts.sum()), "chunks", 0
    else:
        return Counted(counts, None, None, doubt=doubt)
    silent = sum(choice is not None and not full for choice, full in zip(choices, carries, strict=True))
    unproven = max(total - max(carrying + silent, sum(ids or ())), 0)
    thought = _thought(reading, choices, counts, total)
    return Counted(counts, total, source, end_tokens, thought, doubt, unproven)


def cached_of_prompt(claim: int | None, prompt_tokens: int | None) -> tuple[int | None, str | None]:
    """The server's count of a prompt's tokens that it had in its cache, if it is possible; else why it is not.

    Args:
        claim: the count; None where the server gives none.
        prompt_tokens: tokens of the whole prompt as the server counts them; None where they are not known.
    """
    if claim is None or 0 <= claim <= (MAX_COUNT if prompt_tokens is None else prompt_tokens):
        return claim, None
    of = "" if prompt_tokens is None else f" of a prompt of {prompt_tokens}"
    return None, f"the server counts {_shown(claim)} cached tokens{of}"


def _placed(single: Sequence[int], reading: Reading) -> npt.NDArray[np.int64]:
    """The counts of the single events with those of the run in their place."""
    at, run = reading.run_at, len(reading.run)
    counts = np.ones(len(single) + run, np.int64)
    counts[:at] = single[:at]
    counts[at + run :] = single[at:]
    return counts


def _by_ids(choices: Sequence[Choice | None]) -> list[int] | None:
    """The tokens that each event lists, by id or by log probability; None where the server lists none."""
    listed = [None if choice is None else choice.listed for choice in choices]
    return [number or 0 for number in listed] if any(number is not None for number in listed) else None


def _in_step(ids: Sequence[int], carries: Sequence[bool], run: int) -> bool:
    """Every chunk with text has ids beside it."""
    return not run and any(ids) and all(number > 0 for number, full in zip(ids, carries, strict=True) if full)


def _claim(events: Sequence[Event], carrying: int, ids: int, max_tokens: int | None) -> tuple[int | None, str | None]:
    """The server's last count of the answer's tokens, if it is possible; else why it is not."""
    claims = [event.usage.completion_tokens for event in events if event.usage is not None]
    claim = next((found for found in reversed(claims) if found is not None), None)
    if claim is None:
        return None, None
    seen = max(carrying, ids)
    most = MAX_COUNT if not max_tokens else max(max_tokens, seen)
    if claim < seen:
        came = f"{carrying} chunks" if carrying >= ids else f"{ids} listed tokens"
        return None, f"the server counts {_shown(claim)} tokens, but {came} came"
    if claim > most:
        asked = f", but at most {max_tokens} were asked for" if max_tokens else ""
        return None, f"the server counts {_shown(claim)} tokens{asked}"
    return claim, None


def _unfounded(claim: int, reading: Reading, choices: Sequence[Choice | None], carries: Sequence[bool]) -> str | None:
    """Why a count of more tokens than chunks cannot be; None where it can.

    Several tokens may come in one chunk, but no more of them than it has bytes, whatever the vocabulary; and a running
    count that is right up to the last text cannot jump behind it.
    """
    thought = max(_thought_claim(reading.events) or 0, 0)
    silent = sum(choice is not None and not full for choice, full in zip(choices, carries, strict=True))
    calls = sum(len(choice.added.tool_calls or ()) for choice in choices if choice is not None and choice.added)
    seen_bytes = sum(map(_visible_bytes, choices)) + sum(len(text.encode("utf-8", "replace")) for text in reading.run)
    if claim - thought > seen_bytes + silent + _UNSEEN_TOKENS * (1 + calls):
        return f"the server counts {claim} tokens, but {seen_bytes} bytes of text came"
    if True not in carries:
        return None
    last = len(carries) - 1 - carries[::-1].index(True)
    usage = reading.events[last].usage
    running = None if usage is None else usage.completion_tokens
    carrying = sum(carries) + len(reading.run)
    behind = sum(choice is not None for choice in choices[last + 1 :])
    if running is not None and running >= carrying and claim > running + behind + 1:
        return f"the server counts {running} tokens with the last text, and {claim} in the end"
    return None


def _visible_bytes(choice: Choice | None) -> int:
    """UTF-8 bytes of everything in a chunk that a user waits for."""
    if choice is None:
        return 0
    texts = [choice.text or ""]
    if choice.added is not None:
        texts += [choice.added.content or "", choice.added.refusal or "", choice.added.thought]
        functions = [call.function for call in choice.added.tool_calls or ()] + [choice.added.function_call]
        texts += [part for one in functions if one is not None for part in (one.name or "", one.arguments or "")]
        if choice.added.audio is not NO_RAW:
            return MAX_COUNT
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _shown(number: int) -> str:
    return str(number) if abs(number) <= MAX_COUNT else "an impossible number of"


def _by_running_total(events: Sequence[Event], carries: Sequence[bool]) -> tuple[list[int], int] | None:
    """Tokens of each event by a count that comes with every chunk; None where there is none that grows with the text.

    What it counts before the first text came with that text as far as a user can tell; what it counts in the closing
    chunk is the end of the sequence.
    """
    totals = [event.usage.completion_tokens if event.usage is not None else None for event in events]
    first = carries.index(True) if True in carries else None
    if first is None or first >= len(events) - 1 or sum(carries) < 2 or totals[first] is None:
        return None
    counts = [0] * len(events)
    running = end_tokens = 0
    last = len(carries) - 1 - carries[::-1].index(True)
    for number, total in enumerate(totals):
        if total is None:
            if carries[number]:
                return None
            continue
        grown = total - running
        if grown < 0 or (carries[number] and grown == 0):
            return None
        if number < first:
            continue
        if number > last:
            end_tokens += grown
        else:
            counts[number] = grown
        running = total
    return counts, end_tokens


def _by_chunks(
    choices: Sequence[Choice | None], carries: Sequence[bool], reading: Reading, claim: int | None
) -> tuple[list[int], int]:
    """One token for each chunk with text, and what the claim has beyond them where it can stand."""
    counts = [int(full) for full in carries]
    run = len(reading.run)
    carrying = sum(counts) + run
    missing = 0 if claim is None else claim - carrying
    silent = [
        number
        for number, choice in enumerate(choices)
        if choice is not None and not carries[number] and not choice.names_a_role
    ]
    if not carrying:
        # not one text: special tokens alone, which is proven where there is a chunk for each of them up to the cap
        cut = any(choice is not None and choice.finish_reason == "length" for choice in choices)
        if cut and missing > 0 and len(silent) == missing:
            for number in silent:
                counts[number] = 1
        return counts, 0
    # the run lies in front of the event at run_at
    places = [float(number) for number, full in enumerate(carries) if full] + [reading.run_at - 0.5] * bool(run)
    hidden = min(_hidden_thought(reading, choices), max(missing, 0))
    if hidden and not run:
        counts[carries.index(True)] += hidden
    missing -= hidden
    between = [number for number in silent if min(places) < number < max(places)][: max(missing, 0)]
    for number in between:
        counts[number] = 1
    missing -= len(between)
    if missing == 1 and any(number > max(places) for number in silent):
        return counts, 1
    if carrying == 1 and missing > 0 and not run:
        counts[carries.index(True)] += missing
    return counts, 0


def _hidden_thought(reading: Reading, choices: Sequence[Choice | None]) -> int:
    """Tokens of reasoning that the server counts but does not show: they came before the first text."""
    shown = any(choice is not None and choice.added is not None and choice.added.thought for choice in choices)
    return 0 if shown else max(_thought_claim(reading.events) or 0, 0)


def _thought_claim(events: Sequence[Event]) -> int | None:
    claims = [event.usage.thought_tokens for event in events if event.usage is not None]
    return next((found for found in reversed(claims) if found is not None), None)


def _thought(
    reading: Reading, choices: Sequence[Choice | None], counts: npt.NDArray[np.int64], total: int | None
) -> int | None:
    """Tokens of reasoning: as the server tells them, if that is possible, else those of the chunks that hold it."""
    claim = _thought_claim(reading.events)
    if not claim and all(choice is None or choice.text or choice.added is None for choice in choices):
        return None
    single = np.delete(counts, np.s_[reading.run_at : reading.run_at + len(reading.run)])
    seen = [
        int(count)
        for choice, count in zip(choices, single, strict=True)
        if choice is not None and not choice.answers and choice.added is not None and choice.added.thought
    ]
    if claim is not None and len(seen) <= claim <= (total or 0) and (claim or seen):
        return claim
    return sum(seen) if seen else None
