"""Takes an OpenAI-style request apart into what a trace request holds."""

from collections.abc import Mapping
from typing import Any

from kvload.workloads.traces.reader import Cursor

SAMPLING_FIELDS = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "logit_bias", "tools", "tool_choice", "response_format", "chat_template_kwargs",
        "reasoning_effort", "add_special_tokens", "skip_special_tokens",
    }
)  # fmt: skip
"""Fields of a request that change its answer and are passed through to the server."""

_OURS = {"model", "stream", "stream_options", "messages", "prompt", "max_tokens", "max_completion_tokens"}
"""Fields that the replay decides itself, or that have a place of their own."""


def split_request(cursor: Cursor, request: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a TraceRequest: the prompt, ``max_tokens``, ``sampling`` and the rest as ``extra``.

    Raises:
        TraceError: there is neither ``messages`` nor ``prompt``, or a field is not what the protocol wants.
    """
    found: dict[str, Any] = {
        "sampling": {key: value for key, value in request.items() if key in SAMPLING_FIELDS},
        "extra": {key: value for key, value in request.items() if key not in SAMPLING_FIELDS | _OURS},
    }
    if request.get("messages") is not None:
        found["messages"] = cursor.messages(request["messages"], "messages")
    elif isinstance(request.get("prompt"), list):
        found["prompt_token_ids"] = cursor.ids(request["prompt"], "prompt")
    elif request.get("prompt") is not None:
        found["prompt"] = cursor.text(request["prompt"], "prompt")
    else:
        raise cursor.error("fields 'messages' and 'prompt' are missing: one of them says what to send")
    for name in ("max_completion_tokens", "max_tokens"):
        if request.get(name) is not None:
            found["max_tokens"] = cursor.tokens(request[name], name)
            break
    return found
