"""What is checked before the first launch of an experiment, against servers that are there or not."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest

from kvload.errors import KvloadError, MachineError, UsageError
from kvload.experiment import preflight
from kvload.experiment.options import RunOptions
from kvload.experiment.plan import ExperimentPlan, make_arms
from kvload.servers.engines.base import LaunchRequest
from kvload.workloads.run.plan import Sending


class Models(http.server.BaseHTTPRequestHandler):
    """A server that lists one model, of a short context, to whoever has the key."""

    keys: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        if self.keys and self.headers.get("Authorization") not in self.keys:
            self.send_error(401)
            return
        body = json.dumps({"data": [{"id": "m", "max_model_len": 64}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Models.keys = set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    rows = [{"id": f"r{n}", "arrival": n * 0.1, "prompt": "a b", "max_tokens": 8} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(trace: Path, methods: list[str], urls: dict[str, str], runs: int = 3, **changes: Any) -> list[str]:
    arms = make_arms(methods, urls, least=1)
    keys = changes.pop("keys", {})
    plan = ExperimentPlan(
        trace=str(trace), trace_sha256="0", arms=arms, repeats=1, launch=LaunchRequest(engine="embedded")
    )
    plan = msgspec.structs.replace(plan, **changes)
    return preflight.check(plan, trace.parent / "new" / "out", trace, runs=runs, headers={}, arm_headers=keys)


def test_nothing_is_said_where_all_is_well(trace: Path, url: str) -> None:
    assert check(trace, ["none", "int8"], {"a": url}) == []


@pytest.mark.parametrize(
    ("methods", "urls", "words"),
    [
        (["none", "kivi4"], {}, ["arm 'kivi4'", "kivi-4"]),
        (["none", "int8:bits=3"], {}, ["arm 'int8:bits=3'"]),
        (["none", "h2o:budget=x"], {}, ["arm 'h2o:budget=x'"]),
        (["none"], {"b": "http://127.0.0.1:9"}, ["arm 'b'", "nothing listens there"]),
        (["none"], {"b": "https://127.0.0.1:9"}, ["arm 'b'", "nothing listens there"]),
        (["none", "kivi4"], {"b": "http://127.0.0.1:9"}, ["several arms", "kivi4", "'b'"]),
    ],
)
def test_all_arms_are_looked_at_and_all_that_is_wrong_is_said_at_once(
    trace: Path, methods: list[str], urls: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(KvloadError) as caught:
        check(trace, methods, urls)
    for word in words:
        assert word in f"{caught.value} {caught.value.hint}"


def test_an_arm_that_wants_a_key_is_found_and_its_own_key_is_used(trace: Path, url: str) -> None:
    Models.keys = {"Bearer alpha"}
    with pytest.raises(KvloadError, match="wants an API key"):
        check(trace, ["none"], {"b": url})
    assert check(trace, ["none"], {"b": url}, keys={"b": {"Authorization": "Bearer alpha"}}) == []


def test_a_prompt_longer_than_the_narrowest_server_takes_is_found(tmp_path: Path, url: str) -> None:
    trace = tmp_path / "long.jsonl"
    trace.write_text(json.dumps({"arrival": 0, "input_length": 500, "output_length": 8}) + "\n", encoding="utf-8")
    with pytest.raises(KvloadError, match="64"):
        check(trace, ["none"], {"b": url})


def test_a_disk_without_room_is_found(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="MiB are free"):
        check(trace, ["none"], {}, runs=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
    (note,) = check(trace, ["none"], {}, runs=10)
    assert "may take" in note


def test_a_load_that_the_workers_cannot_share_is_found(trace: Path) -> None:
    with pytest.raises(UsageError, match="cannot be shared by 4 workers"):
        check(trace, ["none"], {}, run=RunOptions(sending=Sending(concurrency=2, workers=4)))


def test_of_a_clusters_arms_only_what_any_machine_knows_is_checked(trace: Path) -> None:
    """The driver need not have the engine, nor a GPU."""
    elsewhere = LaunchRequest(engine="sglang", method="none")
    assert check(trace, ["none", "fp8-e4m3"], {}, launch=elsewhere, place="ray") == []
    with pytest.raises(KvloadError, match="kivi4"):
        check(trace, ["none", "kivi4"], {}, launch=elsewhere, place="ray")
