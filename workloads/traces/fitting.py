"""Makes the lengths of a trace fit a server: scaled, capped or left out, only when told to, and always counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from kvload.errors import TraceError
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

TooLong = Literal["error", "drop", "cap", "scale"]


def input_tokens(request: TraceRequest) -> int | None:
    """Length of the prompt in tokens where the trace tells it, at least 1: no server takes an empty prompt."""
    if request.prompt_token_ids is not None:
        return max(len(request.prompt_token_ids), 1)
    return None if request.input_length is None else max(request.input_length, 1)


def is_made_up(request: TraceRequest) -> bool:
    """Whether the prompt is made from lengths, so that it can be made shorter without spoiling a text."""
    return request.messages is None and request.prompt is None and request.prompt_token_ids is None


def scale_input(request: TraceRequest, factor: float) -> TraceRequest:
    """The request with its made-up prompt ``factor`` times as long; blocks shrink with it, shared prefixes stay shared.

    The block size is rounded up to whole tokens, so that the first blocks fill the prompt; those left over go.
    """
    if request.input_length is None or not is_made_up(request) or factor == 1:
        return request
    length = max(1, round(request.input_length * factor))
    if not request.block_ids or not request.block_size:
        return msgspec.structs.replace(request, input_length=length)
    size = math.ceil(request.block_size * factor)
    blocks = request.block_ids[: -(-length // size)]
    return msgspec.structs.replace(request, input_length=length, block_size=size, block_ids=blocks)


def cap_input(request: TraceRequest, tokens: int) -> TraceRequest:
    """The request with its made-up prompt cut to ``tokens``; its beginning, which may be shared, stays."""
    if request.input_length is None or not is_made_up(request) or request.input_length <= tokens:
        return request
    blocks = request.block_ids
    if blocks and request.block_size:
        blocks = blocks[: -(-tokens // request.block_size)]
    return msgspec.structs.replace(request, input_length=tokens, block_ids=blocks)


def cap_output(request: TraceRequest, tokens: int) -> TraceRequest:
    """The request with recorded length and cap of its answer cut to ``tokens``."""
    return msgspec.structs.replace(
        request,
        output_length=None if request.output_length is None else min(request.output_length, tokens),
        max_tokens=None if request.max_tokens is None else min(request.max_tokens, tokens),
    )


@dataclass
class Fitted:
    """Requests that fit, what became of the others, in words, and how many rows were changed or left out."""

    requests: list[TraceRequest] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    changed: int = 0
    dropped: int = 0


def fit(
    requests: Sequence[TraceRequest],
    needs: Sequence[int],
    limit: int | None,
    policy: TooLong,
    *,
    estimates: Mapping[int, int] | None = None,
    conversations: Mapping[int, int] | None = None,
) -> Fitted:
    """Make prompt and answer of every request fit into ``limit`` tokens together.

    Args:
        requests: the requests; a prompt of unknown length is taken to fit.
        needs: for each, the answer's tokens that must find room.
        limit: the server's limit; None where it is not known: nothing changes.
        policy: ``error`` raises; ``drop`` leaves out the requests that are too long, and the later turns that need
            them; ``cap`` cuts their made-up prompt, and the answer where that alone would take more than half the
            limit, of a text the answer alone; ``scale`` cuts such answers and multiplies all made-up prompts by the one
            factor that makes the longest fit.
        estimates: lengths of texts that are not known for sure, by index: they are dropped or capped where that is
            asked for, and else only told.
        conversations: lengths of the whole prompts that later turns make, by index; of these the answer alone is cut.

    Raises:
        TraceError: requests are too long and the policy is ``error``, or a text is and the policy would have to cut it.
    """
    guessed, given = dict(estimates or {}), dict(conversations or {})
    told_sizes = given | guessed
    sizes = [told_sizes.get(index, input_tokens(request)) for index, request in enumerate(requests)]
    long = [
        index
        for index, (size, need) in enumerate(zip(sizes, needs, strict=True))
        if limit is not None and (size or 0) + need > limit
    ]
    if not long or limit is None:
        return Fitted(requests=list(requests))
    sure = [index for index in long if index not in guessed]
    if policy == "error" and not sure:
        return Fitted(requests=list(requests), changes=[_guess(requests, sizes, long, limit)])
    longest = max(sure or long, key=lambda index: (sizes[index] or 0) + needs[index])
    told = (
        f"{len(long)} of {len(requests)} requests do not fit the server's {limit} tokens (the longest, "
        f"'{requests[longest].id}', is {sizes[longest] or 0} + {needs[longest]})"
    )
    if guessed:
        told += "; lengths of texts are estimated, the server does not count them"
    if policy == "error":
        raise TraceError(told, hint="choose --too-long drop, cap or scale, or shorten the trace with --scale-input")
    if policy == "drop":
        left_out = _with_followers(requests, set(long))
        kept = [request for index, request in enumerate(requests) if index not in left_out]
        return Fitted(kept, [f"{told}: dropped"], dropped=len(left_out))
    uncut = {index for index in long if not is_made_up(requests[index]) or index in given}
    hopeless = [index for index in long if index in uncut and (sizes[index] or 0) >= limit]
    if hopeless:
        raise TraceError(
            f"{len(hopeless)} texts or conversations do not fit the server's {limit} tokens "
            f"('{requests[hopeless[0]].id}' is the first)",
            hint="they are never cut: choose --too-long drop",
        )
    factor = 1.0
    if policy == "scale":
        made_up = [index for index in long if index not in uncut]
        factor = min((fitting_factor(requests[index], needs[index], limit) for index in made_up), default=1.0)
    result = [
        squeezed(scale_input(request, factor), need, limit, told_sizes.get(index))
        for index, (request, need) in enumerate(zip(requests, needs, strict=True))
    ]
    changed = sum(after is not before for after, before in zip(result, requests, strict=True))
    if factor == 1.0:
        return Fitted(result, [f"{told}: capped"], changed=len(long))
    return Fitted(result, [f"{told}: {changed} prompts scaled by {factor:.4g}"], changed=changed)


def _guess(requests: Sequence[TraceRequest], sizes: Sequence[int | None], long: Sequence[int], limit: int) -> str:
    longest = max(long, key=lambda index: sizes[index] or 0)
    return (
        f"{len(long)} of {len(requests)} texts may not fit the server's {limit} tokens (the longest, "
        f"'{requests[longest].id}', has about {sizes[longest]}); the server does not count tokens, and may refuse them "
        "(--too-long drop leaves them out)"
    )


def _with_followers(requests: Sequence[TraceRequest], dropped: set[int]) -> set[int]:
    """The indices, and those of later turns that cannot be sent without them."""
    found = set(dropped)
    sessions: set[str] = set()
    for index, request in enumerate(requests):
        if request.session is None:
            continue
        if index in dropped:
            sessions.add(request.session)
        elif request.session in sessions and request.turn and continues_conversation(request):
            found.add(index)
    return found


def squeezed(request: TraceRequest, need: int, limit: int, told_size: int | None = None) -> TraceRequest:
    """The request cut to ``limit`` tokens: its made-up prompt, and its answer where that takes over half of them.

    Of a text, and of a prompt whose size is told from elsewhere, the answer alone is cut, to what the prompt leaves.
    """
    size = input_tokens(request) or 0 if told_size is None else told_size
    if size + need <= limit:
        return request
    if not is_made_up(request) or told_size is not None:
        return cap_output(request, max(limit - size, 1))
    room = _answer_room(size, need, limit)
    return cap_input(cap_output(request, room), limit - room)


def fitting_factor(request: TraceRequest, need: int, limit: int) -> float:
    """The factor, at most 1, by which the prompt has to shrink for the request to fit into ``limit`` tokens."""
    size = input_tokens(request) or 1
    return min((limit - _answer_room(size, need, limit)) / size, 1.0)


def _answer_room(size: int, need: int, limit: int) -> int:
    return min(need, max(limit // 2, limit - size))
