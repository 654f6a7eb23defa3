"""Requests sent before the clock starts: they warm the server up and are not part of the run."""

import json
import time
from collections.abc import Mapping, Sequence

from kvload.address import Address
from kvload.workloads.client.answer import parse_answer
from kvload.workloads.client.loop import StreamLoop
from kvload.workloads.client.raw import RawStream
from kvload.workloads.schedule.request import PlannedRequest


def warm_up(
    planned: Sequence[PlannedRequest],
    address: Address,
    count: int,
    *,
    headers: Mapping[str, str],
    timeout_s: float | None = None,
    at_once: int = 8,
) -> list[str]:
    """Send ``count`` likenesses of the schedule's first complete requests, ``at_once`` at a time.

    Each begins otherwise than the request it is made from, so that it leaves nothing in a prefix cache for it.

    Returns:
        what went wrong, one line for each request that failed.
    """
    ready = [request for request in planned if request.body][: max(count, 1)]
    problems: list[str] = []
    if not ready:
        return problems
    left = count

    def ended(raw: RawStream) -> None:
        answer = parse_answer(raw)
        if answer.status != "ok":
            problems.append(f"warm-up: {answer.cause}: {answer.error}")

    loop = StreamLoop(address, on_end=ended, headers=headers, timeout_s=timeout_s)
    try:
        while left or loop.in_flight:
            while left and loop.in_flight < at_once:
                request = ready[(count - left) % len(ready)]
                left -= 1
                loop.start(None, request.path, likeness(request.body), f"kvload-warm-up-{time.monotonic_ns()}")
            loop.turn(wait=True)
    finally:
        loop.close()
    return problems


def likeness(body: bytes) -> bytes:
    """A request as long as this one, whose prompt begins with something else."""
    request = json.loads(body)
    prompt, messages = request.get("prompt"), request.get("messages")
    if isinstance(prompt, str) and prompt:
        request["prompt"] = _otherwise(prompt)
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        request["prompt"] = [next((token for token in prompt if token != prompt[0]), prompt[0]), *prompt[1:]]
    elif isinstance(messages, list) and messages and isinstance(messages[0].get("content"), str):
        request["messages"] = [{**messages[0], "content": _otherwise(messages[0]["content"])}, *messages[1:]]
    return json.dumps(request).encode()


def _otherwise(text: str) -> str:
    return ("+" if text[:1] == "~" else "~") + text[1:]
