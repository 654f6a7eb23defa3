"""How many tokens a trace's texts have, where that decides whether the server takes them.

Only the server's own tokenizer knows, and it is asked only about texts that may be too long: a token stands for at
least one byte.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from kvload.workloads.traces.fitting import is_made_up
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
    """

    requests: list[TraceRequest]
    estimates: dict[int, int] = field(default_factory=dict)


def measured(
    requests: Sequence[TraceRequest], needs: Sequence[int], limit: int | None, count: TokenCounter | None
) -> Measured:
    """Count the texts that may not fit into ``limit`` tokens beside their answer.

    A later turn is left as it is: its prompt depends on the answers before it.

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
    return found


def _bytes(request: TraceRequest) -> int:
    """Bytes of the prompt and of what the server puts before it: tools, and the frame of each message."""
    if request.prompt is not None:
        return len(request.prompt.encode("utf-8", "surrogatepass"))
    return len(msgspec.json.encode([request.messages, request.sampling.get("tools")]))
