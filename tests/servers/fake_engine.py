"""A stand-in engine for the launcher's tests: a real process that behaves as its options say.

Run as a script it is the server; imported it is the adapter that starts the script.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kvload.servers.engines.base import Adapter, Build, LaunchPlan
from kvload.servers.engines.metrics import EngineMetrics, Source

METRICS = (
    'fake:cache_config_info{method="none",kv_cache_size_tokens="4096",enable_prefix_caching="False"} 1\n'
    'fake:num_requests_running{model_name="fake"} 0\n'
)


class FakeAdapter(Adapter):
    """Starts this file."""

    name = "fake"
    start_timeout_s = 20.0
    stop_grace_s = 3.0
    metrics = EngineMetrics("fake:", {"pool_tokens": (Source("cache_config_info", info=("kv_cache_size_tokens",)),)})

    def find(self, *_: Any) -> Any:
        return Build("fake", sys.executable, "1.0", "cpu")

    def plan(self, request: Any, port: int, *_: Any) -> Any:
        command = (sys.executable, __file__, "--port", str(port), *request.engine_args)
        return LaunchPlan(command=command, env={"FAKE_ENGINE": "1"}, served_name="fake")

    def progress(self, line: str) -> str | None:
        return line.removeprefix("STEP ") if line.startswith("STEP ") else None


class Handler(BaseHTTPRequestHandler):
    """Health, one model, metrics, and one token for any completion."""

    options: argparse.Namespace

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200 if not self.options.sick else 503, b"")
        elif self.path == "/metrics":
            self._answer(200, METRICS.encode())
        elif self.path == "/v1/models":
            entry = {"id": "fake", "max_model_len": 512, "vocab_size": 1000}
            self._answer(200, json.dumps({"data": [entry]}).encode())
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        if self.options.key and self.headers.get("Authorization") != f"Bearer {self.options.key}":
            self._answer(401, b"{}")
            return
        if self.options.die_at_first_request:
            print("ValueError: the first request was too much", flush=True)  # noqa: T201
            os._exit(7)
        tokens = 0 if self.options.mute else body.get("max_tokens", 1)
        self._answer(200, json.dumps({"choices": [{"text": "x"}], "usage": {"completion_tokens": tokens}}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sick", action="store_true", help="never healthy")
    parser.add_argument("--mute", action="store_true", help="no token in any answer")
    parser.add_argument("--die-at-first-request", action="store_true")
    parser.add_argument("--crash", help="file whose text is printed before exit 1")
    parser.add_argument("--chatty", action="store_true", help="prints its arguments and a key of its environment")
    parser.add_argument("--children", type=int, default=0)
    parser.add_argument("--stubborn", action="store_true", help="neither it nor its children end at SIGTERM")
    parser.add_argument("--bind-after", type=float, default=0.2, help="seconds until it listens, as if it loaded")
    parser.add_argument("--key")
    parser.add_argument("--api-key", dest="key")
    Handler.options = parser.parse_args()
    print("STEP loading weights", flush=True)  # noqa: T201
    if Handler.options.chatty:
        print(f"args: {sys.argv[1:]} token: {os.environ.get('HF_TOKEN')}", flush=True)  # noqa: T201
    if Handler.options.crash:
        print(Path(Handler.options.crash).read_text(encoding="utf-8"), flush=True)  # noqa: T201
        sys.exit(1)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    sleep = "import time; time.sleep(300)"
    for number in range(Handler.options.children):
        code = ignore if Handler.options.stubborn else sleep
        # Every other child leaves the session, as some engines' workers do.
        subprocess.Popen([sys.executable, "-c", code], start_new_session=number % 2 == 1)
    if Handler.options.stubborn:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(Handler.options.bind_after)
    ThreadingHTTPServer(("127.0.0.1", Handler.options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
