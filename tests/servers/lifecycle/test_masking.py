"""Secrets by name, by place and by looks; and what is none."""

import pytest

from kvload.servers.lifecycle.masking import known_secrets, mask_command, mask_env, mask_text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", "one", "two", "--port", "1"], ["--api-key", "***", "***", "--port", "1"]),
        (["--hf-token=abc"], ["--hf-token=***"]),
        (["--max-num-batched-tokens", "8192"], ["--max-num-batched-tokens", "8192"]),
        (["--max-total-tokens=4096"], ["--max-total-tokens=4096"]),
        (["--token-limit", "5", "--tokenizer", "a/b"], ["--token-limit", "5", "--tokenizer", "a/b"]),
        (["--otlp-header", "auth=planted"], ["--otlp-header", "***"]),
        (["--otlp", "auth=planted"], ["--otlp", "auth=***"]),
        (["--config", '{"api_key": "planted"}'], ["--config", '{"api_key": "***"}']),
        (["--proxy", "http://me:planted@host:1/x"], ["--proxy", "http://***@host:1/x"]),
        (["--extra", "sk-planted-0123456789"], ["--extra", "***"]),
        (["--url", "http://h/x?token=planted&n=1"], ["--url", "http://h/x?token=***&n=1"]),
    ],
)
def test_a_command_line(given: list[str], shown: list[str]) -> None:
    assert mask_command(["engine", *given]) == ["engine", *shown]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("KVLOAD_REPLAY_HEADER", "Authorization: Bearer planted", "***"),
        ("KVLOAD_HEADERS", '{"Authorization": "planted"}', "***"),
        ("VLLM_MY_AUTH", "planted", "***"),
        ("HF_TOKEN", "planted", "***"),
        ("HF_ENDPOINT", "https://me:planted@hub", "https://***@hub"),
        ("VLLM_NOTE", "Bearer planted0123", "Bearer ***"),
        ("VLLM_MAX_TOKENS", "8192", "8192"),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
        ("HF_HOME", "/models", "/models"),
    ],
)
def test_an_environment(name: str, value: str, shown: str) -> None:
    assert mask_env({name: value, "HOME": "/root"}) == {name: shown}


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 4096, tokens = 128, the key: value store",
        "hf_transfer is not installed, risk-adjusted, task-specific",
        "http://127.0.0.1:8000/v1 and user@example.org",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert mask_text(text) == text


def test_known_secrets_are_masked_wherever_an_engine_prints_them() -> None:
    environ = {"MY_PASSWORD": "planted-42", "HOME": "/root"}
    known = known_secrets(environ, ["x", "--api-key", "sesame-1", "--auth=open-it"])
    assert known == {"planted-42", "sesame-1", "open-it"}
    log = "non-default args: {'api_key': ['sesame-1']} and planted-42, open-it"
    assert mask_text(log, known) == "non-default args: {'api_key': ['***']} and ***, ***"
    assert mask_text("args: {'api_key': ['unknown1']}") == "args: {'api_key': ['***']}"
