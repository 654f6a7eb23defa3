"""Takes a request apart, as OpenAI-compatible servers take it, into what a trace request holds.

What a trace asks for is sent. What is decided by the replay itself (the stream, how many answers) is not; what is no
field of a request that kvload knows is kept in ``extra`` and named once.
"""

from collections.abc import Collection, Mapping
from typing import Any

from kvload.workloads.traces.names import OUTPUT_LENGTHS, TIMES
from kvload.workloads.traces.reader import Cursor

SAMPLING_FIELDS = frozenset(
    {
        # OpenAI's
        "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
        "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
        "reasoning_effort", "reasoning", "verbosity", "service_tier", "suffix", "echo", "user",
        # vLLM's and SGLang's
        "top_k", "min_p", "repetition_penalty", "length_penalty", "ignore_eos", "min_tokens", "stop_token_ids",
        "no_stop_trim", "include_stop_str_in_output", "bad_words", "allowed_token_ids", "prompt_logprobs",
        "truncate_prompt_tokens", "skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens",
        "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "guided_whitespace_pattern", "guided_decoding_backend", "structural_tag", "json_schema", "regex", "ebnf",
        "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents",
        "mm_processor_kwargs", "priority", "cache_salt", "lora_path", "thinking", "enable_thinking",
        "separate_reasoning", "stream_reasoning", "include_reasoning", "thinking_token_budget", "vllm_xargs",
        "custom_params", "session_params",
        "typical_p", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "dry_multiplier",
        "dry_base", "dry_allowed_length", "nvext",
    }
)  # fmt: skip
"""Fields of a request that are passed through to the server."""

OWN_FIELDS = frozenset(
    {"model", "stream", "stream_options", "messages", "prompt", "max_tokens", "max_completion_tokens", "extra_body"}
)
"""Fields that the replay decides itself, or that have a place of their own."""

_MANY_ANSWERS = ("n", "best_of")

REQUEST_FIELDS = SAMPLING_FIELDS | OWN_FIELDS | {*_MANY_ANSWERS, "use_beam_search"}
"""All fields of a request that are read."""

NOT_SENT = "fields that are not sent"


def sampling_of(cursor: Cursor, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that are sent as they are, those of its ``extra_body`` among them.

    Raises:
        TraceError: the row asks for several answers, or ``extra_body`` is no object or would exchange the prompt.
    """
    refuse_many(cursor, row)
    found = {key: value for key, value in row.items() if key in SAMPLING_FIELDS and value is not None}
    if row.get("extra_body") is not None:
        found |= extra_body(cursor, row["extra_body"], "extra_body")
    return found


def named_rest(cursor: Cursor, row: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of a row that are neither known to its reader nor sent; each is named once as not sent."""
    rest = {key: value for key, value in row.items() if key not in known and key not in REQUEST_FIELDS}
    for key in rest:
        cursor.notes.group(NOT_SENT, key)
    return rest


def tell_times(cursor: Cursor, row: Mapping[str, Any]) -> None:
    """Tell of fields that look like times in a format that has none, since no request waits for them."""
    for name in TIMES:
        if row.get(name) is not None:
            cursor.notes.rows(
                f"'{name}' looks like a time, but this format has none: requests are not sent by it (call it 'arrival' "
                "beside an 'id', in seconds, for kvload's own format)"
            )


def extra_body(cursor: Cursor, value: object, name: str) -> dict[str, Any]:
    """Fields that are merged into the request whatever they are called, as OpenAI's client does.

    Raises:
        TraceError: it is no object, asks for several answers, or has a field that the replay decides itself.
    """
    fields = cursor.mapping(value, name)
    refuse_many(cursor, fields)
    for key in fields:
        if key in OWN_FIELDS:
            raise cursor.error(f"field '{name}' has '{key}', which is not for it to say")
    return {key: value for key, value in fields.items() if key not in _MANY_ANSWERS}


def refuse_many(cursor: Cursor, row: Mapping[str, Any]) -> None:
    """Complain about a row that asks for several answers: kvload measures one answer for each request.

    Raises:
        TraceError: it does.
    """
    for name in _MANY_ANSWERS:
        if row.get(name) not in {None, 1} if isinstance(row.get(name), int | None) else True:
            raise cursor.error(
                f"field '{name}' is {row[name]!r}: kvload measures one answer for each request",
                hint="write the row as often as answers are wanted, without it",
            )
    if row.get("use_beam_search"):
        raise cursor.error("field 'use_beam_search' is set: kvload measures one answer for each request")


def _listed_prompt(cursor: Cursor, prompt: list[Any]) -> dict[str, Any]:
    """Token ids, or the one text or list of ids of a batch of one."""
    if prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise cursor.error(
                f"field 'prompt' holds {len(prompt)} prompts: kvload measures one answer for each request",
                hint="write a row for each prompt",
            )
        if isinstance(prompt[0], str):
            return {"prompt": prompt[0]}
        return {"prompt_token_ids": cursor.ids(prompt[0], "prompt")}
    return {"prompt_token_ids": cursor.ids(prompt, "prompt")}


def split_request(cursor: Cursor, request: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Keyword arguments for a TraceRequest: the prompt, lengths, the model, ``sampling``, and the rest as ``extra``.

    Args:
        request: the request, with or without things that its log says beside it.
        others: names of fields that the caller reads.

    Raises:
        TraceError: there is neither ``messages`` nor ``prompt``, or a field is not what the protocol wants.
    """
    read = {*others, *OUTPUT_LENGTHS}
    found: dict[str, Any] = {
        "sampling": sampling_of(cursor, request),
        "extra": named_rest(cursor, request, read),
    }
    if request.get("messages") is not None:
        found["messages"] = cursor.messages(request["messages"], "messages")
    elif isinstance(request.get("prompt"), list):
        found |= _listed_prompt(cursor, request["prompt"])
    elif request.get("prompt") is not None:
        found["prompt"] = cursor.text(request["prompt"], "prompt")
    else:
        raise cursor.error("fields 'messages' and 'prompt' are missing: one of them says what to send")
    for name in ("max_completion_tokens", "max_tokens"):
        if request.get(name) is not None and request[name] != -1:  # -1 is "no limit" in some servers' logs
            found["max_tokens"] = cursor.tokens(request[name], name)
            break
    for name in OUTPUT_LENGTHS:
        if name not in others and request.get(name) is not None:
            found["output_length"] = cursor.tokens(request[name], name)
            break
    if request.get("model") is not None:
        found["model"] = cursor.text(request["model"], "model")
    return found
