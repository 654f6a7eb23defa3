"""Where a model comes from: names that cannot be fetched are told at once, GGUF files are converted once."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvload.errors import UsageError
from kvload.servers.host.model_source import check_hub, locate
from tests.servers.gguf.gguf_files import as_float32, tiny_llama, write


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that knows one model, keeps another to itself and lacks all others."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = {"/known/model/resolve/main/config.json": 200, "/gated/model/resolve/main/config.json": 401}
            self.send_response(known.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_answers(hub: str) -> None:
    check_hub("known/model", {"HF_ENDPOINT": hub})
    with pytest.raises(UsageError, match=r"no folder 'a/typo'.*nor has"):
        check_hub("a/typo", {"HF_ENDPOINT": hub})
    with pytest.raises(UsageError, match="only to those it knows"):
        check_hub("gated/model", {"HF_ENDPOINT": hub})


def test_no_network_and_no_wish_for_one() -> None:
    with pytest.raises(UsageError, match="cannot be reached"):
        check_hub("some/model", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(UsageError, match="no model of that name"):
        check_hub("some/model", {"HF_HUB_OFFLINE": "1"})
    with pytest.raises(UsageError, match="HF_ENDPOINT is no address"):
        check_hub("some/model", {"HF_ENDPOINT": "file:///etc"})


def test_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_CACHE_DIR", str(tmp_path / "cache"))
    facts, weights = tiny_llama()
    path = write(tmp_path / "tiny.gguf", facts, as_float32(weights))
    said: list[str] = []
    model = locate(str(path), {}, said.append)
    assert model.folder is not None
    assert (model.layers, model.kv_heads, model.head_size, model.vocab_size) == (2, 2, 8, 16)
    assert said == ["converting tiny.gguf to safetensors"]
    assert locate(str(path), {}, said.append) == model
    assert len(said) == 1
    with pytest.raises(UsageError, match="there is no such file"):
        locate(str(tmp_path / "absent.gguf"), {}, said.append)


def test_a_gguf_file_that_only_an_engine_reads(tmp_path: Path) -> None:
    other: dict[str, Any] = {"general.architecture": "gemma"}
    facts, weights = tiny_llama(**other)
    path = write(tmp_path / "tiny.gguf", facts, as_float32(weights))
    with pytest.raises(UsageError, match="its architecture is gemma"):
        locate(str(path), {}, lambda _: None)
    said: list[str] = []
    assert locate(str(path), {}, said.append, engine_reads_gguf=True).folder is None
    assert "reads the file itself" in said[-1]
