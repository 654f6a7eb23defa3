"""One request of a trace, and kvload's own JSONL format: one such object a line.

::

    {"id": "r1", "arrival": 0.25, "input_length": 1155, "output_length": 211}
    {"id": "r2", "arrival": 0.75, "messages": [{"role": "user", "content": "..."}], "max_tokens": 128,
     "expected": "42", "scorer": "numeric", "task": "sum"}

Exactly one of ``messages``, ``prompt``, ``prompt_token_ids`` and ``input_length`` says what to send; the last has its
prompt made up (see :mod:`kvload.workloads.prompts`). Unknown keys are kept in ``extra``.
"""

from typing import Any

import msgspec


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request as a trace describes it.

    Attributes:
        id: unique within the trace; pairs between runs are formed by it.
        arrival: seconds since the first request of the trace; None where the trace has no times.
        input_length: prompt length in tokens, where the trace gives no text.
        output_length: answer length in tokens as recorded; the length to force in forced mode.
        max_tokens: cap on the answer; None leaves it to the replay's default.
        block_ids: ids of the prompt's blocks of ``block_size`` tokens; equal ids stand for equal blocks after equal
            prefixes.
        session, turn, think_time: turns of one conversation; a turn starts ``think_time`` seconds after the end of
            the former.
        expected, scorer, task: the right answer, how to score against it, and the kind of question.
        sampling: request fields passed through (``temperature``, ``top_p``, ``seed``, ``stop`` ...).
        extra: whatever else the source had.
    """

    id: str
    arrival: float | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    input_length: int | None = None
    output_length: int | None = None
    max_tokens: int | None = None
    block_ids: list[int] | None = None
    block_size: int | None = None
    session: str | None = None
    turn: int | None = None
    think_time: float | None = None
    expected: str | None = None
    scorer: str | None = None
    task: str | None = None
    sampling: dict[str, Any] = {}
    extra: dict[str, Any] = {}
