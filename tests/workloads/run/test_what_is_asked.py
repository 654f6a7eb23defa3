"""What a trace asks for arrives at the server, over the wire: fields, models, tool calls in the history."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvload.cli.main import run

CALL = {"index": 0, "id": "made-1", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
MORE = {"index": 0, "function": {"arguments": ' "Oslo"}'}}


class Stub(ThreadingHTTPServer):
    """Answers the first turn with a tool call and others with a word; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        models = {"data": [{"id": "base", "max_model_len": 4096}, {"id": "lora-a"}]}
        self._answer(json.dumps(models).encode() if self.path == "/v1/models" else b"{}", "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1/"):
            self.server.bodies.append(body)
        messages = body.get("messages", [])
        calls = len(messages) == 1 and "tools" in body
        deltas = (
            [{"tool_calls": [CALL]}, {"tool_calls": [MORE]}] if calls else [{"content": "It"}, {"content": " rains"}]
        )
        events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]}
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, end]) + "data: [DONE]\n\n"
        self._answer(text.encode(), "text/event-stream")

    def _answer(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at the bodies."""


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_fields_models_and_tool_calls_arrive(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    rows = [
        {
            "id": "a",
            "session": "s",
            "turn": 0,
            "messages": [{"role": "user", "content": "Weather?"}],
            "tools": tools,
            "priority": 3,
            "chat_template_kwargs": {"enable_thinking": False},
            "extra_body": {"anything": [1]},
            "model": "lora-a",
            "max_tokens": 20,
        },
        {
            "id": "b",
            "session": "s",
            "turn": 1,
            "messages": [{"role": "tool", "tool_call_id": "recorded", "content": "rain"}],
            "model": "gpt-4",
            "max_tokens": 20,
        },
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = run(
        [
            *("replay", str(trace), "--url", f"http://127.0.0.1:{stub.server_port}", "--rate", "inf"),
            *("--no-calibrate", "--warmups", "0", "--out", str(tmp_path / "run"), "-q"),
        ]
    )
    told = capsys.readouterr().err
    assert status == 0, told
    assert told.splitlines()[0].startswith("mode free: the trace has its prompts")
    assert "models that the server does not serve, asked as 'base': gpt-4 (1)" in told
    # The first tries the server out.
    _, first, second = (body for body in stub.bodies if "messages" in body)
    assert first["model"] == "lora-a"
    assert {"tools": tools, "priority": 3, "anything": [1], "max_tokens": 20}.items() <= first.items()
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert (second["model"], second["tools"]) == ("base", tools)
    _, assistant, result = second["messages"]
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "rain"}


def test_what_cannot_be_scored_is_refused_before_anything_is_sent(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"id": "a", "arrival": 0, "prompt": "x", "expected": "a word", "scorer": "numeric"}\n')
    status = run(["replay", str(trace), "--url", f"http://127.0.0.1:{stub.server_port}", "--out", str(tmp_path / "r")])
    assert status == 2
    assert "request 'a'" in capsys.readouterr().err
    assert stub.bodies == []
