"""Records short transcripts of a real vLLM or SGLang for the client's protocol tests.

    python tests/vllm/record_streams.py URL MODEL FOLDER [--engine sglang] [--kill]

Bodies of responses, byte for byte; ``--kill`` also records how vLLM's CPU engine dies in the middle of a stream, which
ends the server.
"""

import argparse
import contextlib
import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

USAGE = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
MESSAGES = [{"role": "user", "content": "hi"}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="vllm", help="what the files' names start with")
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    record = Recorder(options.url, options.model, options.folder, options.engine)
    ids = [300 + 7 * i for i in range(12)]
    record("completions", "/v1/completions", {"prompt": ids, "max_tokens": 6, "ignore_eos": True, **USAGE})
    record(
        "completions_token_ids",
        "/v1/completions",
        {"prompt": ids, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True, **USAGE},
    )
    record("completions_no_usage", "/v1/completions", {"prompt": ids, "max_tokens": 3, "stream": True})
    record("chat", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 6, "ignore_eos": True, **USAGE})
    # Tokens above 128 of a byte-level vocabulary are parts of characters: forced, they come as chunks without text.
    half = {"logit_bias": {str(record.token_of("é") or 130): 100}}
    record(
        "chat_empty_text",
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 4, "ignore_eos": True, "return_token_ids": True, **half, **USAGE},
    )
    record("stop_at_once", "/v1/completions", {"prompt": ids, "max_tokens": 5, "logit_bias": {"1": 100}, **USAGE})
    record("error_400", "/v1/completions", {"prompt": ids, "max_tokens": 10**6, **USAGE})
    record("error_404", "/v1/completions", {"prompt": ids, "max_tokens": 2, "model": "absent", **USAGE})
    record.crowd("completions_crowd", ids)
    if options.kill:
        record.kill("error_after_200")


class Recorder:
    """Sends requests to one server and writes the answers' bodies into files."""

    def __init__(self, url: str, model: str, folder: Path, engine: str) -> None:
        self._address = urlsplit(url)
        self._model = model
        self._folder = folder
        self._engine = engine
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, path: str, body: dict[str, Any]) -> bytes:
        status, data = self._send(path, body)
        self._file(name).write_bytes(data)
        print(f"{name}: {status}, {len(data)} bytes")  # noqa: T201
        return data

    def token_of(self, text: str) -> int | None:
        """The first token of a text."""
        status, data = self._send("/tokenize", {"prompt": text, "add_special_tokens": False})
        tokens = json.loads(data).get("tokens") if status == 200 else None
        return tokens[0] if tokens else None

    def crowd(self, name: str, ids: list[int]) -> None:
        """Many streams at once, of which the one with the fewest chunks is kept: several tokens in a chunk."""
        body = {"prompt": ids, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True, **USAGE}
        answers: list[bytes] = []

        def ask(index: int) -> None:
            answers.append(self._send("/v1/completions", {**body, "prompt": [*ids, 300 + index]})[1])

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(answers, key=lambda data: data.count(b"data: "))
        self._file(name).write_bytes(best)
        print(f"{name}: {best.count(b'data: ')} events for 24 tokens")  # noqa: T201

    def kill(self, name: str) -> None:
        """A seeded request beside a long prompt ends vLLM 0.32's CPU engine; a stream that was running is kept."""
        running = {"prompt": [400, 401, 402], "max_tokens": 1000, "ignore_eos": True, **USAGE}
        kept: list[bytes] = []
        thread = threading.Thread(target=lambda: kept.append(self._send("/v1/completions", running)[1]))
        thread.start()
        time.sleep(1.0)  # so that it has tokens before the end
        seeded = {"max_tokens": 50, "seed": 1, "temperature": 1.0, "stream": True}
        for length in (700, 900, 1500):
            with contextlib.suppress(OSError):  # it may be dead by then
                self._send("/v1/completions", {"prompt": [300 + i % 900 for i in range(length)], **seeded})
        thread.join()
        events = kept[0].split(b"\n\n")
        short = b"\n\n".join([*events[:3], *events[max(3, len(events) - 4) :]])
        self._file(name).write_bytes(short)
        print(f"{name}: {events[-4:]!r}")  # noqa: T201

    def _file(self, name: str) -> Path:
        return self._folder / f"{self._engine}_{name}.txt"

    def _send(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=300)
        try:
            connection.request(
                "POST", path, json.dumps({"model": self._model, **body}), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            try:
                return response.status, response.read()
            except http.client.IncompleteRead as cut:
                return response.status, cut.partial
        finally:
            connection.close()


if __name__ == "__main__":
    main()
