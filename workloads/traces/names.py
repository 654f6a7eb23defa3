"""Other names for the same things: what logs and datasets call a request's time, its lengths and its id."""

TIMES = (
    "timestamp",
    "startTime",
    "start_time",
    "created",
    "created_at",
    "createdAt",
    "request_time",
    "requestTime",
    "arrival_time",
    "arrived_at",
    "ts",
)
"""When a request came."""

SESSIONS = ("session_id", "sessionId", "conversation_id", "conversationId", "chat_id", "thread_id")
"""The conversation that a request is a turn of."""

INPUT_LENGTHS = (
    "input_length",
    "prompt_tokens",
    "input_tokens",
    "promptTokens",
    "inputTokens",
    "prompt_len",
    "input_len",
)
"""Tokens of a prompt."""

OUTPUT_LENGTHS = (
    "output_length",
    "output_tokens",
    "completion_tokens",
    "outputTokens",
    "completionTokens",
    "generated_tokens",
    "output_len",
    "expected_output_len",
)
"""Tokens of an answer."""
