"""How many tokens prompts have that their request does not tell: texts, and turns that follow a conversation.

How long a text is only the server's own tokenizer knows, and it is asked only where that decides whether the server
takes the text: a token stands for at least one byte. A turn of made-up tokens is as long as the turns and answers
before it, and what is new in it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from kvload.workloads.traces.fitting import input_tokens, is_made_up
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

TokenCounter = Callable[[TraceRequest], int | None]
"""Tokens of a request's prompt with its chat template, as the server counts them; None where it does not tell."""

TEMPLATE_TOKENS = 512
"""Room for what a chat template may add."""

BYTES_A_TOKEN = 3.5
"""What a token is taken to stand for where nobody counts: English has about 4.5 bytes a token, Chinese 3."""


@dataclass(frozen=True)
class Measured:
    """Requests with the length of the texts that were counted.

    Attributes:
        estimates: lengths in tokens of texts that nobody counted and that may be too long, by the request's index.
        conversations: lengths in tokens of whole prompts that a later turn makes, by its index.
    """

    requests: list[TraceRequest]
    estimates: dict[int, int] = field(default_factory=dict)
    conversations: dict[int, int] = field(default_factory=dict)


def measured(
    requests: Sequence[TraceRequest], needs: Sequence[int], limit: int | None, count: TokenCounter | None
) -> Measured:
    """Count the texts that may not fit into ``limit`` tokens beside their answer, and the turns of conversations.

    A later turn of text is left as it is: its prompt depends on the answers before it.

    Args:
        requests: the trace.
        needs: for each, the answer's tokens that must find room.
        limit: the server's limit; None where it is not known: nothing is counted.
        count: asks the server; None where it cannot be asked.
    """
    found = Measured(list(requests))
    for index, (request, need) in enumerate(zip(requests, needs, strict=True)):
        is_text = not is_made_up(request) and request.prompt_token_ids is None
        if limit is None or not is_text or (request.turn and continues_conversation(request)):
            continue
        size = _bytes(request)
        if size + TEMPLATE_TOKENS + need <= limit:
            continue
        tokens = None if count is None else count(request)
        if tokens is not None:
            found.requests[index] = msgspec.structs.replace(request, input_length=tokens)
        else:
            found.estimates[index] = math.ceil(size / BYTES_A_TOKEN)
    found.conversations.update(_conversations(found.requests, needs))
    return found


def _conversations(requests: Sequence[TraceRequest], needs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Index and whole length of every later turn whose conversation is known in tokens, answers being as recorded."""
    before: dict[str, int | None] = {}
    for index, (request, need) in enumerate(zip(requests, needs, strict=True)):
        if request.session is None:
            continue
        size = input_tokens(request) if request.messages is None and request.prompt is None else None
        former = before.get(request.session, 0)
        if request.session in before and continues_conversation(request):
            size = None if size is None or former is None else former + size
            if size is not None:
                yield index, size
        answer = need if request.output_length is None else request.output_length
        before[request.session] = None if size is None else size + answer


def _bytes(request: TraceRequest) -> int:
    """Bytes of the prompt and of what the server puts before it: tools, and the frame of each message."""
    if request.prompt is not None:
        return len(request.prompt.encode("utf-8", "surrogatepass"))
    return len(msgspec.json.encode([request.messages, request.sampling.get("tools")]))
