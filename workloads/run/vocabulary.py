"""How many tokens a model's vocabulary has, found by asking a server that does not say it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kvload.address import Address
from kvload.errors import ServerError
from kvload.http import request as ask
from kvload.untrusted import DECODE_ERRORS
from kvload.workloads.schedule.prompts import PromptSpec
from kvload.workloads.schedule.request import PlannedRequest

_PATIENCE_S = 60.0
"""A server's first answer may take long: it compiles something for it."""

_ABOUT_IDS = ("vocab", "token")
"""Words of an error that is about the ids: vLLM says "Token id 29980 is out of vocabulary"."""


def asks_by_token_ids(planned: Sequence[PlannedRequest]) -> bool:
    """Whether the first prompt that is sent is a list of token ids."""
    body = next((request.body for request in planned if request.body), b"")
    try:
        prompt = msgspec.json.decode(body, type=dict[str, Any]).get("prompt")
    except DECODE_ERRORS:
        return False
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def vocabulary_by_asking(
    planned: Sequence[PlannedRequest],
    address: Address,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> int | None:
    """Tokens of the vocabulary, where the server refuses the highest ids that prompts are made up of otherwise.

    One request of one token where it does not refuse them; about 16 where it does.

    Args:
        planned: requests of the run, for the model's name and the endpoint.
        timeout_s: limit for each request, in seconds.

    Returns:
        the number, or None: the usual range will do, or nothing is known, because the server refuses for another
        reason or does not answer. What is wrong then is told by the request that tries the server out.
    """
    first = next(request for request in planned if request.body)
    model = msgspec.json.decode(first.body).get("model")
    patience_s = min(timeout_s or _PATIENCE_S, _PATIENCE_S)

    def takes(token: int) -> bool | None:
        body: dict[str, Any] = {"model": model, "prompt": [token] * 4, "max_tokens": 1, "temperature": 0}
        try:
            answer = ask(address, first.path, body=body, headers=headers, timeout_s=patience_s)
        except ServerError:
            return None
        text = answer.text()
        refused = answer.status != 200 or '"error"' in text
        if not refused:
            return True
        return False if any(word in text.lower() for word in _ABOUT_IDS) else None

    lowest, refused = 1, PromptSpec().token_high - 1
    if takes(refused) is not False or takes(lowest) is not True:
        return None
    while refused - lowest > 1:
        middle = (lowest + refused) // 2
        taken = takes(middle)
        if taken is None:
            return None
        lowest, refused = (middle, refused) if taken else (lowest, middle)
    return refused
