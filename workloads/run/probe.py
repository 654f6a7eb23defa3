"""One small request before a run, of the kind that the run is made of: whether the server takes it at all."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvload.address import Address
from kvload.errors import ServerError
from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.loop import StreamLoop
from kvload.workloads.client.raw import RawStream
from kvload.workloads.schedule.request import PlannedRequest

PATIENCE_S = 120.0
"""A server's first answer may take long: it compiles something for it."""

_TRIES = 3
_TOKENS = 4
_REFUSED_FOR_CERTAIN = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 415, 422, 426})
_KEPT = frozenset(
    {
        *("model", "stream", "stream_options", "temperature", "top_p", "seed"),
        *("return_token_ids", "chat_template_kwargs"),
    }
)
"""Fields of a request that the one to try the server out has, too."""

_HINTS = {
    401: "give the key with --api-key or KVLOAD_API_KEY",
    403: "give the key with --api-key or KVLOAD_API_KEY",
    404: "does the server have this model, and this path?",
    **dict.fromkeys((301, 302, 303, 307, 308), "redirects are not followed: give the address it redirects to"),
}


def probe(
    planned: Sequence[PlannedRequest], address: Address, *, headers: Mapping[str, str], timeout_s: float | None = None
) -> list[str]:
    """Ask the server for a few tokens, with a short prompt of the schedule's kind (text, token ids or a chat).

    Returns:
        what is odd about its answer, in words; nothing where it is as it should be.

    Raises:
        ServerError: it cannot be reached, or refuses every such request.
    """
    request = next((request for request in planned if request.body), None)
    if request is None:
        return []
    for number in range(_TRIES):
        answer = _ask(request, address, headers, timeout_s, number)
        if answer.status == "ok":
            return _oddities(request, answer)
        if answer.cause in {"connect", "tls"}:
            raise ServerError(f"no answer: {answer.error}", where=address.url)
    if answer.http_status in _REFUSED_FOR_CERTAIN:
        raise ServerError(
            f"the server refuses the requests of this run: {answer.http_status}: {answer.error}",
            where=address.at(request.path),
            hint=_HINTS.get(answer.http_status or 0),
        )
    return [f"a request to try the server out failed ({answer.cause}): {answer.error}"]


def _oddities(request: PlannedRequest, answer: Answer) -> list[str]:
    found = []
    if answer.http_status == 200 and answer.first_chunk_tokens == answer.output_tokens and answer.output_tokens != 1:
        found.append("the server did not stream its answer to a request to try it out: there will be no TPOT")
    if answer.count_doubt is not None:
        found.append(f"tokens will be counted by chunks: {answer.count_doubt}")
    if answer.in_bursts:
        found.append("the answer came in bursts: something on the way gathers the chunks")
    if _field(request.body, "return_token_ids") and answer.token_ids is None:
        found.append("the server sends no token ids, although they are asked for")
    return found


def _ask(
    request: PlannedRequest, address: Address, headers: Mapping[str, str], timeout_s: float | None, number: int
) -> Answer:
    ended: list[RawStream] = []
    patience_s = PATIENCE_S if timeout_s is None else min(timeout_s, PATIENCE_S)
    loop = StreamLoop(address, on_end=ended.append, headers=headers, timeout_s=patience_s)
    try:
        loop.start(None, request.path, small_body(request.body, number), f"kvload-probe-{number}")
        while not ended:
            loop.turn(wait=True)
    finally:
        loop.close()
    return parse_answer(ended[0], _TOKENS)


def _field(body: bytes, name: str) -> Any:
    try:
        return json.loads(body).get(name)
    except (ValueError, AttributeError, RecursionError):
        return None


def small_body(body: bytes, number: int) -> bytes:
    """The request with a prompt so short that it leaves nothing behind in a prefix cache."""
    given = json.loads(body)
    small = {name: given[name] for name in _KEPT if name in given}
    small["max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"] = _TOKENS
    word = "Hello" + "!" * number
    if "messages" in given:
        small["messages"] = [{"role": "user", "content": word}]
    elif isinstance(given.get("prompt"), list):
        small["prompt"] = [token for token in given["prompt"] if isinstance(token, int)][number : number + 4] or [1]
    else:
        small["prompt"] = word
    return json.dumps(small).encode()
