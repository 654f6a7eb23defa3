"""One request of a schedule: all that its sender needs, and how a later turn is made of the answers before it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from kvload.records import prompt_digest
from kvload.workloads.schedule.prompts import PromptSpec, made_up_ids

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a later turn's request out of the conversation so far.

    Attributes:
        kind: what the conversation is made of, and so which of the next three holds what is new in this turn.
        fields: the request without its prompt.
        filler: makes token ids in place of the server's, should it not tell them.
    """

    kind: Literal["messages", "prompt", "token_ids"]
    messages: list[dict[str, Any]] = []
    prompt: str = ""
    token_ids: list[int] = []
    fields: dict[str, Any]
    filler: PromptSpec


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the schedule.

    Attributes:
        index: position in the whole schedule, the same for every worker and arm.
        offset_s: when it is due, in seconds from the run's zero; a later turn starts no sooner than this, and not
            before the previous turn's end plus ``think_time_s``.
        path: ``/v1/completions`` or ``/v1/chat/completions``.
        body: the whole JSON request; empty where ``follow_up`` is given, see :func:`next_turn`.
        prompt_digest: digest of the prompt; of a turn that is still to be built, of the previous turn's digest and what
            this turn adds.
        input_tokens: the prompt's length where it is known; of a later turn, of what is new in it.
        previous: index of the turn before this one, which must have ended; None for the first.
        server: place of the server it goes to, among several; None to decide when it is sent.
    """

    index: int
    offset_s: float
    request_id: str
    path: str
    body: bytes
    prompt_digest: str
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    input_tokens: int | None = None
    session: str | None = None
    turn: int | None = None
    think_time_s: float = 0.0
    previous: int | None = None
    server: int | None = None
    follow_up: FollowUp | None = None
    expected: str | None = None
    scorer: str | None = None
    task: str | None = None


def next_turn(
    turn: PlannedRequest,
    former: PlannedRequest,
    *,
    text: str,
    token_ids: Sequence[int] | None = None,
    output_tokens: int | None = None,
    tool_calls: Sequence[Mapping[str, str]] | None = None,
) -> PlannedRequest:
    """The turn with its body and digest, made of the previous turn as sent, the server's answer to it, and what is new.

    Args:
        turn: a planned turn; returned as it is where it is complete already.
        former: the turn before it, with its body.
        text: the server's answer to it.
        token_ids: the answer's token ids, where the server told them.
        output_tokens: how many tokens the answer had; so many made-up ones stand in for ids that are not known.
        tool_calls: the tools that the answer called, each with its ``name``, ``arguments`` and, where the server gave
            one, ``id``.
    """
    new = turn.follow_up
    if new is None:
        return turn
    sent = msgspec.json.decode(former.body)
    if new.kind == "messages":
        conversation: Any = [*sent["messages"], *_answered(former, text, tool_calls or (), new.messages)]
    elif new.kind == "prompt":
        conversation = sent["prompt"] + text + new.prompt
    else:
        if token_ids is None:
            answer = made_up_ids(f"answer/{former.request_id}", output_tokens or 0, new.filler)
        else:
            answer = list(token_ids)
        conversation = sent["prompt"] + answer + new.token_ids
    return msgspec.structs.replace(
        turn, body=request_body(turn.path, conversation, new.fields), prompt_digest=digest_of(conversation)
    )


def _answered(
    former: PlannedRequest, text: str, tool_calls: Sequence[Mapping[str, str]], new: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The assistant's answer as a message, and the new messages.

    Results of tools that come next refer to the calls which the server made, in their order: the ids in the trace are
    those of another answer.
    """
    if not tool_calls:
        return [{"role": "assistant", "content": text}, *map(dict, new)]
    ids = [call.get("id") or f"call_{former.index}_{number}" for number, call in enumerate(tool_calls)]
    calls = [
        {"id": name, "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for name, call in zip(ids, tool_calls, strict=True)
    ]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": text or None, "tool_calls": calls}]
    results = 0
    for message in new:
        if message.get("role") == "tool" and results < len(ids):
            messages.append({**message, "tool_call_id": ids[results]})
            results += 1
        else:
            messages.append(dict(message))
    return messages


def digest_of(prompt: Any) -> str:
    """:func:`kvload.records.prompt_digest`, by the fast encoder where it is token ids, whose JSON is the same."""
    if isinstance(prompt, list) and prompt and type(prompt[0]) is int:
        return hashlib.sha256(msgspec.json.encode(prompt)).hexdigest()[:32]
    return prompt_digest(prompt)


def request_body(path: str, prompt: Any, fields: Mapping[str, Any]) -> bytes:
    """The whole JSON request."""
    return msgspec.json.encode({"messages" if path == CHAT else "prompt": prompt, **fields})
