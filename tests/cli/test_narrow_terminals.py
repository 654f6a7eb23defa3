"""Lists on a terminal of 80 columns: no name, address or figure is broken over two lines."""

import os
import time

import pytest

from kvload import terminal
from kvload.cli.main import run
from kvload.records import ServerInfo
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.process import start_mark
from kvload.servers.lifecycle.registry import ServerEntry


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "WIDE_COLUMNS", 80)


def test_methods_keep_their_names_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert all(any(row[:1] == [name] for row in words) for name in METHODS)
    assert ["leankv", "<=", "212", ">=", "2.42", "embedded"] in words
    assert all(len(line.rstrip()) <= 80 for line in lines if not line.startswith("bytes:"))


def test_a_servers_address_stays_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://some-host.of-a-cluster.example.org:43210"
    info = ServerInfo(url=url, engine_version="0.26.0", model="llama-8b", method="fp8-e4m3", pool_tokens=131072)
    entry = ServerEntry(
        name="vllm-fp8-e4m3",
        engine="vllm",
        host="127.0.0.1",
        port=43210,
        url=url,
        token="t0ken",
        state="ready",
        info=info,
        log_path="/nowhere.log",
        exit_path="/nowhere.exit",
        launched_at=time.time(),
        pid=os.getpid(),
        mark=start_mark(os.getpid()) or "",
    )
    monkeypatch.setattr(registry, "entries", lambda: [entry])
    assert run(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"vllm-fp8-e4m3  ready  {url}\n" in shown
    assert "engine vllm 0.26.0, model llama-8b, method fp8-e4m3, KV tokens 131,072" in shown
